import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { Readable } from 'node:stream';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createPgBossHttpProxyQueue } from '../../index.js';
import { freePort } from '../../scripts/support/postgres.mjs';
import { bytes, runCreated, ulid } from '../storage/fixture.mjs';
import { random } from '../storage/racer.mjs';
import { testDatabase } from '../support/database.mjs';
import {
  gate,
  isGone as isGoneFrom,
  isProbe,
  place as placeIn,
  routes,
  until,
} from './fixture.mjs';

/** @typedef {import('node:test').TestContext} Test */
/** @typedef {import('../storage/fixture.mjs').World} World */
/** @typedef {import('./fixture.mjs').Handler} Handler */

const database = await testDatabase({ after });
const seed = Number(process.env.TEST_SEED ?? Date.now() % 2 ** 31);

/** @param {string} messageId */
const isGone = (messageId) => isGoneFrom(database, messageId);

/** Worlds that deliver to a port. @param {Test} t */
function place(t) {
  const makeWorld = placeIn(t, database);
  /**
   * @param {number} port
   * @param {Record<string, unknown>} [options]
   */
  return (port, options) =>
    makeWorld({ queueFactory: () => createPgBossHttpProxyQueue({ port }), ...options });
}

/**
 * An app whose routes are the handlers of a World, as the SDK makes them.
 *
 * @param {Test} t
 * @param {{ step?: Handler, flow?: Handler, token?: string, port?: number, namespace?: string }} handlers
 */
async function app(t, { port = 0, ...handlers }) {
  const served = /** @type {Record<string, (request: Request) => Promise<Response>>} */ (
    routes(handlers)
  );
  /** @type {{ headers: import('node:http').IncomingHttpHeaders, status: number }[]} */
  const deliveries = [];
  const server = createServer(async (incoming, response) => {
    const route = served[incoming.url?.split(/[/?]/).at(4) ?? ''];
    if (incoming.method !== 'POST' || !route) return void response.writeHead(404).end();
    const request = new Request(`http://localhost${incoming.url}`, {
      method: 'POST',
      headers: /** @type {any} */ (incoming.headers),
      body: /** @type {any} */ (Readable.toWeb(incoming)),
      // @ts-expect-error a body that is a stream needs it
      duplex: 'half',
    });
    const answer = await route(request);
    const { headers } = incoming;
    if (!isProbe(incoming)) deliveries.push({ headers, status: answer.status });
    response.writeHead(answer.status, Object.fromEntries(answer.headers));
    response.end(Buffer.from(await answer.arrayBuffer()));
  });
  server.listen(port, '127.0.0.1');
  await once(server, 'listening');
  const stop = () => {
    server.closeAllConnections();
    server.close();
  };
  t.after(stop);
  const { port: bound } = /** @type {import('node:net').AddressInfo} */ (server.address());
  return { port: bound, deliveries, stop };
}

