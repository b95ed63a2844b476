// Runs at a part of the maximum rate for a long time: does anything grow that should not?
//
//   npm run soak -- [--minutes 20] [--rate 0.5] [--pattern http] [--every 30]
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import os, { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { fixture } from '../__test__/sdk/fixture.mjs';
import { root } from '../__test__/support/app.mjs';
import { startPostgres } from '../scripts/support/postgres.mjs';
import { scoped } from './recovery/place.mjs';
import { createMeter } from './soak/meter.mjs';
import { judgeAll, sampleLine, table } from './soak/verdict.mjs';

/** @typedef {import('../__test__/support/app.mjs').App} App */

const STEPS = 10;
/** Runs at the same time while the maximum is looked for. */
const CROWD = 40;
const WARM_UP_SECONDS = 10;
const MAXIMUM_SECONDS = 30;

const { values: options } = parseArgs({
  options: {
    minutes: { type: 'string', default: '20' },
    rate: { type: 'string', default: '0.5' },
    pattern: { type: 'string', default: 'http' },
    every: { type: 'string', default: '30' },
  },
});
const minutes = Number(options.minutes);
const every = Number(options.every) * 1000;

delete process.env.WORKFLOW_POSTGRES_URL;
const heapDirectory = await mkdtemp(path.join(tmpdir(), 'soak-'));
const heap = path.join(heapDirectory, 'heap');
const server = await startPostgres({ settings: { fsync: 'on' } });

/** @param {App} app @returns {Promise<string>} */
const startRun = (app) => app.call('start', 'sequential', [STEPS]);

/**
 * As many runs per second as there can be.
 *
 * @param {App} app
 * @param {import('./recovery/place.mjs').Place} place
 */
async function maximum(app, { ended }) {
  const begin = performance.now();
  const end = begin + (WARM_UP_SECONDS + MAXIMUM_SECONDS) * 1000;
  let count = 0;
  const lane = async () => {
    while (performance.now() < end) {
      await ended([await startRun(app)]);
      const now = performance.now();
      if (now > begin + WARM_UP_SECONDS * 1000 && now < end) count++;
    }
  };
  await Promise.all(Array.from({ length: CROWD }, lane));
  return count / MAXIMUM_SECONDS;
}

/**
 * Starts runs at a steady pace, whatever becomes of them.
 *
 * @param {App} app
 * @param {number} perSecond
 * @param {AbortSignal} signal
 */
async function load(app, perSecond, signal) {
  /** @type {Promise<string>[]} */
  const starting = [];
  const begin = performance.now();
  for (let n = 0; !signal.aborted; n++) {
    const due = begin + (n * 1000) / perSecond;
    await sleep(Math.max(0, due - performance.now()));
    const start = startRun(app);
    // Awaited below, all of them.
    start.catch(() => {});
    starting.push(start);
  }
  return Promise.all(starting);
}

const { samples, rate, started } = await scoped(async (scope) => {
  const place = await fixture(scope, { url: server.url });
  const app = await place.app({
    env: {
      TEST_PATTERN: options.pattern,
      TEST_LEDGER: undefined,
      SOAK_HEAP: heap,
      NODE_OPTIONS: `--import=${new URL('./soak/heap.mjs', import.meta.url)}`,
    },
  });
  const most = await maximum(app, place);
  assert.ok(most > 0, `no run ended within ${MAXIMUM_SECONDS} s\n${app.logs()}`);
  const rate = most * Number(options.rate);
  console.error(
    `at most ${(most * STEPS).toFixed(0)} steps/s; now ${(rate * STEPS).toFixed(0)} for ${minutes} minutes`,
  );

  const postmaster = /** @type {number} */ (await server.pid());
  const sample = createMeter(place, app, { postmaster, heap });
  const stop = new AbortController();
  const loading = load(app, rate, stop.signal);
  /** @type {import('./soak/meter.mjs').Sample[]} */
  const samples = [];
  const begin = performance.now();
  for (let n = 1; n * every <= minutes * 60_000; n++) {
    await sleep(Math.max(0, begin + n * every - performance.now()));
    assert.ok(app.running(), app.logs());
    const taken = await sample((performance.now() - begin) / 60_000);
    samples.push(taken);
    console.error(sampleLine(taken));
  }
  stop.abort();
  const runIds = await loading;
  const statuses = await place.ended(runIds);
  assert.deepEqual(new Set(statuses), new Set(['completed']), app.logs());
  const { deliveries } = (await app.call('health')).queue;
  assert.equal(deliveries.failed + deliveries.leasesLost + deliveries.runsRescued, 0, app.logs());
  await place.check();
  await app.stop();
  return { samples, rate, started: runIds.length };
}).finally(async () => {
  await server.stop();
  await rm(heapDirectory, { recursive: true });
});

const verdicts = judgeAll(samples);
const machine = `${os.availableParallelism()} cores, Node ${process.version}, PostgreSQL 18 with fsync`;
const note =
  `${minutes} minutes of ${(rate * STEPS).toFixed(0)} steps/s (${Number(options.rate) * 100} % of the maximum), ` +
  `${started} runs of ${STEPS} steps, all completed; ${machine}. First, last and growth: of the last two thirds.`;
const markdown = table(verdicts, note);
const directory = path.join(root, 'faults/.artifacts');
await mkdir(directory, { recursive: true });
const stamp = new Date().toISOString().replaceAll(':', '-').slice(0, 19);
const file = path.join(directory, `soak-${stamp}`);
await writeFile(`${file}.json`, JSON.stringify({ note, verdicts, samples }, null, 2));
await writeFile(`${file}.md`, markdown);
console.log(`\n${markdown}\n${path.relative(root, file)}.{json,md}`);
process.exitCode = verdicts.some(({ flat }) => flat === false) ? 1 : 0;
