import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describeRun } from '../__test__/support/invariants.mjs';
import * as checks from './checks.mjs';
import { injections } from './injections.mjs';
import { describe, judge, lossWindows, ownWindows } from './ledger.mjs';
import { inject, plan } from './plan.mjs';
import { player } from './player.mjs';
import { generator, moment } from './random.mjs';
import { setStage } from './stage.mjs';
import { kinds, provoked } from './workload.mjs';

/** @typedef {import('./ledger.mjs').Window} Window */
/** @typedef {import('./workload.mjs').Run} Run */
/** @typedef {Awaited<ReturnType<typeof run>>} Report */

/** Runs that live at the same time, at most. */
const LIVE = 30;
/** What is not over by then is stuck. */
const FINISH_MS = 240_000;
/** A run that ends so long after the last fault is described in the report. */
const LATE_MS = 60_000;
/** To read what all runs have left behind. */
const ANSWERS_MS = 120_000;
/** A close takes 10 s at most for what runs, and then ends. */
const EXIT_MS = 60_000;

/**
 * One run of the harness.
 *
 * @param {object} options
 * @param {number} options.seed
 * @param {number} options.ms
 * @param {string[]} [options.only] kinds of faults
 * @param {string[]} [options.workload] kinds of runs
 * @param {boolean} [options.keep] the files, also when all is well
 * @param {(line: string) => void} [options.log]
 */
export async function run({
  seed,
  ms,
  only = Object.keys(injections),
  workload = Object.keys(kinds),
  keep = false,
  log = () => {},
}) {
  const cleanups = /** @type {(() => Promise<void>)[]} */ ([]);
  const t = { after: (/** @type {() => Promise<void>} */ cleanup) => void cleanups.push(cleanup) };
  const directory = await mkdtemp(path.join(tmpdir(), 'faults-'));
  const begin = moment();
  const tell = (/** @type {string} */ line) =>
    log(`${((moment() - begin) / 1000).toFixed(1).padStart(6)} s  ${line}`);
  const ledger = path.join(directory, 'ledger.jsonl');
  try {
    const stage = await setStage(t, { ledger, random: generator(seed + 1), log: tell });
    const report = await perform(stage, { seed, ms, only, workload, directory, ledger, tell });
    if (!keep && report.violations.length === 0) t.after(() => rm(directory, { recursive: true }));
    return report;
  } finally {
    for (const cleanup of cleanups) await cleanup();
  }
}

/**
 * @param {import('./stage.mjs').Stage} stage
 * @param {{ seed: number, ms: number, only: string[], workload: string[], directory: string, ledger: string, tell: (line: string) => void }} options
 */
