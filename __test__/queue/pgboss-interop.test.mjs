import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { PgBoss } from 'pg-boss';
import { createPgBossHttpProxyQueue, createWorld } from '../../index.js';
import { ulid } from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { OF_WORLD } from './fixture.mjs';

const [FLOWS, STEPS] = ['workflow_flows', 'workflow_steps'];
const TOKEN = 'token-of-the-tests';

/**
 * The user's own pg-boss, on the schema that the setup command made.
 *
 * @param {import('node:test').TestContext} t
 * @param {import('../support/database.mjs').TestDatabase} database
 * @param {Record<string, unknown>} [options]
 */
async function pgBoss(t, { url, queueSchema }, options) {
  const boss = new PgBoss({
    connectionString: url,
    schema: queueSchema,
    supervise: false,
    ...options,
  });
  boss.on('error', () => {});
  await boss.start();
  t.after(() => boss.stop({ graceful: false }));
  return boss;
}

/**
 * An app that notes what is delivered to it.
 *
 * @param {import('node:test').TestContext} t
 * @param {(delivery: any) => number | Promise<number>} [answer] its status
 */
async function app(t, answer = () => 200) {
  /** @type {any[]} */
  const deliveries = [];
  const server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = Buffer.concat(chunks).toString();
    let status = 200;
    if (request.method === 'POST' && body) {
      const { url, headers } = request;
      const delivery = { url, headers, body: JSON.parse(body) };
      deliveries.push(delivery);
      status = await answer(delivery);
    }
    response.writeHead(status, { 'content-type': 'application/json', ...OF_WORLD });
    response.end('{"ok":true}');
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  return { deliveries, port };
}

/**
 * @param {import('node:test').TestContext} t
 * @param {import('../support/database.mjs').TestDatabase} database
 * @param {number} [port] of the app; without one the World is a producer
 */
async function worldOf(t, { url, schema, queueSchema }, port) {
  const world = createWorld({
    connectionString: url,
    schema,
    queueSchema,
    securityToken: TOKEN,
    queueFactory: () => createPgBossHttpProxyQueue({ port: port ?? 1 }),
  });
  t.after(() => world.close());
  if (port) await world.start();
  return /** @type {import('../storage/fixture.mjs').World} */ (/** @type {any} */ (world));
}

/** @template T @param {() => T | Promise<T>} look @returns {Promise<NonNullable<T>>} */
async function until(look) {
  for (const deadline = Date.now() + 30_000; ; await sleep(20)) {
    const found = await look();
    if (found) return found;
    assert.ok(Date.now() < deadline, `${look} did not come true`);
  }
}

/**
 * The numbers of a queue at this moment.
 *
 * @param {PgBoss} boss
 * @param {string} name
 * @returns {Promise<any>}
 */
async function statsOf(boss, name) {
  const [newest] = await boss.getQueueStats(name, { force: true });
  return newest;
}

/** A message as another program would send it. @param {string} id @param {unknown} body */
const messageData = (id, body) => ({
  id,
  queueName: `__wkf_step_${id}`,
  messageId: `msg_${ulid()}`,
  attempt: 1,
  data: Buffer.from(JSON.stringify(body)).toString('base64'),
});

