import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  createPgBossFunctionProxyQueue,
  createPgBossHttpProxyQueue,
  createWorld,
} from '../../index.js';
import { freePort } from '../../scripts/support/postgres.mjs';
import { asWorld, OF_WORLD, place, TOKEN, until } from '../queue/fixture.mjs';
import { ulid } from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { relay } from '../support/relay.mjs';

/** @typedef {import('node:test').TestContext} Test */
/** @typedef {import('../../index.js').WorldHealth} WorldHealth */
/** @typedef {import('../../index.js').PgBossQueueHealth} PgBossQueueHealth */

const database = await testDatabase({ after });
const { url, schema, queueSchema } = database;
const log = () => {};

/** For probes that give up. @param {{ health(): Promise<WorldHealth> }} world */
async function healthOf(world) {
  const health = await Promise.race([world.health(), sleep(10_000, undefined, { ref: false })]);
  assert.ok(health, 'no answer within seconds');
  return { ...health, queue: /** @type {PgBossQueueHealth} */ (health.queue) };
}

/** @param {Test} t @param {number} port */
async function listen(t, port) {
  const server = createServer((_request, response) => {
    response.writeHead(200, OF_WORLD).end('{}');
  }).listen(port, '127.0.0.1');
  await once(server, 'listening');
  const stop = () => {
    server.closeAllConnections();
    server.close();
  };
  t.after(stop);
  return stop;
}

describe('the health of a World', () => {
  test('that was not started tells of the database, and of a queue without worker', async (t) => {
    const world = await place(t, database)({});
    const { database: connection, ...health } = await healthOf(world);
    assert.deepEqual(health, {
      healthy: true,
      started: false,
      notifications: 'idle',
      queue: { healthy: true, worker: 'stopped', oldestDueMs: 0 },
    });
    assert.equal(connection.reachable, true);
    assert.ok(Number(connection.roundTripMs) > 0);
  });

  test('is bad on a server that takes no writes, and says why', async (t) => {
    const connection = new URL(url);
    connection.search = `?options=${encodeURIComponent('-c default_transaction_read_only=on')}`;
    const world = createWorld({ connectionString: connection.href, schema, queueSchema });
    t.after(() => world.close());
    const { healthy, database: health } = await healthOf(world);
    assert.deepEqual([healthy, health.reachable], [false, true]);
    assert.match(String(health.error), /takes no writes.*standby/);
  });

  test('that works is good while its app can be reached', async (t) => {
    const port = await freePort();
    const queueFactory = () => createPgBossHttpProxyQueue({ port });
    const world = await place(t, database)({ queueFactory, log });
    await world.start();
    const { healthy, started, queue } = await healthOf(world);
    assert.deepEqual(
      [healthy, started, queue.healthy, queue.targetReachable, queue.worker],
      [false, true, false, false, 'running'],
    );
    const stop = await listen(t, port);
    await until(async () => (await healthOf(world)).healthy);
    assert.equal((await healthOf(world)).queue.targetReachable, true);
    stop();
    await until(async () => !(await healthOf(world)).healthy);
    await listen(t, port);
    await until(async () => (await healthOf(world)).healthy);
  });

  test('that calls functions needs nobody else', async (t) => {
    let executions = 0;
    const workflowEntrypoint = asWorld(async () => {
      executions += 1;
      return Response.json({});
    });
    const queueFactory = () => createPgBossFunctionProxyQueue({ workflowEntrypoint });
    const world = await place(t, database)({ queueFactory, queueConcurrency: 7 });
    await world.start();
    await world.queue('__wkf_workflow_w', { runId: 'wrun_1' });
    await until(() => executions);
    await until(async () => (await healthOf(world)).notifications === 'listening');
    // Counted when it has ended, and at rest once that is written down.
    await until(async () => {
      const { deliveries } = (await healthOf(world)).queue;
      return deliveries?.completed && deliveries.runningFlows === 0;
    });
    const { healthy, queue } = await healthOf(world);
    assert.deepEqual([healthy, queue.targetReachable, queue.worker], [true, true, 'running']);
    const { deliveries, completed, failed, capacity, runningFlows } = queue.deliveries ?? {};
    assert.deepEqual(
      { deliveries, completed, failed, capacity, runningFlows },
      { deliveries: 1, completed: 1, failed: 0, capacity: 7, runningFlows: 0 },
    );
  });

  test('tells how long the message that has waited longest is due', async (t) => {
    const world = await place(t, database)({});
    await world.queue('__wkf_workflow_w', { runId: 'wrun_1' }, { delaySeconds: 3600 });
    assert.equal((await healthOf(world)).queue.oldestDueMs, 0);
    await world.queue('__wkf_workflow_w', { runId: 'wrun_2' });
    const first = await until(async () => (await healthOf(world)).queue.oldestDueMs);
    await world.queue('__wkf_workflow_w', { runId: 'wrun_3' });
    await until(async () => (await healthOf(world)).queue.oldestDueMs > first);
    assert.equal((await healthOf(world)).healthy, true, 'how much waits plays no part in it');
  });

  test('whose settings are wrong, or that was closed, is bad, and says why', async (t) => {
    const wrong = createWorld({ connectionString: 'mysql://user:hunter2@host/db' });
    const { healthy, started, database: connection } = await healthOf(wrong);
    assert.deepEqual([healthy, started, connection.reachable], [false, false, false]);
    assert.match(String(connection.error), /WORKFLOW_POSTGRES_URL/);
    assert.doesNotMatch(String(connection.error), /hunter2/);

    const empty = createWorld({ connectionString: url, schema: `none_${ulid().toLowerCase()}` });
    const { queue, ...health } = await healthOf(empty);
    assert.deepEqual([health.healthy, health.database.reachable], [false, true]);
    assert.match(String(queue.error), /workflow-postgres-setup/);
    await empty.close();

    const world = await place(t, database)({});
    await world.runs.list();
    await world.close();
    const closed = await healthOf(world);
    assert.deepEqual([closed.healthy, closed.started], [false, false]);
    assert.match(String(closed.database.error), /closed/);
  });
});

