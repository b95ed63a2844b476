import { readdir, readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { assertInvariants } from '../__test__/support/invariants.mjs';
import { histories, mayBeForgotten, mayHaveLost } from './ledger.mjs';

/** @typedef {import('./stage.mjs').Stage} Stage */
/** @typedef {import('./workload.mjs').Run} Run */
/** @typedef {import('./ledger.mjs').Entry} Entry */

/** What a worker has at most: its pool and the connection that listens. */
const MOST_CONNECTIONS = 12;
/** More than that is not what a process needs, but what it forgot to close. */
const MOST_NEW_HANDLES = 40;

/** @param {Stage['database']} database */
export async function invariants(database) {
  try {
    await assertInvariants(database, { within: 90_000 });
    return [];
  } catch (error) {
    return [`invariants: ${/** @type {Error} */ (error).message}`];
  }
}

/**
 * Whether a failover may have lost what a client was told about a run, or what the client told it.
 *
 * @param {import('./cluster.mjs').Loss[]} losses
 * @param {Run} run
 */
export const isAffected = (losses, { scene: { from, to } }) =>
  losses.some((loss) => loss.from <= to && loss.to >= from);

/**
 * Runs that PostgreSQL does not know although their client was told that they exist.
 *
 * @param {Run[]} runs
 * @param {string[]} unknown ids that PostgreSQL does not know
 * @param {import('./cluster.mjs').Loss[]} losses
 */
export const disappeared = (runs, unknown, losses) =>
  runs
    .filter((run) => unknown.includes(run.runId) && !isAffected(losses, run))
    .map(({ kind, runId }) => `${kind} ${runId} is lost`);

/**
 * Each accepted run ended as it must. One that a loss affected may have missed a payload or been
 * cancelled, but must not have failed.
 *
 * @param {import('../__test__/support/app.mjs').App} client
 * @param {Run[]} runs
 * @param {import('./cluster.mjs').Loss[]} [losses]
 */
export async function results(client, runs, losses = []) {
  /** @type {string[]} */
  const found = [];
  for (const run of runs) {
    const { kind, runId, accepts } = run;
    const outcome = await client.call('result', runId).then(
      (value) => ({ value }),
      (error) => ({ error: error.name, message: error.message }),
    );
    const failed = 'error' in outcome && outcome.error !== 'WorkflowRunCancelledError';
    if (!accepts(outcome) && (failed || !isAffected(losses, run))) {
      found.push(`${kind} ${runId} ended with ${JSON.stringify(outcome)?.slice(0, 500)}`);
    }
  }
  return found;
}

/**
 * Of each step every chunk, once and in order, and a reader that reads along sees what others see. The
 * chunks of different steps may change places, for the SDK goes on before they are stored.
 *
 * @param {import('../__test__/support/app.mjs').App} client
 * @param {Run[]} runs
 * @param {Entry[]} entries
 * @param {import('./ledger.mjs').Window[]} windows
 */
export async function streams(client, runs, entries, windows) {
  /** @type {string[]} */
  const found = [];
  const writes = histories(entries).filter(({ step }) => step === 'write');
  for (const { kind, runId, stream } of runs) {
    if (!stream) continue;
    const { parts, live } = stream;
    /** @type {unknown[]} */
    const stored = await client.call('readStream', runId);
    const foreign = stored.filter((chunk) => !parts.flat().includes(/** @type {number} */ (chunk)));
    const wrong = writes
      .filter((history) => history.runId === runId)
      .sort((a, b) => a.executions[0].begin.moment - b.executions[0].begin.moment)
      .map((history, n) => ({ part: parts[n], history }))
      .filter(({ part, history }) => !isWhole(part, stored, history, windows));
    if (foreign.length > 0 || wrong.length > 0) {
      found.push(`the ${kind} of ${runId} has chunks ${stored}`);
    }
    if (!isDeepStrictEqual(live, stored)) {
      found.push(`the ${kind} of ${runId} has chunks ${stored}, but its reader saw ${live}`);
    }
  }
  return found;
}

/**
 * @param {unknown[]} part
 * @param {unknown[]} stored
 * @param {import('./ledger.mjs').History} history of the step that wrote it
 * @param {import('./ledger.mjs').Window[]} windows
 */
function isWhole(part, stored, history, windows) {
  const chunks = stored.filter((chunk) => part.includes(chunk));
  // Each execution has written its chunks in order, the first one first.
  const once = history.executions.length > 1 ? [...new Set(chunks)] : chunks;
  const expected = mayHaveLost(history, windows)
    ? part.filter((chunk) => once.includes(chunk))
    : part;
  return isDeepStrictEqual(once, expected);
}

/**
 * A step's code runs only after the log says so.
 *
 * @param {Stage['database']} database
 * @param {Entry[]} entries
 * @param {import('./ledger.mjs').Window[]} [windows]
 */
export async function starts({ pool, schema }, entries, windows = []) {
  const losses = windows.filter(({ loses }) => loses);
  /** @param {import('./ledger.mjs').Execution} execution */
  const isForgotten = (execution) =>
    losses.some((loss) => mayBeForgotten(execution, execution.begin.moment, loss));
  const { rows } = await pool.query(
    `SELECT correlation_id AS id, count(*)::integer AS starts FROM ${schema}.workflow_events
     WHERE type = 'step_started' GROUP BY correlation_id`,
  );
  const logged = new Map(rows.map(({ id, starts }) => [id, starts]));
  return histories(entries)
    .filter(
      ({ stepId, executions }) =>
        executions.filter((each) => !isForgotten(each)).length > (logged.get(stepId) ?? 0),
    )
    .map(
      ({ step, stepId, runId, executions }) =>
        `${step} ${stepId} of ${runId} ran ${executions.length} times, but the log has ${logged.get(stepId)} starts`,
    );
}

/** @typedef {{ role: string, pid: number, handles: number, connections: number, megabytes: number }} Usage */

/** What the living processes hold. @param {Stage['cast']} cast @returns {Promise<Usage[]>} */
export async function usage(cast) {
  return Promise.all(
    cast.members().map(async ({ role, app, line }) => {
      const pid = app?.pid ?? 0;
      const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
      return {
        role,
        pid,
        handles: (await readdir(`/proc/${pid}/fd`).catch(() => [])).length,
        connections: line.open(),
        megabytes: Math.round(Number(/VmRSS:\s+(\d+)/.exec(status)?.[1] ?? 0) / 1024),
      };
    }),
  );
}

/** @param {Usage[]} before @param {Usage[]} after */
export function leaks(before, after) {
  return after.flatMap(({ role, handles, connections }) => {
    const base = before.find((usage) => usage.role === role)?.handles ?? 0;
    return [
      ...(connections > MOST_CONNECTIONS ? [`${role} holds ${connections} connections`] : []),
      ...(handles > base + MOST_NEW_HANDLES
        ? [`${role} holds ${handles} file handles, ${base} at the begin`]
        : []),
    ];
  });
}

/**
 * Connections that are kept for a while go by themselves.
 *
 * @param {Stage['cast']} cast
 * @param {Usage[]} before
 */
export async function settledUsage(cast, before) {
  for (let n = 0; ; n++) {
    const now = await usage(cast);
    if (n === 30 || leaks(before, now).length === 0) return now;
    await sleep(1000);
  }
}

/** Nobody is connected who does not live. @param {Stage} stage @param {number} alive processes */
export async function connections({ database, role }, alive) {
  const { rows } = await database.pool.query(
    'SELECT pid, state, client_port, query FROM pg_stat_activity WHERE usename = $1',
    [role],
  );
  const listening = rows.filter(({ query }) => /^\s*LISTEN/i.test(query));
  return [
    ...(alive === 0 && rows.length > 0
      ? [`connections that outlived their processes: ${JSON.stringify(rows)}`]
      : []),
    ...(listening.length > alive ? [`listeners: ${JSON.stringify(listening)}`] : []),
  ];
}
