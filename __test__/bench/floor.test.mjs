import assert from 'node:assert/strict';
import { test } from 'node:test';
import { environment, worlds } from '../../bench/worlds.mjs';
import { startApp } from '../support/app.mjs';

const nowhere = 'postgres://nobody@127.0.0.1:1/nothing';

test('the floor of the benchmark executes what the benchmark asks of it', async (t) => {
  const app = await startApp({ env: environment(worlds.floor, nowhere) });
  t.after(() => app.kill());

  /** @param {string} name @param {unknown[]} args @param {number} count @returns {Promise<unknown[]>} */
  const outputs = async (name, args, count) => {
    const { runIds } = await app.call('execute', name, args, count, 0);
    assert.equal(new Set(runIds).size, count);
    return app.call('outputs', runIds);
  };

  await t.test('steps one after another, and side by side', async () => {
    assert.deepEqual(await outputs('sequential', [10], 20), Array(20).fill(55));
    assert.deepEqual(await outputs('fanOut', [50], 2), Array(2).fill(40_425));
  });

  await t.test('each step once', async () => {
    const { runIds } = await app.call('execute', 'fanOut', [100], 1, 0);
    /** @type {{ eventType: string }[]} */
    const events = await app.call('events', runIds[0]);
    const starts = events.filter(({ eventType }) => eventType === 'step_started');
    assert.equal(starts.length, 100);
  });

  await t.test('retries', async () => {
    assert.deepEqual(await outputs('retries', [1, 'not yet', 1], 1), [2]);
  });

  await t.test('hooks', async () => {
    const runId = await app.call('start', 'approval', ['token']);
    while (!(await app.call('hasHook', 'token'))) await new Promise((r) => setTimeout(r, 10));
    const resumed = await app.call('resume', 'token', { granted: true });
    assert.equal(resumed.runId, runId);
    assert.deepEqual(await app.call('outputs', [runId]), [{ granted: true }]);
    assert.equal(await app.call('hasHook', 'token'), false);
  });

  await t.test('sleeps', async () => {
    const { runIds } = await app.call('execute', 'rests', [2, 1000], 1, 0);
    const lateness = await app.call('lateness', runIds[0]);
    assert.equal(lateness.length, 2);
    for (const ms of lateness) assert.ok(ms >= 0 && ms < 1000, String(ms));
  });

  await t.test('streams', async () => {
    const { runId, chunks } = await app.call('follow', 'stamped', [100, 0]);
    assert.equal(chunks.length, 100);
    assert.deepEqual(await app.call('outputs', [runId]), [100]);
  });
});