describe('a World without its database', () => {
  for (const how of /** @type {const} */ (['refusing', 'silent'])) {
    test(`(${how}) says so within seconds, and heals by itself`, async (t) => {
      const line = await relay(t, url);
      let executions = 0;
      const workflowEntrypoint = asWorld(async () => {
        executions += 1;
        return Response.json({});
      });
      const world = await place(
        t,
        database,
      )({
        connectionString: line.url,
        log,
        queueFactory: () => createPgBossFunctionProxyQueue({ workflowEntrypoint }),
      });
      await world.start();
      const isWell = async () => {
        const { healthy, notifications } = await healthOf(world);
        return healthy && notifications === 'listening';
      };
      await until(isWell);

      line.cut(how);
      await until(async () => (await healthOf(world)).notifications !== 'listening');
      const away = await healthOf(world);
      const { healthy, started, notifications, database: connection, queue } = away;
      assert.deepEqual([healthy, started, notifications], [false, true, 'polling']);
      assert.equal(connection.reachable, false);
      assert.equal(typeof connection.error, 'string');
      assert.equal(queue.healthy, false);

      line.heal();
      await until(isWell);
      await world.queue('__wkf_workflow_w', { runId: 'wrun_1' });
      await until(() => executions);
    });
  }

  test('but for the connection that listens opens another one', async (t) => {
    const line = await relay(t, url);
    const queueFactory = () =>
      createPgBossFunctionProxyQueue({
        workflowEntrypoint: asWorld(async () => Response.json({})),
      });
    const world = await place(t, database)({ connectionString: line.url, queueFactory, log });
    await world.start();
    /** The process of PostgreSQL behind it. */
    const listener = async () => {
      const { rows } = await database.pool.query(
        `SELECT pid FROM pg_stat_activity WHERE client_port = ANY($1) AND query ~ 'LISTEN'`,
        [line.ports()],
      );
      return rows[0]?.pid;
    };
    const listening = async () =>
      (await healthOf(world)).notifications === 'listening' && (await listener());
    const first = await until(listening);
    await database.pool.query('SELECT pg_terminate_backend($1)', [first]);
    await until(async () => {
      const pid = await listening();
      return pid && pid !== first;
    });
    assert.equal((await healthOf(world)).healthy, true);
  });
});

describe('a driver of one’s own', () => {
  /** @param {any} [health] */
  async function healthWith(health) {
    const push = async () => {};
    const driver = { pushStep: push, pushFlow: push, start: push, ...(health && { health }) };
    const options = { connectionString: url, schema, queueSchema, securityToken: TOKEN };
    const world = createWorld({ ...options, queueFactory: () => driver });
    try {
      const { healthy, queue, database: connection } = await healthOf(world);
      assert.equal(connection.reachable, true);
      return { healthy, queue };
    } finally {
      await world.close();
    }
  }

  test('says what it likes of itself, or nothing', async () => {
    assert.deepEqual(await healthWith(), { healthy: true, queue: undefined });
    assert.deepEqual(await healthWith(async () => ({ waiting: 3 })), {
      healthy: true,
      queue: { waiting: 3 },
    });
    const sick = { healthy: false, waiting: 3 };
    assert.deepEqual(await healthWith(() => sick), { healthy: false, queue: sick });
  });

  test('that fails to answer is not well', async () => {
    const lost = { healthy: false, queue: { healthy: false, error: 'the broker is away' } };
    const fail = () => {
      throw new Error('the broker is away');
    };
    assert.deepEqual(await healthWith(fail), lost);
    assert.deepEqual(await healthWith(async () => fail()), lost);
    const { healthy, queue } = await healthWith(() => new Promise(() => {}));
    assert.equal(healthy, false);
    assert.match(String(queue.error), /did not answer/);
  });
});
