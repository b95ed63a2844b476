import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fixture } from './fixture.mjs';
import { seed, unreliableQStash } from './qstash.mjs';

test(`kill -9 of one instance after the other in the middle of 20 runs: QStash repeats elsewhere (TEST_SEED=${seed})`, async (t) => {
  const { arrange, instances, startInstance } = await unreliableQStash(t, 2);
  const { app: startApp, check, ended, ledger, until } = await fixture(t, { foreignQueue: true });
  await arrange(startApp);
  const runIds = await Promise.all(
    Array.from({ length: 20 }, (_, n) => instances[n % 2].call('start', 'sequential', [10, 20])),
  );
  for (const n of [0, 1]) {
    const before = (await ledger()).length;
    await until(runIds, async () => (await ledger()).length >= before + 60);
    await instances[n].kill('SIGKILL');
    instances[n] = await startInstance(startApp);
  }
  await ended(runIds);
  for (const runId of runIds) assert.equal(await instances[0].call('result', runId), 55, runId);
  for (const instance of instances) assert.ok(instance.running(), instance.logs());
  await check();
});
