/** @typedef {import('../__test__/sdk/fixture.mjs').Entry} Entry */
/**
 * What befell processes, on the clock of `moment()`. `pids`: those whose steps in flight may run again
 * for it; none for a fault that repeats nothing. `drains`: only if the database was in trouble meanwhile,
 * or the process could not act. `loses`: PostgreSQL has forgotten what it was told meanwhile, whichever
 * process told it. `frozen`: the process whose event loop was blocked. `guarded`: a worker's lease on the
 * message protects the steps, unless a fault of `http` has broken off its delivery.
 *
 * @typedef {{ kind: string, from: number, to: number, pids: number[], database?: boolean, drains?: boolean, loses?: boolean, frozen?: number, guarded?: boolean, http?: boolean }} Window
 */
/** @typedef {{ pid: number, moment: number }} Death of a process that one of its runs has killed */
/** @typedef {{ begin: Entry, end: Entry | undefined }} Execution */
/** @typedef {{ stepId: string, step: string, runId: string, executions: Execution[] }} History */

/** How long the outcome of a step may be under way to the database while nothing is wrong with it. */
const SETTLING_MS = 5000;
/** How long a process that is told to end lets its steps end. */
const DRAIN_MS = 10_000;
/** A step that blocks its process does so for no longer. */
const FROZEN_MS = 13_000;

/**
 * The harm that the workload itself did to processes.
 *
 * @param {Entry[]} entries
 * @param {Death[]} deaths
 * @returns {Window[]}
 */
export function ownWindows(entries, deaths) {
  return [
    ...deaths.map(({ pid, moment }) => ({ kind: 'death', from: moment, to: moment, pids: [pid] })),
    ...histories(entries)
      .filter(({ step }) => step === 'block')
      .flatMap(({ executions }) => executions)
      .map(({ begin, end }) => ({
        kind: 'frozen loop',
        from: begin.moment,
        to: end?.moment ?? begin.moment + FROZEN_MS,
        pids: [],
        frozen: begin.pid,
      })),
  ];
}

/** @param {import('./cluster.mjs').Loss[]} losses @returns {Window[]} */
export const lossWindows = (losses) =>
  losses.map((loss) => ({ kind: 'loss', pids: [], database: true, loses: true, ...loss }));

/** @param {Entry[]} entries @returns {History[]} */
export function histories(entries) {
  /** @type {Map<string, History>} */
  const all = new Map();
  for (const entry of entries) {
    const { stepId, step, runId } = entry;
    const history = all.get(stepId) ?? { stepId, step, runId, executions: [] };
    all.set(stepId, history);
    if (entry.phase === 'begin') {
      history.executions.push({ begin: entry, end: undefined });
      continue;
    }
    const ended = history.executions.find(
      ({ begin, end }) => !end && begin.pid === entry.pid && begin.attempt === entry.attempt,
    );
    if (ended) ended.end = entry;
  }
  for (const { executions } of all.values()) {
    executions.sort((a, b) => a.begin.moment - b.begin.moment);
  }
  return [...all.values()];
}

/**
 * Why each execution above one took place: the step asked for it, a fault that hit it in flight, or
 * nothing that could excuse it.
 *
 * @param {Entry[]} entries
 * @param {Window[]} windows
 */
export function judge(entries, windows) {
  /** @type {{ history: History, reason: string }[]} */
  const excused = [];
  /** @type {History[]} */
  const unexcused = [];
  for (const history of histories(entries)) {
    for (const [n, execution] of history.executions.entries()) {
      const next = history.executions[n + 1];
      if (!next || execution.end?.phase === 'throw') continue;
      const reason = excuse(execution, next, windows);
      if (reason) excused.push({ history, reason });
      else unexcused.push(history);
    }
  }
  return { excused, unexcused };
}

/** @param {Execution} execution @param {Execution} next @param {Window[]} windows */
function excuse(execution, next, windows) {
  const { begin, end } = execution;
  const settled = end ? settledBy(end.moment, windows, begin.pid) : Number.POSITIVE_INFINITY;
  const until = Math.min(settled, next.begin.moment);
  return windows.find(
    (window) =>
      (window.loses && mayBeForgotten(execution, settled, window)) ||
      (window.pids.includes(begin.pid) &&
        window.from <= until &&
        window.to >= begin.moment &&
        (!window.drains || isCutShort(window, windows)) &&
        (!window.guarded || isBrokenOff(execution, window, windows))),
  )?.kind;
}

/**
 * Whether PostgreSQL may have forgotten the begin or the end of an execution. One that began before and
 * ended after is known, and nobody else may begin it.
 *
 * @param {Execution} execution
 * @param {number} settled
 * @param {{ from: number, to: number }} window
 */
export function mayBeForgotten({ begin, end }, settled, { from, to }) {
  return (
    (begin.moment >= from && begin.moment <= to) ||
    (end !== undefined && end.moment <= to && settled >= from)
  );
}

/**
 * Whether the delivery of a step may have been broken off before or while its process was in trouble. Then
 * only the lease of that process itself keeps others from the step.
 *
 * @param {Execution} execution
 * @param {Window} window
 * @param {Window[]} windows
 */
const isBrokenOff = ({ begin }, window, windows) =>
  windows.some(({ http, from, to }) => http && from <= window.to && to >= begin.moment);

/** Whether a process that was told to end may have been unable to report its steps. @param {Window} window @param {Window[]} windows */
function isCutShort({ from: told, pids }, windows) {
  return windows.some(
    ({ database, frozen, from, to }) =>
      (database || (frozen !== undefined && pids.includes(frozen))) &&
      from <= told + DRAIN_MS &&
      to >= told,
  );
}

/**
 * Whether what a step had under way to the database when it ended may have met a fault. The SDK stores
 * the outcome of a step without waiting for the chunks that it wrote.
 *
 * @param {History} history
 * @param {Window[]} windows
 */
export function mayHaveLost({ executions }, windows) {
  return executions.some(({ begin, end }) => {
    const until = settledBy((end ?? begin).moment, windows, begin.pid);
    return windows.some(
      ({ pids, database, from, to }) =>
        (database || pids.includes(begin.pid)) && from <= until && to >= begin.moment,
    );
  });
}

/**
 * Until when an outcome may have been under way: longer while the database had trouble, or the process
 * could not act.
 *
 * @param {number} ended
 * @param {Window[]} windows
 * @param {number} pid
 */
export function settledBy(ended, windows, pid) {
  let until = ended + SETTLING_MS;
  for (const { from, to } of windows
    .filter(({ database, frozen }) => database || frozen === pid)
    .sort((a, b) => a.from - b.from)) {
    if (from <= until) until = Math.max(until, to + SETTLING_MS);
  }
  return until;
}

/** @param {History} history @param {Window[]} windows */
export function describe({ step, stepId, runId, executions }, windows) {
  const first = executions[0].begin.moment;
  const at = (/** @type {number | undefined} */ moment) =>
    moment === undefined ? '-' : `${moment - first}`;
  const last = executions[executions.length - 1].begin.moment;
  return [
    `${step} ${stepId} of ${runId}`,
    ...executions.map(
      ({ begin, end }) =>
        `  attempt ${begin.attempt} in ${begin.pid}: ${at(begin.moment)} to ${at(end?.moment)} ms ${end?.phase ?? 'never ended'}`,
    ),
    ...windows
      .filter(({ from, to }) => to >= first - 1000 && from <= last)
      .map(
        ({ kind, from, to, pids }) => `  ${kind} from ${at(from)} to ${at(to)} ms, pids ${pids}`,
      ),
  ].join('\n');
}