describe('a message', () => {
  test('is executed by the handler of its kind, as it was sent, and is gone then', async (t) => {
    /** @type {any[]} */
    const calls = [];
    const note =
      (/** @type {string} */ kind) =>
      async (/** @type {any[]} */ ...call) => {
        calls.push([kind, ...call]);
      };
    const { port, deliveries } = await app(t, { step: note('step'), flow: note('flow') });
    const world = await place(t)(port);
    await world.start();
    const runInput = { input: bytes('input\0'), list: [new Uint8Array(), null] };
    const flow = { runId: `wrun_${ulid()}`, runInput };
    const { messageId } = await world.queue('__wkf_workflow_workflow//./ä b%//main', flow, {
      headers: { traceparent: '00-trace' },
    });
    await until(() => isGone(messageId));
    const step = { workflowRunId: flow.runId, stepId: 'step_1' };
    const second = await world.queue('__wkf_step_s', step, { idempotencyKey: 'step_1' });
    await until(() => isGone(second.messageId));
    assert.deepEqual(calls, [
      ['flow', flow, { queueName: '__wkf_workflow_workflow//./ä b%//main', messageId, attempt: 1 }],
      ['step', step, { queueName: '__wkf_step_s', messageId: second.messageId, attempt: 1 }],
    ]);
    assert.equal(deliveries[0].headers.traceparent, '00-trace');
  });

  test('that failed is delivered again as the next attempt', async (t) => {
    /** @type {any[]} */
    const metas = [];
    const { port } = await app(t, {
      step: (_message, meta) => {
        metas.push(meta);
        if (metas.length < 3) throw new Error('not yet');
      },
    });
    const world = await place(t)(port);
    await world.start();
    const { messageId } = await world.queue(
      '__wkf_step_s',
      { stepId: 's' },
      { idempotencyKey: 's' },
    );
    await until(() => isGone(messageId));
    assert.deepEqual(
      metas.map((meta) => [meta.messageId, meta.attempt]),
      [1, 2, 3].map((attempt) => [messageId, attempt]),
    );
  });

  test('is delivered again when its handler asks for that, which is no failure', async (t) => {
    /** @type {any[]} */
    const metas = [];
    const answers = [{ timeoutSeconds: 0 }, { timeoutSeconds: 0.2 }, { timeoutSeconds: 1 }];
    const { port } = await app(t, {
      flow: (_message, meta) => {
        metas.push(meta);
        return answers[metas.length - 1];
      },
    });
    const world = await place(t)(port);
    await world.start();
    const { messageId } = await world.queue('__wkf_workflow_w', { runId: `wrun_${ulid()}` });
    await until(() => isGone(messageId));
    assert.deepEqual(
      metas.map((meta) => [meta.messageId, meta.attempt]),
      [1, 1, 1, 1].map((attempt) => [messageId, attempt]),
    );
  });

  test('of a key that waits or is being executed is not sent twice, by whatever process', async (t) => {
    const { open, opened } = gate();
    let executions = 0;
    const { port } = await app(t, {
      step: () => {
        executions += 1;
        return opened;
      },
    });
    const makeWorld = place(t);
    const [worker, other] = [await makeWorld(port), await makeWorld(port)];
    const send = (/** @type {World} */ world) =>
      world.queue('__wkf_step_s', { stepId: 's' }, { idempotencyKey: 's' });
    const waiting = await Promise.all([send(worker), send(other), send(worker)]);
    await worker.start();
    await other.start();
    await until(() => executions);
    const running = await Promise.all([send(worker), send(other)]);
    const ids = new Set([...waiting, ...running].map(({ messageId }) => messageId));
    assert.equal(ids.size, 1);
    open();
    await until(() => isGone([...ids][0]));
    assert.equal(executions, 1);
    const again = await send(other);
    await until(() => isGone(again.messageId));
    assert.equal(executions, 2);
  });

  test('that is to come later comes after those that are not', async (t) => {
    /** @type {string[]} */
    const order = [];
    const { port } = await app(t, { step: ({ stepId }) => void order.push(stepId) });
    const world = await place(t)(port);
    await world.start();
    await world.queue(
      '__wkf_step_s',
      { stepId: 'later' },
      { idempotencyKey: 'later', delaySeconds: 1.5 },
    );
    await world.queue('__wkf_step_s', { stepId: 'now' }, { idempotencyKey: 'now' });
    await until(() => order.length === 2);
    assert.deepEqual(order, ['now', 'later']);
  });

  test('is named with the namespace of the World, whatever name it was sent by', async (t) => {
    /** @type {string[]} */
    const names = [];
    const { port } = await app(t, {
      namespace: 'shop_',
      step: (_message, meta) => void names.push(meta.queueName),
    });
    const world = await place(t)(port, { namespace: 'shop' });
    await world.start();
    for (const name of ['__wkf_step_s', '__shop_wkf_step_s']) {
      const { messageId } = await world.queue(name, { stepId: name }, { idempotencyKey: name });
      await until(() => isGone(messageId));
    }
    assert.deepEqual(names, ['__shop_wkf_step_s', '__shop_wkf_step_s']);
  });

  test('of which there are many is executed once, by two Worlds at work', async (t) => {
    /** @type {Map<string, number>} */
    const executions = new Map();
    const count = (/** @type {any} */ { stepId }) => {
      executions.set(stepId, (executions.get(stepId) ?? 0) + 1);
    };
    const { port } = await app(t, { step: count });
    const makeWorld = place(t);
    const worlds = [await makeWorld(port), await makeWorld(port)];
    await Promise.all(worlds.map((world) => world.start()));
    const sent = await Promise.all(
      Array.from({ length: 200 }, (_, i) =>
        worlds[i % 2].queue('__wkf_step_s', { stepId: `${i}` }, { idempotencyKey: `${i}` }),
      ),
    );
    for (const { messageId } of sent) await until(() => isGone(messageId));
    assert.equal(executions.size, 200);
    assert.deepEqual(new Set(executions.values()), new Set([1]));
  });
});

