// The same with the stand-in and, where there is one, with QStash itself or its development server:
//
//   QSTASH_DEV_URL=http://127.0.0.1:8080 QSTASH_TOKEN=… npm test -- qstash
//   QSTASH_TOKEN=… QSTASH_TARGET_URL=https://my.tunnel QSTASH_TARGET_PORT=3000 npm test -- qstash
//
// The target leads to QSTASH_TARGET_PORT of this machine; a development server on it needs none.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { describe, test } from 'node:test';
import { Client } from '@upstash/qstash';
import { startQStash } from '../../scripts/support/qstash.mjs';
import { createPostgresUpstashWorld } from '../../upstash.js';
import { NOWHERE, real, routes, serve, until } from './fixture.mjs';

/** @typedef {import('./fixture.mjs').Call} Call */
/** @typedef {{ baseUrl: string, token: string, currentSigningKey: string, nextSigningKey: string, port?: number, targetUrl?: string }} Account */

const withoutReal =
  real.token && (real.url || real.targetUrl)
    ? false
    : 'QSTASH_TOKEN with QSTASH_DEV_URL, or with QSTASH_TARGET_URL, names a QStash to test with';

suite('the stand-in', async (t) => {
  const { url: baseUrl, token, keys } = await startQStash(t);
  return { baseUrl, token, currentSigningKey: keys().current, nextSigningKey: keys().next };
});

suite(
  'QStash itself',
  async () => {
    const { url: baseUrl = 'https://qstash.upstash.io', token = '' } = real;
    const answer = await fetch(`${baseUrl}/v2/keys`, {
      headers: { authorization: `Bearer ${token}` },
    });
    assert.equal(answer.status, 200, `${baseUrl} does not take QSTASH_TOKEN`);
    const { current, next } = /** @type {any} */ (await answer.json());
    return {
      baseUrl,
      token,
      currentSigningKey: current,
      nextSigningKey: next,
      port: real.targetPort,
      targetUrl: real.targetUrl,
    };
  },
  withoutReal,
);

/**
 * @param {string} name
 * @param {(t: import('node:test').TestContext) => Promise<Account>} open
 * @param {string | false} [skip]
 */