async function perform(stage, { seed, ms, only, workload, directory, ledger, tell }) {
  const { cast, database } = stage;
  const violations = /** @type {string[]} */ ([]);
  const before = await checks.usage(cast);
  const faults = plan(seed, ms, only);
  const end = Date.now() + ms;
  const stuck = new AbortController();

  const runs = /** @type {Run[]} */ ([]);
  const ended = watchEnds(stage, runs);
  const watching = setInterval(async () => {
    // PostgreSQL may be away.
    void ended.look().catch(() => {});
    for (const { role, app } of cast.lost()) {
      void cast.replace(role, 'SIGKILL');
      // Its run has killed it.
      if ((await readDeaths(ledger)).some(({ pid }) => pid === app?.pid)) continue;
      violations.push(`${role} ended by itself: ${app?.exit()}\n${app?.logs().slice(-3000)}`);
    }
  }, 500);

  const windows = /** @type {Window[]} */ ([]);
  const theatre = openTheatre(stage, runs, stuck.signal);
  const injecting = inject(
    {
      ...stage,
      provoke: (scene, drawn) => theatre.begin((player) => provoked[scene](player, drawn)),
    },
    faults,
    { ms, tell, windows },
  );
  const playing = play(theatre, ended, { random: generator(seed + 2), workload, end });

  await injecting;
  const lastFault = Date.now();
  tell('no more faults');
  const deadline = setTimeout(() => stuck.abort(), end - Date.now() + FINISH_MS);
  await Promise.race([playing, once(stuck.signal, 'abort')]);
  if (stuck.signal.aborted) violations.push('the client still waits for answers');
  const { left, lost } = await finish(stage, runs, ended, end + FINISH_MS);
  clearTimeout(deadline);
  const lastEnd = Math.max(lastFault, ...ended.at.values());
  const last = [...ended.at].find(([, at]) => at === lastEnd)?.[0];
  // Its log says what it waited for.
  const laggard =
    last && lastEnd - lastFault > LATE_MS ? await describeRun(database, last) : undefined;
  for (const runId of left.slice(0, 5)) {
    violations.push(`did not end: ${await describeRun(database, runId)}`);
  }
  if (left.length > 5) violations.push(`${left.length - 5} more did not end`);

  const affected = runs.filter((run) => checks.isAffected(stage.losses, run));
  violations.push(...checks.disappeared(runs, lost, stage.losses));

  violations.push(...(await checks.invariants(database)));
  const entries = await readLedger(ledger);
  windows.push(...ownWindows(entries, await readDeaths(ledger)), ...lossWindows(stage.losses));
  const over = runs.filter(({ runId }) => !left.includes(runId) && !lost.includes(runId));
  const whole = over.filter((run) => !affected.includes(run));
  const answers = async () => [
    ...(await checks.results(cast.client, over, stage.losses)),
    ...(await checks.streams(cast.client, whole, entries, windows)),
  ];
  const silence = sleep(ANSWERS_MS, ['results and streams cannot be read'], { ref: false });
  violations.push(...(await Promise.race([answers(), silence])));
  violations.push(...(await checks.starts(database, entries, windows)));
  const { excused, unexcused } = judge(entries, windows);
  for (const history of unexcused) {
    const log = (await describeRun(database, history.runId))
      .split('\n')
      .filter((line) => line.includes(history.stepId) || /run_|message/.test(line))
      .map((line) => line.slice(0, 200));
    violations.push(`ran again without a reason: ${describe(history, windows)}\n${log.join('\n')}`);
  }
  const after = await checks.settledUsage(cast, before);
  violations.push(...checks.leaks(before, after));
  violations.push(...(await checks.connections(stage, cast.members().length)));

  clearInterval(watching);
  const exits = await Promise.all(cast.members().map(({ role }) => leave(cast, role)));
  for (const { role, took, exit } of exits) {
    if (exit !== 'code 0') violations.push(`${role} ended after ${took} ms with ${exit}`);
  }
  violations.push(...(await checks.connections(stage, 0)));

  const logs = cast.logs();
  await writeFile(path.join(directory, 'processes.log'), logs.join('\n\n'));
  await writeFile(path.join(directory, 'windows.json'), JSON.stringify(windows, undefined, 1));
  return {
    seed,
    directory,
    violations,
    logs,
    runs: countBy(runs, ({ kind }) => kind),
    steps: entries.filter(({ phase }) => phase === 'begin').length,
    faults: countBy(windows, ({ kind }) => kind),
    excused: countBy(excused, ({ reason }) => reason),
    slowest: slowestOf(over, ended),
    recovery: lastEnd - lastFault,
    laggard,
    slowestExit: Math.max(...exits.map(({ took }) => took)),
    usage: after,
  };
}

/** @typedef {ReturnType<typeof openTheatre>} Theatre */

/**
 * Where scenes are played. A failover that loses something ends the scenes that it interrupts, for
 * nobody can say any more how they must go on.
 *
 * @param {import('./stage.mjs').Stage} stage
 * @param {Run[]} runs
 * @param {AbortSignal} signal
 */
function openTheatre({ cast, losses }, runs, signal) {
  /** @type {Set<Promise<void>>} */
  const playing = new Set();
  let tokens = 0;
  /** @param {(player: import('./player.mjs').Player) => Promise<void>} play */
  const perform = async (play) => {
    const scene = { from: moment(), to: Number.POSITIVE_INFINITY };
    const interruption = new AbortController();
    const watching = setInterval(() => {
      if (losses.some(({ to }) => to >= scene.from)) interruption.abort();
    }, 50);
    const client = player({
      client: cast.client,
      runs,
      scene,
      signal: AbortSignal.any([signal, interruption.signal]),
      tokens: () => `token-${++tokens}`,
    });
    try {
      await play(client);
    } catch (error) {
      if (!signal.aborted && !interruption.signal.aborted) throw error;
    } finally {
      clearInterval(watching);
      scene.to = moment();
    }
  };
  return {
    playing: () => playing.size,
    /** @param {Parameters<typeof perform>[0]} play */
    begin(play) {
      const scene = perform(play).finally(() => playing.delete(scene));
      playing.add(scene);
    },
    allOver: async () => {
      while (playing.size > 0) await Promise.all(playing);
    },
  };
}

