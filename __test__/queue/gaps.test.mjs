import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { createPgBossFunctionProxyQueue } from '../../index.js';
import { testDatabase } from '../support/database.mjs';
import { relay } from '../support/relay.mjs';
import { gate, isGone, place, routes, TOKEN, until } from './fixture.mjs';

const database = await testDatabase({ after });

/** Milliseconds; more than a job's lease. */
const PARTITION_MS = 12_000;

test('while no process reaches PostgreSQL, no lease ends: a process that starts then takes nothing away', async (t) => {
  const line = await relay(t, database.url);
  const open = place(t, database);
  const { open: end, opened: ended } = gate();
  t.after(end);
  /** @type {string[]} */
  const executions = [];
  /** @param {string} name @param {string} connectionString */
  const started = async (name, connectionString) => {
    const { step, flow } = routes({
      step: async () => {
        executions.push(name);
        await ended;
      },
    });
    const world = await open({
      connectionString,
      queueFactory: () =>
        createPgBossFunctionProxyQueue({
          securityToken: TOKEN,
          stepEntrypoint: step,
          workflowEntrypoint: flow,
        }),
    });
    await world.start();
    return world;
  };
  const old = await started('old', line.url);
  const { messageId } = await old.queue(
    '__wkf_step_s',
    {},
    { idempotencyKey: 'step_of_a_partition' },
  );
  await until(() => executions.length === 1);
  // For all processes that there are, PostgreSQL is gone; it runs all the same.
  line.cut('silent');
  const cut = Date.now();
  await until(() => Date.now() - cut > PARTITION_MS);
  // A new process comes through first.
  const { rows } = await database.pool.query(`SELECT at FROM ${database.schema}.workflow_pulse`);
  await started('new', database.url);
  await until(async () => {
    const pulse = await database.pool.query(`SELECT at FROM ${database.schema}.workflow_pulse`);
    return Number(pulse.rows[0].at) > Number(rows[0].at);
  });
  line.heal();
  // The old one renews its lease again.
  await until(async () => {
    const job = await database.pool.query(
      `SELECT heartbeat_on > now() - interval '3 seconds' AS renewed FROM ${database.queueSchema}.job
       WHERE singleton_key = 'step_of_a_partition'`,
    );
    return job.rows[0].renewed;
  });
  assert.deepEqual(executions, ['old']);
  end();
  await until(() => isGone(database, messageId));
  assert.deepEqual(executions, ['old']);
});