describe('pg-boss for JavaScript', () => {
  test('sees the jobs of a World, their numbers and what is in them', async (t) => {
    const database = await testDatabase(t);
    const boss = await pgBoss(t, database);
    const world = await worldOf(t, database);
    const runId = `wrun_${ulid()}`;
    const step = {
      workflowName: 'w',
      workflowRunId: runId,
      workflowStartedAt: 1,
      stepId: 'step_1',
    };
    const { messageId } = await world.queue('__wkf_step_step//./a//s', step, {
      idempotencyKey: 'step_1',
    });
    await world.queue('__wkf_step_step//./a//s', step, { idempotencyKey: 'step_1' });
    await world.queue(
      '__wkf_step_later',
      { ...step, stepId: 'step_2' },
      { idempotencyKey: 'step_2', delaySeconds: 3600 },
    );
    await world.queue('__wkf_workflow_w', { runId });

    const names = (await boss.getQueues()).map(({ name }) => name);
    assert.ok(
      [FLOWS, STEPS].every((name) => names.includes(name)),
      names.join(),
    );
    const steps = await statsOf(boss, STEPS);
    assert.deepEqual(
      [steps.readyCount, steps.deferredCount, steps.activeCount, steps.totalCount],
      [1, 1, 0, 2],
      JSON.stringify(steps),
    );
    assert.equal((await statsOf(boss, FLOWS)).readyCount, 1);

    const jobs = await boss.findJobs(STEPS, { key: 'step_1' });
    assert.equal(jobs.length, 1);
    const { data, state, groupId } = /** @type {any} */ (jobs[0]);
    assert.equal(state, 'created');
    assert.equal(groupId, runId);
    assert.equal(data.messageId, messageId);
    assert.equal(data.id, 'step//./a//s');
    assert.deepEqual(JSON.parse(Buffer.from(data.data, 'base64').toString()), step);
  });

  test('may work off the jobs of a World', async (t) => {
    const database = await testDatabase(t);
    const boss = await pgBoss(t, database);
    const world = await worldOf(t, database);
    await world.queue('__wkf_step_s', { stepId: 'step_1' }, { idempotencyKey: 'step_1' });
    const [job] = /** @type {any[]} */ (await boss.fetch(STEPS));
    assert.equal(job.data.id, 's');
    // The key stays taken while the other program is at it, and is free afterwards.
    await world.queue('__wkf_step_s', { stepId: 'step_1' }, { idempotencyKey: 'step_1' });
    assert.equal((await statsOf(boss, STEPS)).totalCount, 1);
    await boss.complete(STEPS, job.id);
    await world.queue('__wkf_step_s', { stepId: 'step_1' }, { idempotencyKey: 'step_1' });
    assert.equal((await boss.fetch(STEPS)).length, 1);
  });

  test('sends jobs that a World executes', async (t) => {
    const database = await testDatabase(t);
    const boss = await pgBoss(t, database);
    const { deliveries, port } = await app(t);
    await worldOf(t, database, port);
    const runId = `wrun_${ulid()}`;
    const step = messageData('step//./a//s', { workflowRunId: runId, stepId: 'step_1' });
    const flow = {
      ...messageData('w', { runId }),
      queueName: '__wkf_workflow_w',
      headers: { traceparent: '00-1' },
    };
    await boss.send(STEPS, step, { singletonKey: 'step_1', group: { id: runId } });
    await boss.send(FLOWS, flow);
    await until(() => deliveries.length === 2);
    const [flowDelivery, stepDelivery] = deliveries.sort((a, b) => (a.url < b.url ? -1 : 1));
    assert.match(stepDelivery.url, /\/\.well-known\/workflow\/v1\/step$/);
    assert.match(flowDelivery.url, /\/\.well-known\/workflow\/v1\/flow$/);
    assert.deepEqual(stepDelivery.body, { workflowRunId: runId, stepId: 'step_1' });
    assert.deepEqual(flowDelivery.body, { runId });
    assert.equal(flowDelivery.headers.traceparent, '00-1');
    assert.equal(stepDelivery.headers['x-workflow-secret'], TOKEN);
    assert.equal(stepDelivery.headers['x-vqs-message-id'], step.messageId);
    assert.equal(stepDelivery.headers['x-vqs-message-attempt'], '1');
    assert.equal(
      decodeURIComponent(stepDelivery.headers['x-vqs-queue-name']),
      '__wkf_step_step//./a//s',
    );
    await until(async () => (await boss.findJobs(STEPS)).length === 0);
  });

  test('sends jobs that begin later or go first, and a World obeys', async (t) => {
    const database = await testDatabase(t);
    const boss = await pgBoss(t, database);
    const send = (/** @type {string} */ id, /** @type {any} */ options) =>
      boss.send(STEPS, messageData(id, { stepId: id }), { singletonKey: id, ...options });
    await send('low', { priority: -1 });
    await send('normal', {});
    await send('high', { priority: 5 });
    await send('later', { startAfter: 2, priority: 9 });
    const { deliveries, port } = await app(t);
    const { url, schema, queueSchema } = database;
    const world = createWorld({
      connectionString: url,
      schema,
      queueSchema,
      securityToken: TOKEN,
      queueConcurrency: 1,
      queueFactory: () => createPgBossHttpProxyQueue({ port, queueConcurrency: 1 }),
    });
    t.after(() => world.close());
    await world.start();
    await until(() => deliveries.length === 4);
    assert.deepEqual(
      deliveries.map(({ body }) => body.stepId),
      ['high', 'normal', 'low', 'later'],
    );
  });

  test('sends nonsense, and a World says what is wrong with it and goes on', async (t) => {
    const database = await testDatabase(t);
    const boss = await pgBoss(t, database);
    const { deliveries, port } = await app(t);
    const nonsense = [{}, { id: 7 }, { id: 's', data: 'not base64!' }, { id: 's' }, null];
    for (const [i, data] of nonsense.entries()) {
      await boss.send(STEPS, /** @type {any} */ (data), { singletonKey: `nonsense ${i}` });
    }
    await boss.send(STEPS, messageData('s', { stepId: 'good' }), { singletonKey: 'good' });
    await worldOf(t, database, port);
    await until(() => deliveries.length === 1);
    assert.deepEqual(deliveries[0].body, { stepId: 'good' });
    const kept = /** @type {any[]} */ (
      await until(async () => {
        const jobs = /** @type {any[]} */ (await boss.findJobs(STEPS));
        return jobs.length === nonsense.length && jobs.every(({ output }) => output) && jobs;
      })
    );
    for (const { state, output } of kept) {
      assert.ok(state === 'retry' || state === 'failed');
      assert.match(output.message, /the job's data/);
    }
    assert.equal(deliveries.length, 1);
  });

  test('supervises, and takes no job away from a World that is at it', async (t) => {
    const database = await testDatabase(t);
    const boss = await pgBoss(t, database, { supervise: true });
    let finish = () => {};
    const finished = new Promise((resolve) => {
      finish = () => resolve(undefined);
    });
    const { deliveries, port } = await app(t, async () => {
      await finished;
      return 200;
    });
    const world = await worldOf(t, database, port);
    await world.queue('__wkf_step_s', { stepId: 'step_1' }, { idempotencyKey: 'step_1' });
    await until(() => deliveries.length === 1);
    // A day at work is no reason.
    const queue = /** @type {any} */ (await boss.getQueue(STEPS));
    assert.ok(queue.expireInSeconds >= 24 * 60 * 60 - 1, JSON.stringify(queue));
    for (let round = 0; round < 20; round++) {
      await boss.supervise();
      await sleep(500);
    }
    assert.equal((await statsOf(boss, STEPS)).activeCount, 1);
    assert.equal(deliveries.length, 1);
    finish();
    await until(async () => (await boss.findJobs(STEPS)).length === 0);
    assert.equal(deliveries.length, 1);
  });

  test('keeps its own queues beside those of a World', async (t) => {
    const database = await testDatabase(t);
    const boss = await pgBoss(t, database);
    await boss.createQueue('mine');
    const id = await boss.send('mine', { a: 1 });
    const { deliveries, port } = await app(t);
    const world = await worldOf(t, database, port);
    await world.queue('__wkf_step_s', { stepId: 'step_1' }, { idempotencyKey: 'step_1' });
    await until(() => deliveries.length === 1);
    assert.deepEqual(
      (await boss.fetch('mine')).map((job) => job.id),
      [id],
    );
  });
});
