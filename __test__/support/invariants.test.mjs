import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { testDatabase } from './database.mjs';
import { assertInvariants, violations } from './invariants.mjs';

const database = await testDatabase({ after });
const { pool, schema, queueSchema } = database;

/** @param {string} sql */
const scoped = (sql) =>
  sql.replaceAll('queue.', `${queueSchema}.`).replaceAll('@', `${schema}.workflow_`);

const at = (/** @type {number} */ n) =>
  `'2026-01-01T00:00:00Z'::timestamptz + ${n} * interval '1 second'`;

/** @param {string} run @param {[type: string, correlationId?: string][]} log */
const events = (run, log) =>
  log
    .map(
      ([type, id], n) => `INSERT INTO @events (run_id, slot, type, correlation_id, created_at)
        VALUES ('${run}', ${n + 1}, '${type}', ${id ? `'${id}'` : 'NULL'}, ${at(n + 1)});`,
    )
    .join('\n');

/** @param {string} run @param {string} values */
const message = (
  run,
  values,
) => `INSERT INTO queue.job (name, group_id, state, started_on, heartbeat_on, heartbeat_seconds)
  VALUES ('workflow_flows', '${run}', ${values});`;

// A run that has ended, one that works and sleeps, one that is parked on its hook.
const valid = `
  ${events('done', [
    ['run_created'],
    ['run_started'],
    ['step_created', 's1'],
    ['step_started', 's1'],
    ['step_retrying', 's1'],
    ['step_started', 's1'],
    ['step_completed', 's1'],
    ['hook_created', 'h1'],
    ['hook_conflict', 'h2'],
    ['run_completed'],
  ])}
  INSERT INTO @runs (run_id, workflow_name, deployment_id, status, job_prefix, created_at, updated_at, started_at, completed_at, output_slot)
    VALUES ('done', 'w', 'd', 'completed', 'workflow_', ${at(1)}, ${at(10)}, ${at(2)}, ${at(10)}, 10);
  INSERT INTO @steps (run_id, step_id, step_name, status, attempt, input_slot, output_slot, created_at, updated_at, started_at, completed_at)
    VALUES ('done', 's1', 's', 'completed', 2, 3, 7, ${at(3)}, ${at(7)}, ${at(4)}, ${at(7)});

  ${events('busy', [
    ['run_created'],
    ['run_started'],
    ['wait_created', 'w1'],
    ['step_created', 's2'],
    ['hook_created', 'h3'],
    ['hook_received', 'h3'],
    ['hook_disposed', 'h3'],
  ])}
  INSERT INTO @runs (run_id, workflow_name, deployment_id, status, job_prefix, created_at, updated_at, started_at)
    VALUES ('busy', 'w', 'd', 'running', 'workflow_', ${at(1)}, ${at(7)}, ${at(2)});
  INSERT INTO @steps (run_id, step_id, step_name, input_slot, created_at, updated_at)
    VALUES ('busy', 's2', 's', 4, ${at(4)}, ${at(4)});
  INSERT INTO @waits (run_id, correlation_id, created_at, updated_at) VALUES ('busy', 'w1', ${at(3)}, ${at(3)});
  INSERT INTO @hooks (run_id, hook_id, metadata_slot, created_at, disposed_at)
    VALUES ('busy', 'h3', 5, ${at(5)}, ${at(7)});
  ${message('busy', `'active', now(), now(), 15`)}

  ${events('parked', [['run_created'], ['run_started'], ['hook_created', 'h4']])}
  INSERT INTO @runs (run_id, workflow_name, deployment_id, status, job_prefix, created_at, updated_at, started_at)
    VALUES ('parked', 'w', 'd', 'running', 'workflow_', ${at(1)}, ${at(3)}, ${at(2)});
  INSERT INTO @hooks (run_id, hook_id, token, metadata_slot, created_at)
    VALUES ('parked', 'h4', 'token', 3, ${at(3)});
`;

before(() => pool.query(scoped(valid)));

test('a valid database has no violations', async () => {
  assert.deepEqual(await violations(database), []);
  await assertInvariants(database);
});