function suite(name, open, skip = false) {
  /**
   * @param {import('node:test').TestContext} t
   * @param {{ path?: string, queue?: import('../../upstash.js').QStashOptions, handle?: (call: Call) => unknown }} [options]
   */
  async function setUp(t, { path = '', queue, handle = () => {} } = {}) {
    /** @type {Call[]} */
    const calls = [];
    const { port, targetUrl, ...account } = await open(t);
    /** @type {(request: Request) => Promise<Response>} */
    let receive = async () => new Response(null, { status: 503 });
    const app = await serve(t, (request) => receive(request), { port });
    const qstash = { ...account, targetUrl: (targetUrl ?? app) + path, ...queue };
    const world = createPostgresUpstashWorld({ databaseUrl: NOWHERE, qstash });
    // An account may still have messages of earlier runs for this target.
    const own = randomUUID();
    receive = routes(world, async (call) => {
      if (call.message.own !== own) return undefined;
      calls.push(call);
      return handle(call);
    });
    /** @param {string} queueName @param {object} [message] @param {object} [options] */
    const send = (queueName, message, options) =>
      world.queue(
        /** @type {any} */ (queueName),
        /** @type {any} */ ({ ...message, own }),
        options,
      );
    return { app, calls, send, qstash };
  }

  describe(name, { skip }, () => {
    for (const path of ['', '/queue']) {
      test(`delivers to ${path || 'the routes of the SDK'}, whatever the queue is called`, async (t) => {
        const { calls, send } = await setUp(t, { path });
        for (const id of ['step//./src/a.ts//b', 'ünï 名前 100 %', '../a?b#c']) {
          const bytes = Uint8Array.from({ length: 256 }, (_, n) => n);
          const { messageId } = await send(`__wkf_step_${id}`, { stepId: randomUUID(), id, bytes });
          const call = await until(() => calls.find(({ message }) => message.id === id));
          assert.deepEqual(
            [call.kind, call.queueName, call.messageId, call.attempt],
            ['step', `__wkf_step_${id}`, messageId, 1],
          );
          assert.deepEqual(call.message.bytes, bytes);
        }
      });
    }

    test('delivers many at once', async (t) => {
      const { calls, send } = await setUp(t);
      const sent = await Promise.all(
        Array.from({ length: 20 }, (_, n) => send('__wkf_step_s', { stepId: `s${n}`, n })),
      );
      await until(() => new Set(calls.map(({ messageId }) => messageId)).size === 20);
      const ids = new Map(calls.map(({ message, messageId }) => [message.n, messageId]));
      assert.deepEqual(
        sent.map(({ messageId }) => messageId),
        sent.map((_, n) => ids.get(n)),
      );
    });

    test('delivers no earlier than told to', async (t) => {
      const { calls, send } = await setUp(t);
      const start = Date.now();
      await send('__wkf_workflow_w', {}, { delaySeconds: 2 });
      await until(() => calls.length === 1);
      assert.ok(Date.now() - start >= 2000);
    });

    test('delivers what has one key once', async (t) => {
      const { calls, send } = await setUp(t);
      const idempotencyKey = randomUUID();
      await send('__wkf_step_s', { n: 1 }, { idempotencyKey });
      await send('__wkf_step_s', { n: 2 }, { idempotencyKey });
      await send('__wkf_step_s', { n: 3 }, { idempotencyKey: `a:${idempotencyKey}` });
      await until(() => calls.some(({ message }) => message.n === 3));
      assert.ok(!calls.some(({ message }) => message.n === 2));
    });

    test('delivers again what fails, with the attempt', async (t) => {
      const { calls, send } = await setUp(t, {
        queue: { retries: 1, retryDelay: '1000' },
        handle({ attempt }) {
          if (attempt < 4) throw new Error('not yet');
        },
      });
      await send('__wkf_workflow_w');
      await until(() => calls.length >= 4);
      assert.deepEqual(
        calls.map(({ attempt }) => attempt),
        [1, 2, 3, 4],
      );
    });

    test('delivers a waiting message again', async (t) => {
      let waited = false;
      const { calls, send } = await setUp(t, {
        queue: { maxDelaySeconds: 1 },
        handle() {
          if (waited) return undefined;
          waited = true;
          return { timeoutSeconds: 3 };
        },
      });
      const start = Date.now();
      await send('__wkf_workflow_w');
      await until(() => calls.length === 2);
      assert.ok(Date.now() - start >= 3000);
    });

    test('gives up what is none', async (t) => {
      const { qstash } = await setUp(t);
      const { baseUrl, token, targetUrl } = qstash;
      const client = new Client({ baseUrl, token, retry: false, enableTelemetry: false });
      const { messageId } = await client.publishJSON({
        url: `${targetUrl}/.well-known/workflow/v1/flow`,
        body: {},
        headers: { 'x-vqs-queue-name': '__wkf_workflow_w' },
        retries: 3,
      });
      const dead = await until(async () => {
        const { messages } = await client.dlq.listMessages({ filter: { messageId } });
        return messages.find((message) => message.messageId === messageId);
      });
      assert.equal(dead.responseStatus, 489);
    });

    test('lets nobody else in', async (t) => {
      const { app, calls } = await setUp(t);
      const answer = await fetch(`${app}/.well-known/workflow/v1/flow`, {
        method: 'POST',
        headers: {
          'x-vqs-queue-name': '__wkf_workflow_w',
          'x-vqs-message-id': 'msg_1',
          'x-vqs-message-attempt': '1',
          'x-workflow-secret': 'secret',
        },
        body: '{}',
      });
      assert.equal(answer.status, 401);
      assert.equal(calls.length, 0);
    });
  });
}
