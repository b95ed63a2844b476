// The target of deliveries: only the handler of a World that knows the worker's token settles a message.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { Readable } from 'node:stream';
import { after, describe, test } from 'node:test';
import { createPgBossHttpProxyQueue } from '../../index.js';
import { runCreated } from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { isGone, isProbe, place, routes, TOKEN, until } from './fixture.mjs';

/** @typedef {import('node:test').TestContext} Test */
/** @typedef {import('./fixture.mjs').World} World */
/** @typedef {(request: Request) => Promise<Response>} Route */

const database = await testDatabase({ after });

/**
 * An app whose routes are a World's, and who may stand in front of it.
 *
 * @param {Test} t
 * @param {{ token?: string, step?: import('./fixture.mjs').Handler }} [parts]
 */
async function app(t, { token = TOKEN, step } = {}) {
  /** @type {Record<string, Route>} */
  let served = routes({ token, step });
  const state = {
    delivered: 0,
    /** @type {(() => Response) | undefined} */
    answer: undefined,
    /** As an app does that was deployed anew. @param {string} token */
    changeToken: (token) => {
      served = routes({ token, step });
    },
  };
  const server = createServer(async (incoming, outgoing) => {
    const request = new Request(`http://localhost${incoming.url}`, {
      method: incoming.method,
      headers: /** @type {any} */ (incoming.headers),
      body: /** @type {any} */ (Readable.toWeb(incoming)),
      // @ts-expect-error a body that is a stream needs it
      duplex: 'half',
    });
    if (!isProbe(request)) state.delivered += 1;
    const route = served[incoming.url?.split('/').at(-1) ?? ''];
    const response = state.answer?.() ?? (await route(request));
    outgoing.writeHead(response.status, Object.fromEntries(response.headers));
    outgoing.end(Buffer.from(await response.arrayBuffer()));
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  return { port, state };
}

/** @param {World} world @param {string} stepId */
const sendStep = (world, stepId) =>
  world.queue('__wkf_step_s', { stepId }, { idempotencyKey: stepId });

/** @param {World} world @returns {Promise<any>} */
const healthOf = (world) => /** @type {any} */ (world).health();

/** @param {World} world */
async function isOpen(world) {
  const { healthy, queue } = await healthOf(world);
  return healthy && queue.deliveries.targetReady;
}

describe('an app behind which another one answers', () => {
  const html = { headers: { 'content-type': 'text/html' } };
  /** @type {Record<string, [() => Response, RegExp]>} */
  const others = {
    'a login page': [() => new Response('<html>Who are you?</html>', html), /APP_URL/],
    'JSON of another app': [() => Response.json({ ok: true }), /x-workflow-world.*APP_URL/],
    'not found': [() => new Response('<html>Not Found</html>', { status: 404 }), /APP_URL/],
    'method not allowed': [() => new Response(null, { status: 405 }), /APP_URL/],
    'a redirect': [() => Response.redirect('http://localhost/login', 302), /APP_URL/],
    'a gateway’s 401': [() => new Response('', { status: 401 }), /APP_URL/],
    'a gateway’s 502': [() => new Response('busy', { status: 502 }), /502/],
    'a CDN’s 521': [() => new Response('', { status: 521 }), /521/],
    'a CDN’s 530': [() => new Response('1033', { status: 530 }), /530/],
  };
  for (const [name, [answer, hint]] of Object.entries(others)) {
    test(`(${name}) has messages wait, says why, and goes on by itself`, async (t) => {
      /** @type {number[]} */
      const attempts = [];
      const { port, state } = await app(t, {
        step: (_message, { attempt }) => void attempts.push(attempt),
      });
      /** @type {any[]} */
      const lines = [];
      const world = await place(
        t,
        database,
      )({
        queueFactory: () => createPgBossHttpProxyQueue({ port }),
        log: (/** @type {any} */ line) => lines.push(line),
      });
      await world.start();
      await until(() => isOpen(world));
      state.answer = answer;
      const { messageId } = await sendStep(world, 's');
      await until(() => lines.length);
      const health = await healthOf(world);
      assert.deepEqual([health.healthy, health.queue.targetReachable], [false, false]);
      assert.match(health.queue.targetError, hint);
      assert.match(lines[0].error, hint);
      assert.equal(lines[0].level, 'warn');
      state.answer = undefined;
      await until(() => isGone(database, messageId));
      assert.deepEqual(attempts, [1], 'no attempt was spent');
      assert.equal(state.delivered, 2, 'while it was away only probes were sent');
      await until(() => isOpen(world));
      assert.deepEqual(
        lines.map(({ message }) => message.split(';')[0]),
        ['The target does not take deliveries', 'The target takes deliveries again'],
      );
    });
  }

  test('from the start gets no message at all, and the log tells', async (t) => {
    const { port, state } = await app(t);
    state.answer = () => new Response(null, { status: 404 });
    /** @type {any[]} */
    const lines = [];
    const world = await place(
      t,
      database,
    )({
      queueFactory: () => createPgBossHttpProxyQueue({ port }),
      log: (/** @type {any} */ line) => lines.push(line),
    });
    await world.start();
    const { messageId } = await sendStep(world, 's');
    await until(() => lines.length);
    assert.match(lines[0].error, /404.*WORKFLOW_POSTGRES_APP_URL/);
    assert.equal(state.delivered, 0);
    state.answer = undefined;
    await until(() => isGone(database, messageId));
  });

  test('for one message only goes on with the others', async (t) => {
    const { port, state } = await app(t);
    let refused = 0;
    /** @type {any[]} */
    const lines = [];
    const world = await place(
      t,
      database,
    )({
      queueFactory: () => createPgBossHttpProxyQueue({ port }),
      log: (/** @type {any} */ line) => lines.push(line),
    });
    await world.start();
    await until(() => isOpen(world));
    const server = state;
    server.answer = () => {
      refused += 1;
      server.answer = undefined;
      return new Response('too large', { status: 413 });
    };
    const first = await sendStep(world, 'large');
    await until(() => refused);
    const others = await Promise.all(['a', 'b', 'c'].map((stepId) => sendStep(world, stepId)));
    for (const { messageId } of others) await until(() => isGone(database, messageId));
    const { healthy, queue } = await healthOf(world);
    assert.deepEqual([healthy, queue.targetReachable], [false, true]);
    assert.match(queue.targetError, /413.*too large/);
    assert.match(lines[0].message, /did not take a message/);
    const { rows } = await database.pool.query(
      `SELECT retry_count, start_after - now() < interval '7 seconds' AS soon
       FROM ${database.queueSchema}.job WHERE data ->> 'messageId' = $1`,
      [first.messageId],
    );
    assert.deepEqual(rows, [{ retry_count: 0, soon: true }]);
    await until(() => isGone(database, first.messageId));
  });
});

describe('a worker with another token than the app', () => {
  test('gives no message to it, names the setting, and is not well', async (t) => {
    let executions = 0;
    const { port, state } = await app(t, {
      token: 'another-token-of-the-tests',
      step: () => void (executions += 1),
    });
    /** @type {any[]} */
    const lines = [];
    const world = await place(
      t,
      database,
    )({
      queueFactory: () => createPgBossHttpProxyQueue({ port }),
      log: (/** @type {any} */ line) => lines.push(line),
    });
    await world.start();
    await sendStep(world, 's');
    await until(() => lines.length);
    assert.match(lines[0].error, /401.*WORKFLOW_POSTGRES_SECURITY_TOKEN/);
    const { healthy, queue } = await healthOf(world);
    assert.equal(healthy, false);
    assert.match(queue.targetError, /WORKFLOW_POSTGRES_SECURITY_TOKEN/);
    assert.deepEqual([state.delivered, executions], [0, 0]);
  });

  for (const when of ['from its start on', 'since the app was deployed anew']) {
    test(`(${when}) leaves the messages to a worker that has the right one`, async (t) => {
      let executions = 0;
      const { port, state } = await app(t, { step: () => void (executions += 1) });
      const other = await app(t);
      const makeWorld = place(t, database);
      const log = () => {};
      const deliveringTo = (/** @type {number} */ to) =>
        makeWorld({ log, queueFactory: () => createPgBossHttpProxyQueue({ port: to }) });
      const [wrong, right] = [await deliveringTo(other.port), await deliveringTo(port)];
      const later = when !== 'from its start on';
      if (!later) other.state.changeToken('another-token-of-the-tests');
      await Promise.all([wrong.start(), right.start()]);
      await until(() => isOpen(right));
      if (later) {
        await until(() => isOpen(wrong));
        other.state.changeToken('another-token-of-the-tests');
      }
      const start = Date.now();
      const sent = await Promise.all(
        Array.from({ length: 40 }, (_, i) => sendStep(i % 2 ? wrong : right, `step_${i}`)),
      );
      for (const { messageId } of sent) await until(() => isGone(database, messageId));
      const took = Date.now() - start;
      assert.equal(executions, 40);
      assert.equal(state.delivered, 40);
      assert.ok(other.state.delivered <= (later ? 40 : 0), `${other.state.delivered} tries`);
      assert.ok(took < 10_000, `${took} ms`);
    });
  }
});
