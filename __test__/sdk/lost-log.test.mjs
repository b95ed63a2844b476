import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { fixture } from './fixture.mjs';

const env = { TEST_METHODS: fileURLToPath(new URL('gates.mjs', import.meta.url)) };

/**
 * Takes the end of a run's log away, and what followed from it, as a failover to an asynchronous standby
 * does that had not got it yet.
 *
 * @param {import('../support/database.mjs').TestDatabase} database
 * @param {string} runId
 * @param {string} last the type of the last event that is left
 */
async function loseEnd({ pool, schema }, runId, last) {
  const { rowCount } = await pool.query(
    `DELETE FROM ${schema}.workflow_events WHERE run_id = $1 AND slot > (
       SELECT max(slot) FROM ${schema}.workflow_events WHERE run_id = $1 AND type = $2)`,
    [runId, last],
  );
  await pool.query(
    `DELETE FROM ${schema}.workflow_steps s WHERE run_id = $1 AND NOT EXISTS (
       SELECT FROM ${schema}.workflow_events e WHERE e.run_id = s.run_id AND e.slot = s.input_slot)`,
    [runId],
  );
  await pool.query(
    `UPDATE ${schema}.workflow_steps s SET attempt = (
         SELECT count(*) FROM ${schema}.workflow_events e
         WHERE e.run_id = s.run_id AND e.correlation_id = s.step_id AND e.type = 'step_started'),
       status = 'pending', output_slot = NULL, started_at = NULL, completed_at = NULL,
       lease_until = NULL, lease_request = NULL
     WHERE run_id = $1 AND status <> 'pending' AND NOT EXISTS (
       SELECT FROM ${schema}.workflow_events e
       WHERE e.run_id = s.run_id AND e.correlation_id = s.step_id AND e.type IN ('step_completed', 'step_failed'))`,
    [runId],
  );
  await pool.query(
    `UPDATE ${schema}.workflow_runs r SET status = 'pending', started_at = NULL
     WHERE run_id = $1 AND NOT EXISTS (
       SELECT FROM ${schema}.workflow_events e WHERE e.run_id = r.run_id AND e.type = 'run_started')`,
    [runId],
  );
  return rowCount ?? 0;
}

for (const [what, workflow, args, held, left, result] of /** @type {const} */ ([
  ['a step is created', 'sequential', [3], 'step_created', 'step_created', 6],
  [
    'a step is created, and with it the start of the one before',
    'sequential',
    [3],
    'step_created',
    'run_started',
    6,
  ],
  ['the run completes', 'sequential', [1], 'run_completed', 'step_created', 1],
  ['a wait is created', 'naps', [1, 1000], 'wait_created', 'run_created', 1],
])) {
  test(`a log that loses its end while ${what} does not fail its run`, async (t) => {
    const { app: startApp, check, database, ended, until } = await fixture(t);
    const app = await startApp({ env });
    const runId = await app.call('start', workflow, args);
    if (held === 'step_created') {
      await until([runId], async () => {
        const events = await app.call('events', runId);
        return events.some((/** @type {any} */ { eventType }) => eventType === held);
      });
    }
    await app.call('closeGate', held);
    await until([runId], () => app.call('waitsAtGate', held));
    assert.ok((await loseEnd(database, runId, left)) > 0);
    await app.call('openGate', held);
    assert.deepEqual(await ended([runId]), ['completed'], app.logs());
    assert.equal(await app.call('result', runId), result);
    await check();
  });
}

test('the result of a step whose start was lost counts', async (t) => {
  const { app: startApp, check, database, ended, ledger, until } = await fixture(t);
  const app = await startApp({ env });
  await app.call('closeGate', 'step_completed');
  const runId = await app.call('start', 'sequential', [1]);
  await until([runId], () => app.call('waitsAtGate', 'step_completed'));
  assert.equal(await loseEnd(database, runId, 'step_created'), 1);
  await app.call('openGate', 'step_completed');
  assert.deepEqual(await ended([runId]), ['completed'], app.logs());
  assert.equal((await ledger(runId)).filter(({ phase }) => phase === 'begin').length, 1);
  await check();
});