test(`random messages: no run and no step is executed twice at once, and all end (TEST_SEED=${seed})`, async (t) => {
  const dice = random(seed);
  /** @type {Set<string>} */
  const active = new Set();
  /** @type {string[]} */
  const overlaps = [];
  let executions = 0;
  const execute = async (/** @type {any} */ { stepId, runId }) => {
    const key = stepId ?? runId;
    if (active.has(key)) overlaps.push(key);
    active.add(key);
    executions += 1;
    await sleep(dice(10));
    active.delete(key);
    if (dice(20) === 0) throw new Error('lost');
    if (dice(10) === 0) return { timeoutSeconds: dice(2) / 20 };
  };
  const { port } = await app(t, { step: execute, flow: execute });
  const makeWorld = place(t);
  const log = () => {};
  const worlds = await Promise.all([1, 2, 3].map(() => makeWorld(port, { log })));
  await Promise.all(worlds.slice(1).map((world) => world.start()));
  const run = ulid();
  const send = () => {
    const world = worlds[dice(worlds.length)];
    const runId = `wrun_${run}${dice(20)}`;
    const stepId = `step_${run}${dice(40)}`;
    const flow = (/** @type {object} */ more, options = {}) =>
      world.queue('__wkf_workflow_w', { runId, ...more }, options);
    const kind = dice(20);
    if (kind < 8) return world.queue('__wkf_step_s', { stepId }, { idempotencyKey: stepId });
    if (kind < 14) return flow({});
    if (kind < 19) return flow({}, { delaySeconds: dice(20) / 10 });
    return flow({ replayDivergence: { eventId: 'evnt', count: 1 } });
  };
  for (let batch = 0; batch < 100; batch++) {
    await Promise.all(Array.from({ length: 1 + dice(40) }, send));
  }
  await until(async () => {
    const { rows } = await database.pool.query(
      `SELECT FROM ${database.queueSchema}.job
       WHERE COALESCE(group_id, singleton_key) LIKE $1 AND state < 'completed' LIMIT 1`,
      [`%${run}%`],
    );
    return rows.length === 0;
  });
  t.diagnostic(`${executions} executions`);
  assert.deepEqual(overlaps, []);
});

describe('a World', () => {
  test('that was not started executes nothing', async (t) => {
    let executions = 0;
    const { port } = await app(t, { step: () => void (executions += 1) });
    const makeWorld = place(t);
    const producer = await makeWorld(port);
    const { messageId } = await producer.queue(
      '__wkf_step_s',
      { stepId: 's' },
      { idempotencyKey: 's' },
    );
    await producer.runs.list();
    assert.equal(await isGone(messageId), false);
    assert.equal(executions, 0);
    const worker = await makeWorld(port);
    await worker.start();
    await until(() => isGone(messageId));
    assert.equal(executions, 1);
  });

  test('waits for its app, and no attempt is lost meanwhile', async (t) => {
    const port = await freePort();
    const world = await place(t)(port);
    await world.start();
    const { messageId } = await world.queue(
      '__wkf_step_s',
      { stepId: 's' },
      { idempotencyKey: 's' },
    );
    await sleep(1500);
    /** @type {number[]} */
    const attempts = [];
    await app(t, { port, step: (_message, { attempt }) => void attempts.push(attempt) });
    await until(() => isGone(messageId));
    assert.deepEqual(attempts, [1]);
  });

  test('that closes lets what runs finish, which may still use it', async (t) => {
    const started = gate();
    const finish = gate();
    /** @type {any} */
    let written;
    const makeWorld = place(t);
    /** @type {World} */
    let world;
    const { port } = await app(t, {
      step: async () => {
        started.open();
        await finish.opened;
        written = await world.events.create(null, runCreated());
      },
    });
    world = await makeWorld(port);
    await world.start();
    const { messageId } = await world.queue(
      '__wkf_step_s',
      { stepId: 's' },
      { idempotencyKey: 's' },
    );
    await started.opened;
    let closed = false;
    const closing = world.close().then(() => {
      closed = true;
    });
    await sleep(300);
    assert.equal(closed, false);
    finish.open();
    await closing;
    assert.equal(written.run.status, 'pending');
    assert.equal(await isGone(messageId), true);
  });
});