/** @param {string} run @param {string} type @param {string} [id] */
const append = (run, type, id) => `
  INSERT INTO @events (run_id, slot, type, correlation_id, created_at)
    SELECT '${run}', max(slot) + 1, '${type}', ${id ? `'${id}'` : 'NULL'}, max(created_at)
    FROM @events WHERE run_id = '${run}'`;

/** @type {[rule: string, damage: string][]} */
const damages = [
  [
    'the slots of a run count from 1 without a gap',
    `DELETE FROM @events WHERE run_id = 'done' AND slot = 9`,
  ],
  [
    'time does not run backwards along a log',
    `UPDATE @events SET created_at = ${at(1)} WHERE run_id = 'done' AND slot = 9`,
  ],
  [
    'times are whole milliseconds',
    `UPDATE @events SET created_at = created_at + interval '1 microsecond' WHERE slot = 9`,
  ],
  ['every run and nothing else has a log', `DELETE FROM @events WHERE run_id = 'parked'`],
  ['every run and nothing else has a log', `DELETE FROM @runs WHERE run_id = 'parked'`],
  ['run_created comes first and only there', append('busy', 'run_created')],
  ['a run starts at most once', append('busy', 'run_started')],
  ['after the end of a run only its running steps report', append('done', 'run_cancelled')],
  ['after the end of a run only its running steps report', append('done', 'wait_created', 'w9')],
  ['an entity is created once, before all else about it', append('busy', 'step_created', 's2')],
  ['an entity is created once, before all else about it', append('busy', 'wait_completed', 'w9')],
  ['nothing follows the end of a step, a wait or a hook', append('done', 'step_failed', 's1')],
  ['nothing follows the end of a step, a wait or a hook', append('busy', 'hook_received', 'h3')],
  ['a hook that lost its token gets no payload', append('done', 'hook_received', 'h2')],
  [
    'a run is what its log says',
    `UPDATE @runs SET status = 'cancelled', output_slot = NULL WHERE run_id = 'done'`,
  ],
  ['a run is what its log says', `UPDATE @runs SET started_at = ${at(3)} WHERE run_id = 'parked'`],
  ['a step is what its log says', `UPDATE @steps SET attempt = 3 WHERE step_id = 's1'`],
  ['a step is what its log says', `DELETE FROM @steps WHERE step_id = 's2'`],
  [
    'a live run has the hooks that its log says, an ended one none',
    `UPDATE @hooks SET token = NULL, disposed_at = now() WHERE hook_id = 'h4'`,
  ],
  [
    'a live run has the hooks that its log says, an ended one none',
    `INSERT INTO @hooks (run_id, hook_id, token, metadata_slot, created_at) VALUES ('done', 'h1', 't', 8, ${at(8)})`,
  ],
  [
    'a live run has the waits that its log says, an ended one none',
    `UPDATE @waits SET status = 'completed', completed_at = now()`,
  ],
  [
    'a live run has the waits that its log says, an ended one none',
    `INSERT INTO @waits (run_id, correlation_id, created_at, updated_at) VALUES ('done', 'w9', now(), now())`,
  ],
  ['a finished run has no live message', message('done', `'created', NULL, NULL, NULL`)],
  [
    'a live run has a message, or waits for a hook alone',
    `UPDATE queue.job SET state = 'completed'`,
  ],
  [
    'a live run has a message, or waits for a hook alone',
    `DELETE FROM @hooks WHERE hook_id = 'h4'`,
  ],
  [
    'a message in work has a live lease',
    `UPDATE queue.job SET heartbeat_on = now() - interval '1 minute'`,
  ],
];

for (const [rule, damage] of damages) {
  test(`found: ${rule} (${damage.replaceAll(/\s+/g, ' ').trim().slice(0, 40)})`, async () => {
    const client = await pool.connect();
    try {
      await client.query(`BEGIN; ${scoped(damage)}`);
      const found = await violations({ ...database, pool: /** @type {any} */ (client) });
      assert.ok(
        found.some((violation) => violation.rule === rule),
        `found ${JSON.stringify(found)}`,
      );
    } finally {
      await client.query('ROLLBACK');
      client.release();
    }
  });
}
