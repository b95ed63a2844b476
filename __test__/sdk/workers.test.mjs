import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fixture, repeated } from './fixture.mjs';

/** @typedef {import('../support/app.mjs').App} App */

const STEPS = 5;

/** @param {App} web @param {number} count @param {number} ms of each step */
const startRuns = (web, count, ms) =>
  Promise.all(Array.from({ length: count }, () => web.call('start', 'sequential', [STEPS, ms])));

/** @param {App} worker */
async function deliveriesOf(worker) {
  const { queue } = await worker.call('health');
  return queue.deliveries;
}

test('1, 2 and 4 worker processes share what a web process enqueues', async (t) => {
  const { app, check, ended, ledger } = await fixture(t);
  const web = await app({ start: false });
  /** @type {App[]} */
  const workers = [];
  for (const count of [1, 2, 4]) {
    while (workers.length < count) workers.push(await app({ env: { TEST_PATTERN: 'function' } }));
    const begin = performance.now();
    const runIds = await startRuns(web, 100, 10);
    const statuses = await ended(runIds);
    const seconds = (performance.now() - begin) / 1000;
    t.diagnostic(`${count} workers: ${((runIds.length * STEPS) / seconds).toFixed(0)} steps/s`);

    assert.deepEqual([...new Set(statuses)], ['completed']);
    const entries = (await ledger()).filter(({ runId }) => runIds.includes(runId));
    assert.deepEqual(repeated(entries), []);
    assert.equal(entries.length, 2 * STEPS * runIds.length);
    const pids = new Set(entries.map(({ pid }) => pid));
    assert.deepEqual([...pids].sort(), workers.map(({ pid }) => pid).sort());
    await check();
  }
});

const executedBy = { function: 'functions of its own', worker: 'HTTP in the web process' };

for (const [pattern, where] of Object.entries(executedBy)) {
  test(`SIGTERM of one of two workers under load, with steps executed by ${where}`, async (t) => {
    const { app, check, ended, ledger, until } = await fixture(t);
    const web = await app({ start: false });
    const env = { TEST_PATTERN: pattern, TEST_APP_URL: web.url };
    const [leaving, staying] = await Promise.all([app({ env }), app({ env })]);

    const runIds = await startRuns(web, 40, 100);
    await until(runIds, async () => (await deliveriesOf(leaving)).completed >= 20);
    const { runningSteps } = await deliveriesOf(leaving);
    const [more] = await Promise.all([startRuns(web, 20, 100), leaving.stop()]);
    t.diagnostic(`${runningSteps} steps were running`);
    assert.ok(
      (await ledger()).length < 2 * STEPS * (runIds.length + more.length),
      'nothing was left to do',
    );

    const statuses = await ended([...runIds, ...more]);
    assert.deepEqual([...new Set(statuses)], ['completed']);
    assert.deepEqual(repeated(await ledger()), []);
    const { deliveries, failed, unreachable, leasesLost, leasesSwept, runsRescued } =
      await deliveriesOf(staying);
    assert.ok(deliveries > 0);
    assert.deepEqual(
      { failed, unreachable, leasesLost, leasesSwept, runsRescued },
      { failed: 0, unreachable: 0, leasesLost: 0, leasesSwept: 0, runsRescued: 0 },
    );
    await check();
  });
}
