import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fixture } from './fixture.mjs';

test('a race is over soon after it is decided, though more steps wait than there are slots', async (t) => {
  const { app, database, ended, ledger } = await fixture(t);
  const { call } = await app();
  // The routes are loaded by then.
  await ended([await call('start', 'sequential', [1])]);
  const runId = await call('start', 'race', [30, 1_000, 12_000]);
  await ended([runId]);
  const [won] = (await ledger(runId)).filter(({ phase }) => phase === 'end');
  const { rows } = await database.pool.query(
    `SELECT completed_at FROM ${database.schema}.workflow_runs WHERE run_id = $1`,
    [runId],
  );
  const late = rows[0].completed_at.getTime() - won.at;
  t.diagnostic(`${late} ms`);
  assert.ok(late < 4_000, `the run has ended ${late} ms after its race was decided`);
  assert.equal(await call('result', runId), 0);
});
