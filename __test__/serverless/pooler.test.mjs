// Everything through a real PgBouncer in transaction mode that gives each transaction another server.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { after, describe, test } from 'node:test';
import pg from 'pg';
import { getRollbackPlans } from 'pg-boss';
import { createWorld } from '../../index.js';
import { setup } from '../../lib/setup.js';
import {
  knowsPreparedStatements,
  startPgBouncer,
  withoutPgBouncer,
} from '../../scripts/support/pgbouncer.mjs';
import { fixture, repeated } from '../sdk/fixture.mjs';
import {
  assertRefused,
  bytes,
  event,
  liveHook,
  openWait,
  openWorld,
  pendingRun,
  runningRun,
  runningStep,
  ulid,
} from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';

const SERVERS = 2;

/**
 * @param {string} pattern
 * @param {object} options
 * @param {string | false} options.skip
 * @param {boolean} options.statementCache
 * @param {number} [options.preparedStatements] that the pooler keeps track of
 */
async function worksBehind(pattern, { skip, statementCache, preparedStatements }) {
  if (skip) return void test(pattern, { skip });
  const sdk = await fixture({ after });
  const pooler = await startPgBouncer(sdk.database.url, { servers: SERVERS, preparedStatements });
  after(pooler.stop);
  await spread(pooler.url);

  describe(pattern, () => {
    /** @param {import('../support/database.mjs').TestDatabase} [database] */
    const options = ({ schema, queueSchema } = sdk.database) => ({
      connectionString: pooler.url,
      schema,
      queueSchema,
      statementCache,
      securityToken: 'token-of-the-tests',
    });

    test('each call of a World does what it does elsewhere, 20 of each at once', async (t) => {
      const database = await testDatabase(t, { url: sdk.database.url });
      const world = openWorld(database, options(database));
      t.after(() => world.close());
      const { called, all } = recordCalls(world);
      await Promise.all(Array.from({ length: 20 }, () => useAll(world)));
      assert.deepEqual(
        [...called].sort(),
        all.filter((name) => !NOT_OF_THE_DATABASE.includes(name)),
      );
    });

    test('a World starts, claims, delivers, and is healthy while it polls', async (t) => {
      const database = await testDatabase(t, { url: sdk.database.url });
      const world = createWorld(options(database));
      t.after(() => world.close());
      await world.start();
      const { database: health, notifications } = await world.health();
      assert.deepEqual([health.reachable, notifications], [true, 'polling']);
    });

    test('runs of the SDK complete, each step once, in two processes', async () => {
      const env = {
        WORKFLOW_POSTGRES_URL: pooler.url,
        WORKFLOW_POSTGRES_STATEMENT_CACHE: String(statementCache),
      };
      const apps = await Promise.all([sdk.app({ env }), sdk.app({ env })]);
      const start = (
        /** @type {number} */ n,
        /** @type {string} */ name,
        /** @type {unknown[]} */ ...args
      ) => apps[n % 2].call('start', name, args);
      const token = randomUUID();
      const approving = await start(0, 'approval', token);
      const runIds = await Promise.all([
        ...Array.from({ length: 10 }, (_, n) => start(n, 'sequential', 10)),
        start(0, 'fanOut', 30),
        start(1, 'naps', 2, 1000),
        start(0, 'retries', 2, 'not yet'),
      ]);
      const streaming = await start(1, 'counting', 500);
      assert.equal((await apps[0].call('readStream', streaming)).length, 500);
      await sdk.until([approving], async () => (await apps[1].call('hooks', approving)).length > 0);
      await apps[1].call('resumeHook', token, 'over the pooler');
      runIds.push(approving, streaming);
      assert.deepEqual(
        await sdk.ended(runIds),
        runIds.map(() => 'completed'),
      );
      assert.equal(await apps[0].call('result', approving), 'over the pooler');
      assert.deepEqual(
        repeated(await sdk.ledger()).filter(([{ step }]) => step !== 'flaky'),
        [],
      );
      await sdk.check();
    });

    test('the setup works, again and at the same time', async (t) => {
      const name = `t_${randomUUID().slice(0, 8)}_setup`;
      const own = { ...options(), schema: name, queueSchema: `${name}_queue` };
      t.after(() =>
        sdk.database.pool.query(`DROP SCHEMA IF EXISTS ${own.schema}, ${own.queueSchema} CASCADE`),
      );
      const atTheSameTime = () => Promise.all([setup(own), setup(own), setup(own)]);
      await atTheSameTime();
      const { rows } = await sdk.database.pool.query(
        `SELECT version FROM ${own.queueSchema}.version`,
      );
      await sdk.database.pool.query(getRollbackPlans(own.queueSchema, rows[0].version));
      await atTheSameTime();
      /** @type {string[]} */
      const lines = [];
      await setup(own, (line) => lines.push(line));
      assert.match(lines.join('\n'), /up to date \(version.*up to date \(pg-boss.*Ready/s);
      const world = createWorld(own);
      t.after(() => world.close());
      assert.deepEqual((await world.runs.list()).data, []);
    });

    test('and a World that does what the pooler cannot fails', {
      skip: preparedStatements !== undefined && 'this one can',
    }, async (t) => {
      const world = openWorld(sdk.database, { connectionString: pooler.url });
      t.after(() => world.close());
      const calls = Array.from({ length: 50 }, () =>
        world.runs.list().catch(({ message }) => message),
      );
      assert.match((await Promise.all(calls)).join('\n'), /prepared statement/);
    });
  });
}

/** Until the pooler has all its servers, and so gives each transaction another one. @param {string} url */
async function spread(url) {
  const pool = new pg.Pool({ connectionString: url, max: SERVERS });
  await Promise.all(Array.from({ length: SERVERS }, () => pool.query('SELECT pg_sleep(0.2)')));
  const pids = new Set();
  for (let n = 0; n < 2 * SERVERS; n++) {
    pids.add((await pool.query('SELECT pg_backend_pid() AS pid')).rows[0].pid);
  }
  await pool.end();
  assert.equal(pids.size, SERVERS);
}

const NOT_OF_THE_DATABASE = ['createQueueHandler', 'getDeploymentId'];

/** @param {import('../storage/fixture.mjs').World} world */
function recordCalls(world) {
  /** @type {Set<string>} */
  const called = new Set();
  /** @type {string[]} */
  const all = [];
  /** @param {Record<string, any>} object @param {string} prefix */
  const watch = (object, prefix) => {
    for (const [name, value] of Object.entries(object)) {
      const path = prefix + name;
      if (typeof value === 'object') watch(value, `${path}.`);
      if (typeof value !== 'function' || ['start', 'close'].includes(name)) continue;
      all.push(path);
      object[name] = (/** @type {unknown[]} */ ...args) => {
        called.add(path);
        return value(...args);
      };
    }
  };
  watch(world, '');
  return { called, all: all.sort() };
}

/** @param {import('../storage/fixture.mjs').World} world */
async function useAll(world) {
  const { events, hooks, runs, steps } = world;
  const runId = await runningRun(world);
  const stepId = await runningStep(world, runId);
  const { hookId, token } = await liveHook(world, runId);
  const { waitId, resumeAt } = await openWait(world, runId, new Date());
  await assertRefused(runs.get('wrun_none'), 'WorkflowRunNotFoundError', 404);
  await events.create(runId, event('step_retrying', stepId, { error: 'e' }));
  await events.create(runId, event('step_started', stepId));
  await events.create(runId, event('step_completed', stepId, { result: bytes('r') }));
  await events.create(runId, event('hook_received', hookId, { payload: bytes('p') }));
  await events.create(runId, event('wait_completed', waitId, { resumeAt }));

  const log = await events.list({ runId, pagination: { sortOrder: 'asc' } });
  const [{ eventId, eventType }] = log.data;
  assert.equal(eventType, 'run_created');
  assert.equal((await events.get(runId, eventId)).eventType, 'run_created');
  const ofStep = await events.listByCorrelationId({ correlationId: stepId });
  assert.equal(ofStep.data.length, 5);
  assert.equal((await runs.get(runId)).status, 'running');
  assert.ok((await runs.list({ status: 'running' })).data.length > 0);
  const created = await /** @type {any} */ (runs).create({
    runId: `wrun_${ulid()}`,
    workflowName: 'w',
    deploymentId: 'd',
    input: [1],
  });
  assert.equal(created.status, 'pending');
  assert.equal((await steps.get(runId, stepId)).status, 'completed');
  assert.equal((await steps.list({ runId })).data.length, 1);
  assert.equal((await hooks.get(hookId)).token, token);
  assert.equal((await hooks.getByToken(token)).hookId, hookId);
  assert.equal((await hooks.list({ runId })).data.length, 1);

  const name = `strm_${ulid()}_user`;
  const reading = new Response(await world.readFromStream(name)).text();
  await world.writeToStream(name, runId, bytes('a'));
  await world.writeToStreamMulti?.(name, runId, [bytes('b'), bytes('c')]);
  await world.closeStream(name, runId);
  assert.equal(await reading, 'abc');
  assert.equal((await world.getStreamChunks(name, runId)).data.length, 3);
  assert.equal((await world.getStreamInfo(name, runId)).done, true);
  assert.deepEqual(await world.listStreamsByRunId(runId), [name]);

  await world.queue('__wkf_workflow_w', { runId: await pendingRun(world) });
  assert.equal((await world.health()).database.reachable, true);
  await events.create(runId, event('run_cancelled'));
  assert.equal((await runs.get(runId)).status, 'cancelled');
}

const without = withoutPgBouncer();
await worksBehind('behind a pooler that knows no prepared statements, without the cache', {
  skip: without,
  statementCache: false,
});
await worksBehind('behind a pooler that knows prepared statements, with the cache', {
  skip:
    without ||
    (!knowsPreparedStatements() && 'PgBouncer is older than 1.21 (PGBOUNCER may name another)'),
  statementCache: true,
  preparedStatements: 100,
});
