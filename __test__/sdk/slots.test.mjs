import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fixture, repeated } from './fixture.mjs';

test('parents whose steps await child runs end, though they are more than there are slots', async (t) => {
  const { app, check, ended, ledger } = await fixture(t);
  const { call } = await app({ env: { WORKFLOW_POSTGRES_WORKER_CONCURRENCY: '4' } });
  const parents = await Promise.all(Array.from({ length: 6 }, () => call('start', 'parent', [3])));
  assert.deepEqual(new Set(await ended(parents)), new Set(['completed']));
  assert.deepEqual(
    await Promise.all(parents.map((runId) => call('result', runId))),
    [6, 6, 6, 6, 6, 6],
  );
  assert.deepEqual(repeated(await ledger()), []);
  await check();
});
