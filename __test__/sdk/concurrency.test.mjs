import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { test } from 'node:test';
import { root, workflowIds } from '../support/app.mjs';
import { fixture, repeated } from './fixture.mjs';

/** @param {number} count @param {(n: number) => Promise<string>} start */
const startMany = (count, start) => Promise.all(Array.from({ length: count }, (_, n) => start(n)));

test('two processes share a fan-out, and each step runs once', async (t) => {
  const { app, check, ended, ledger } = await fixture(t);
  const apps = await Promise.all([app(), app()]);
  // Both are ready, but one alone may happen to take all of a run.
  let workers = new Set();
  for (let n = 0; n < 10 && workers.size < 2; n++) {
    const runId = await apps[n % 2].call('start', 'fanOut', [50, 100]);
    assert.deepEqual(await ended([runId]), ['completed']);
    assert.equal(await apps[0].call('result', runId), 40_425);
    const entries = await ledger(runId);
    assert.deepEqual(repeated(entries), []);
    assert.equal(entries.filter(({ phase }) => phase === 'end').length, 50);
    workers = new Set(entries.map(({ pid }) => pid));
  }
  assert.deepEqual([...workers].sort(), apps.map(({ pid }) => pid).sort());
  await check();
});

test('two processes run 20 runs at once, and each step runs once', async (t) => {
  const { app, check, ended, ledger } = await fixture(t);
  const apps = await Promise.all([app(), app()]);
  const runIds = await startMany(20, (n) => apps[n % 2].call('start', 'sequential', [10, 5]));
  await ended(runIds);
  for (const runId of runIds) assert.equal(await apps[0].call('result', runId), 55);
  const entries = await ledger();
  assert.deepEqual(repeated(entries), []);
  assert.equal(entries.length, 400);
  await check();
});

test('a step that takes longer than a lease lasts runs once', async (t) => {
  const { app, check, ended, ledger } = await fixture(t);
  const apps = await Promise.all([app(), app()]);
  const runId = await apps[0].call('start', 'fanOut', [4, 20_000]);
  await ended([runId]);
  assert.equal(await apps[0].call('result', runId), 14);
  assert.deepEqual(repeated(await ledger()), []);
  await check();
});

test('a hook gets each payload once, whichever process takes it', async (t) => {
  const { app, check, ended, until } = await fixture(t);
  const apps = await Promise.all([app(), app()]);
  const token = randomUUID();
  const runId = await apps[0].call('start', 'collect', [token]);
  await until([runId], async () => (await apps[0].call('hooks', runId)).length === 1);
  const values = Array.from({ length: 20 }, (_, n) => n);
  await Promise.all(values.map((value) => apps[value % 2].call('resumeHook', token, { value })));
  await apps[0].call('resumeHook', token, { value: 20, last: true });
  await ended([runId]);
  const doubled = await apps[0].call('result', runId);
  assert.deepEqual(
    doubled.sort((/** @type {number} */ a, /** @type {number} */ b) => a - b),
    [...values, 20].map((value) => value * 2),
  );
  await check();
});

test('workers without workflows deliver to the app of WORKFLOW_POSTGRES_APP_URL', async (t) => {
  const { app, check, ended, ledger } = await fixture(t);
  const web = await app({ start: false });
  const workers = await Promise.all(
    [1, 2].map(() => app({ env: { WORKFLOW_POSTGRES_APP_URL: web.url } })),
  );
  const runIds = await startMany(5, () => web.call('start', 'sequential', [5]));
  assert.deepEqual(
    await ended(runIds),
    runIds.map(() => 'completed'),
  );
  assert.deepEqual([...new Set((await ledger()).map(({ pid }) => pid))], [web.pid]);
  assert.ok(workers.every((worker) => worker.running()));
  await check();
});

test('a process that only starts runs executes nothing, and others do', async (t) => {
  const { app, check, database, ended, ledger, until } = await fixture(t);
  // The SDK looks for the World from the working directory.
  process.chdir(root);
  Object.assign(process.env, database.env);
  const { getRun, resumeHook, start } = await import('workflow/api');
  const { getWorld } = await import('workflow/runtime');
  t.after(async () => getWorld().close?.());
  const { approval, counting } = await workflowIds();

  const token = randomUUID();
  const approving = await start({ workflowId: approval }, [token]);
  const streaming = await start({ workflowId: counting }, [100]);
  assert.deepEqual(await Promise.all([approving.status, streaming.status]), ['pending', 'pending']);
  assert.deepEqual(await ledger(), []);

  await app();
  const runIds = [approving.runId, streaming.runId];
  await until(runIds, async () => (await getWorld().hooks.list({ runId: runIds[0] })).data.length);
  await resumeHook(token, 'from afar');
  const chunks = [];
  for await (const chunk of getRun(streaming.runId).getReadable()) chunks.push(chunk);
  assert.deepEqual(
    chunks,
    Array.from({ length: 100 }, (_, n) => n),
  );
  assert.deepEqual(await ended(runIds), ['completed', 'completed']);
  assert.equal(await approving.returnValue, 'from afar');
  await check();
});
