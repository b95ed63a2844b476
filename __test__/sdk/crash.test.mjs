import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { freePort } from '../../scripts/support/postgres.mjs';
import { fixture, repeated } from './fixture.mjs';

// The tests bound the steps in flight by it.
const concurrency = 10;
const env = { WORKFLOW_POSTGRES_WORKER_CONCURRENCY: String(concurrency) };

/** @param {import('../support/app.mjs').App} app @param {number} count */
const startTenSteps = (app, count) =>
  Promise.all(Array.from({ length: count }, () => app.call('start', 'sequential', [10, 20])));

/** @param {import('../support/app.mjs').App} app @param {string[]} runIds */
async function assertResults(app, runIds) {
  for (const runId of runIds) assert.equal(await app.call('result', runId), 55, runId);
}

/**
 * At most the steps in flight have run again, and only those of the process that was killed.
 *
 * @param {import('./fixture.mjs').Entry[]} entries
 * @param {number} killed pid
 */
function assertOnlyStepsInFlightRepeat(entries, killed) {
  const again = repeated(entries);
  const text = JSON.stringify(again, undefined, 1);
  assert.ok(again.length <= concurrency, `${again.length} steps ran again\n${text}`);
  for (const executions of again) {
    assert.equal(executions.length, 2, text);
    assert.equal(executions[0].pid, killed, text);
    assert.notEqual(executions[1].pid, killed, text);
  }
}

test('kill -9 of the app in the middle of 50 runs: a restart completes them', async (t) => {
  const { app, check, ended, ledger, until } = await fixture(t);
  const first = await app({ env });
  const runIds = await startTenSteps(first, 50);
  await until(runIds, async () => (await ledger()).length >= 300);
  await first.kill('SIGKILL');
  const done = (await ledger()).filter(({ phase }) => phase === 'end').length;
  assert.ok(done < 500, 'nothing was left to do');

  const second = await app({ env });
  await ended(runIds);
  await assertResults(second, runIds);
  assertOnlyStepsInFlightRepeat(await ledger(), first.pid);
  await check();
});

test('kill -9 of one of two workers: the other one completes all runs', async (t) => {
  const { app, check, ended, ledger, until } = await fixture(t);
  const [victim, survivor] = await Promise.all([app({ env }), app({ env })]);
  const runIds = await startTenSteps(survivor, 50);
  await until(runIds, async () => {
    const entries = await ledger();
    return entries.length >= 300 && entries.some(({ pid }) => pid === victim.pid);
  });
  await victim.kill('SIGKILL');

  await ended(runIds);
  assert.ok(survivor.running(), survivor.logs());
  await assertResults(survivor, runIds);
  assertOnlyStepsInFlightRepeat(await ledger(), victim.pid);
  await check();
});

test('kill -9 of the app that separate workers deliver to: they wait for it and go on', async (t) => {
  const { app, check, ended, ledger, until } = await fixture(t);
  const port = await freePort();
  const first = await app({ port, start: false });
  const worker = await app({ env: { ...env, WORKFLOW_POSTGRES_APP_URL: first.url } });
  const runIds = await startTenSteps(first, 20);
  await until(runIds, async () => (await ledger()).length >= 100);
  await first.kill('SIGKILL');
  const second = await app({ port, start: false });

  await ended(runIds);
  assert.ok(worker.running(), worker.logs());
  await assertResults(second, runIds);
  assertOnlyStepsInFlightRepeat(await ledger(), first.pid);
  await check();
});

test('kill -9 again and again: every run that was accepted completes', async (t) => {
  const { app, check, ended } = await fixture(t);
  /** @type {string[]} */
  const accepted = [];
  for (let n = 0; n < 6; n++) {
    const victim = await app({ env });
    const starting = Promise.allSettled(
      Array.from({ length: 10 }, async () => {
        accepted.push(await victim.call('start', 'sequential', [10, 20]));
      }),
    );
    const delay = Math.round(Math.random() * 1500);
    t.diagnostic(`killed after ${delay} ms`);
    await sleep(delay);
    await victim.kill('SIGKILL');
    await starting;
  }
  const last = await app({ env });
  assert.ok(accepted.length > 0);
  await ended(accepted);
  await assertResults(last, accepted);
  await check();
});

test('a stop in the middle of runs repeats no step', async (t) => {
  const { app, check, ended, ledger, until } = await fixture(t);
  const first = await app({ env });
  const runIds = await startTenSteps(first, 20);
  await until(runIds, async () => (await ledger()).length >= 100);
  await first.stop();

  const second = await app({ env });
  await ended(runIds);
  await assertResults(second, runIds);
  assert.deepEqual(repeated(await ledger()), []);
  await check();
});