/**
 * @param {Theatre} theatre
 * @param {Ends} ended
 * @param {{ random: import('./random.mjs').Random, workload: string[], end: number }} options
 */
async function play(theatre, ended, { random, workload, end }) {
  const draw = random.deck(workload);
  while (Date.now() < end) {
    await sleep(random.between(50, 300));
    if (theatre.playing() + ended.live() >= LIVE) continue;
    const kind = kinds[draw()];
    theatre.begin((player) => kind(player, random));
  }
  await theatre.allOver();
}

/** @typedef {ReturnType<typeof watchEnds>} Ends */

/** When runs have ended. @param {import('./stage.mjs').Stage} stage @param {Run[]} runs */
function watchEnds({ database: { pool, schema } }, runs) {
  /** @type {Map<string, number>} */
  const at = new Map();
  /** @type {string[]} */
  let lost = [];
  return {
    at,
    live: () => runs.filter(({ runId }) => !at.has(runId) && !lost.includes(runId)).length,
    /**
     * Which runs have not ended, those included of which nobody knows that they were accepted; and which
     * ones PostgreSQL does not know, although a client was told that they exist.
     */
    async look() {
      const accepted = runs.map(({ runId }) => runId);
      const { rows } = await pool.query(
        `SELECT run_id, completed_at IS NOT NULL AS ended FROM ${schema}.workflow_runs`,
      );
      for (const { run_id, ended } of rows) {
        if (!ended) at.delete(run_id);
        else if (!at.has(run_id)) at.set(run_id, Date.now());
      }
      const stored = new Set(rows.map(({ run_id }) => run_id));
      lost = accepted.filter((runId) => !stored.has(runId));
      return { left: [...stored].filter((runId) => !at.has(runId)), lost };
    },
  };
}

/**
 * Waits for all runs. Those that nobody knows of, for their start seemed to fail, may wait for a hook
 * that nobody resumes; so may those whose scene a failover has interrupted.
 *
 * @param {import('./stage.mjs').Stage} stage
 * @param {Run[]} runs
 * @param {Ends} ended
 * @param {number} deadline
 */
async function finish({ cast, losses }, runs, ended, deadline) {
  const known = new Set(
    runs.filter((run) => !checks.isAffected(losses, run)).map(({ runId }) => runId),
  );
  for (;;) {
    const { left, lost } = await ended.look();
    if (left.length === 0 || Date.now() > deadline) return { left, lost };
    const unknown = left.filter((runId) => !known.has(runId));
    await Promise.allSettled(unknown.map((runId) => cast.client.call('cancel', runId)));
    await sleep(250);
  }
}

/** @param {import('./cast.mjs').Cast} cast @param {import('./cast.mjs').Role} role */
async function leave(cast, role) {
  const { app } = cast.member(role);
  const impatient = setTimeout(() => cast.signal(role, 'SIGKILL'), EXIT_MS + 1000);
  const took = await cast.end(role, 'SIGTERM');
  clearTimeout(impatient);
  return { role, took, exit: app?.exit() };
}

/** @param {Run[]} runs @param {Ends} ended */
function slowestOf(runs, ended) {
  const took = runs.map(({ kind, runId, since }) => ({
    kind,
    runId,
    ms: (ended.at.get(runId) ?? Number.POSITIVE_INFINITY) - since,
  }));
  return took.sort((a, b) => b.ms - a.ms)[0];
}

/** @template T @param {T[]} values @param {(value: T) => string} key @returns {Record<string, number>} */
function countBy(values, key) {
  /** @type {Record<string, number>} */
  const counts = {};
  for (const value of values) counts[key(value)] = (counts[key(value)] ?? 0) + 1;
  return counts;
}

/** @param {string} file @returns {Promise<import('./ledger.mjs').Entry[]>} */
const readLedger = (file) => readLines(file);

/** Where processes leave a line before their run kills them. @param {string} ledger @returns {Promise<import('./ledger.mjs').Death[]>} */
const readDeaths = (ledger) => readLines(`${ledger}.deaths`);

/** @param {string} file */
async function readLines(file) {
  const text = await readFile(file, 'utf8').catch(() => '');
  return text
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line));
}
