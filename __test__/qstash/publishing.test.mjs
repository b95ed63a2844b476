// What is sent to QStash. The official client, told the same, is the judge of the requests.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { inspect } from 'node:util';
import { Client } from '@upstash/qstash';
import { createWorld } from '../../index.js';
import { createQStashQueue } from '../../upstash.js';
import { APP, envelope, errorOf, NOWHERE, place, queueOptions, ROUTES, until } from './fixture.mjs';

/** @typedef {import('../../scripts/support/qstash.mjs').QStash} QStash */
/** @typedef {import('../../scripts/support/qstash.mjs').ApiRequest} ApiRequest */

/** What a request says of the connection and of who sends it, not of the message. */
const BESIDE = /^(accept.*|connection|content-length|host|sec-.*|user-agent|upstash-telemetry-.*)$/;
const RETRY_DELAY = 'min(900000, 2000 * pow(20, retried))';
const STEP = '__wkf_step_step//./src/orders.ts//ship it, 100 % – ünïcode 名前 ../..';
const FLOW = '__wkf_workflow_workflow//./src/orders.ts//order';
const ID = 'msg_01KXYZ';
/** Of the ten minutes for which a key holds. */
const period = () => Math.floor(Date.now() / 600_000);

/** @param {Record<string, string>} headers */
const essential = (headers) =>
  Object.fromEntries(
    Object.entries(headers)
      .filter(([name]) => !BESIDE.test(name))
      // What QStash assumes anyway.
      .filter(([name, value]) => !(name === 'upstash-method' && value === 'POST')),
  );

/** @param {ApiRequest} request */
function comparable({ method, path, headers, body }) {
  const text = body.toString('latin1');
  if (path !== '/v2/batch') return { method, path, headers: essential(headers), body: text };
  /** @type {any[]} */
  const messages = JSON.parse(body.toString());
  return {
    method,
    path,
    headers: essential(headers),
    messages: messages.map(({ headers: of, ...message }) => ({
      ...message,
      headers: essential(of),
    })),
  };
}

/** @param {QStash} qstash */
const clientOf = ({ url, token }) => new Client({ baseUrl: url, token, retry: false });

/** @param {Record<string, string>} headers */
const lowerCase = (headers) =>
  Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]));

/** What the official client is told of a message. @param {any} message */
function toOfficial({
  queueName,
  url,
  attempt = 1,
  messageId = ID,
  headers = {},
  body,
  ...message
}) {
  return {
    retries: 3,
    retryDelay: RETRY_DELAY,
    deduplicationId: messageId,
    ...message,
    url,
    headers: { ...headers, 'content-type': 'application/json' },
    body: envelope(body, { queueName, messageId, attempt, headers: lowerCase(headers) }),
  };
}

describe('a message is published as the official client would', () => {
  /** @type {Record<string, { push?: Record<string, any>, official?: Record<string, any>, queue?: object, target?: string, body?: any }>} */
  const table = {
    'a workflow message': {},
    'a step message, its queue with slashes, dots, spaces and unicode': {
      push: { queueName: STEP },
      official: { queueName: STEP, url: `${ROUTES}/step` },
    },
    'a delay of seconds': { push: { delaySeconds: 90 }, official: { delay: 90 } },
    'a delay of a fraction of a second, rounded up': {
      push: { delaySeconds: 0.25 },
      official: { delay: 1 },
    },
    'a delay of days': { push: { delaySeconds: 6 * 86_400 }, official: { delay: 6 * 86_400 } },
    'a delay of more than the plan allows, cut': {
      push: { delaySeconds: 30 * 86_400 },
      official: { delay: 7 * 86_400 },
    },
    'a delay of more than another plan allows, cut': {
      queue: { maxDelaySeconds: 60 },
      push: { delaySeconds: 61 },
      official: { delay: 60 },
    },
    'an idempotency key': {
      push: { idempotencyKey: 'step_01K' },
      official: { deduplicationId: `step_01K.${period()}` },
    },
    'headers of its own': {
      push: { headers: { traceparent: '00-a-b-01', 'X-Mine': 'a, b' } },
      official: { headers: { traceparent: '00-a-b-01', 'X-Mine': 'a, b' } },
    },
    'a later attempt': { push: { attempt: 7 }, official: { attempt: 7 } },
    'other retries': {
      queue: { retries: 5, retryDelay: '1000 * (1 + retried)' },
      official: { retries: 5, retryDelay: '1000 * (1 + retried)' },
    },
    'no retries': { queue: { retries: 0 }, official: { retries: 0 } },
    'an endpoint of its own': {
      target: `${APP}/api/queue`,
      push: { queueName: STEP },
      official: { queueName: STEP, url: `${APP}/api/queue/${encodeURIComponent(STEP)}` },
    },
    'an app below a path': {
      target: `${APP}/shop/`,
      official: { url: `${APP}/shop/.well-known/workflow/v1/flow` },
    },
    'text beyond ASCII': { body: '{"text":"ä 名前 😀 \\u0000"}' },
    'nearly a megabyte': { body: JSON.stringify('x'.repeat(2 ** 20 - 2000)) },
  };

  for (const [
    name,
    { push = {}, official = {}, queue, target = APP, body = '{"a":1}' },
  ] of Object.entries(table)) {
    test(name, async (t) => {
      const { qstash } = await place(t);
      const driver = createQStashQueue({ ...queueOptions(qstash), targetUrl: target, ...queue });
      const message = {
        id: 'x',
        queueName: FLOW,
        messageId: ID,
        attempt: 1,
        data: Buffer.from(body),
      };
      const all = { ...message, ...push };
      await (all.queueName === STEP ? driver.pushStep(all) : driver.pushFlow(all));
      const request = toOfficial({ queueName: FLOW, url: `${ROUTES}/flow`, body, ...official });
      await clientOf(qstash).publish(request);
      assert.equal(qstash.requests.length, 2);
      const [ours, theirs] = qstash.requests.map(comparable);
      assert.deepEqual(ours, theirs);
    });
  }

  test('messages that go out together', async (t) => {
    const { qstash, world, calls } = await place(t);
    const names = Array.from({ length: 30 }, (_, index) =>
      index % 2 ? `${FLOW}${index}` : `${STEP}${index}`,
    );
    const sent = await Promise.all(
      names.map((name, index) =>
        world.queue(/** @type {any} */ (name), /** @type {any} */ ({ n: index, text: 'ä"\n' })),
      ),
    );
    const batch = qstash.requests.map(comparable).find(({ messages }) => messages);
    // Some went ahead on their own.
    const together = (batch?.messages ?? []).map(({ body }) => JSON.parse(body).message.n);
    assert.ok(together.length > 1);
    await clientOf(qstash).batch(
      together.map((n) =>
        toOfficial({
          queueName: names[n],
          url: `${ROUTES}/${n % 2 ? 'flow' : 'step'}`,
          messageId: sent[n].messageId,
          body: JSON.stringify({ n, text: 'ä"\n' }),
        }),
      ),
    );
    const theirs = qstash.requests.at(-1);
    assert.ok(theirs);
    assert.deepEqual(batch, comparable(theirs));
    await until(() => calls.length === names.length);
    // The official client's were duplicates of ours.
    assert.deepEqual(
      calls.map(({ messageId }) => messageId).sort(),
      sent.map(({ messageId }) => messageId).sort(),
    );
  });

  test('a message with a delay', async (t) => {
    const { qstash, world } = await place(t);
    const message = { runId: 'wrun_1', list: [1, null, 'ä'] };
    const { messageId } = await world.queue(FLOW, message, { delaySeconds: 5 });
    const { 'upstash-forward-x-workflow-not-before': notBefore } = qstash.requests[0].headers;
    assert.ok(Math.abs(Number(notBefore) - Date.now() - 5000) < 5000, notBefore);
    await clientOf(qstash).publish(
      toOfficial({
        queueName: FLOW,
        url: `${ROUTES}/flow`,
        messageId,
        delay: 5,
        headers: { 'x-workflow-not-before': notBefore },
        body: JSON.stringify(message),
      }),
    );
    const [ours, theirs] = qstash.requests.map(comparable);
    assert.deepEqual(ours, theirs);
  });
});

describe('a deduplication id', () => {
  /** @param {import('node:test').TestContext} t @param {string} key */
  async function idOf(t, key) {
    const { qstash, world } = await place(t);
    await world.queue(FLOW, { runId: 'r' }, { idempotencyKey: key });
    return qstash.requests[0].headers['upstash-deduplication-id'];
  }

  test('is the key, for ten minutes, or the message id', async (t) => {
    assert.match(await idOf(t, 'step_01KXYZ'), /^step_01KXYZ\.\d+$/);
    const { qstash, world } = await place(t);
    const { messageId } = await world.queue(FLOW, { runId: 'r' });
    assert.equal(qstash.requests[0].headers['upstash-deduplication-id'], messageId);
  });

  test('stands for a key that QStash or HTTP do not take', async (t) => {
    const keys = ['a:b', 'a_b', 'a b', 'ä', 'a\nb', '', 'k'.repeat(1000), 'k'.repeat(1001)];
    const ids = await Promise.all(keys.map((key) => idOf(t, key)));
    assert.equal(new Set(ids.slice(0, 5)).size, 5);
    assert.notEqual(ids[6], ids[7]);
    for (const id of ids) assert.match(id, /^[\w.-]{1,100}$/);
    assert.equal(await idOf(t, 'a:b'), ids[0]);
  });
});

describe('several messages at once', () => {
  /** @param {Awaited<ReturnType<typeof place>>['world']} world @param {number} count @param {string} [name] */
  const send = (world, count, name = '__wkf_step_s') =>
    Promise.allSettled(
      Array.from({ length: count }, (_, n) =>
        world.queue(/** @type {any} */ (name), /** @type {any} */ ({ n, stepId: `s${n}` })),
      ),
    );

  test('take few requests, and each arrives once', async (t) => {
    const { qstash, world, calls } = await place(t);
    const results = await send(world, 500);
    assert.ok(results.every(({ status }) => status === 'fulfilled'));
    assert.ok(qstash.requests.length < 250, `${qstash.requests.length} requests`);
    await until(() => calls.length === 500 && qstash.isIdle());
    assert.equal(new Set(calls.map(({ message }) => message.n)).size, 500);
  });

  test('fail each on its own', async (t) => {
    const { qstash, world, calls } = await place(t, { standIn: { maxMessageBytes: 1000 } });
    const results = await Promise.allSettled(
      Array.from({ length: 20 }, (_, n) =>
        world.queue(
          '__wkf_step_s',
          /** @type {any} */ ({ n, text: n % 3 ? '' : 'x'.repeat(1000) }),
        ),
      ),
    );
    assert.ok(qstash.requests.some(({ path }) => path === '/v2/batch'));
    for (const [n, result] of results.entries()) {
      assert.equal(result.status, n % 3 ? 'fulfilled' : 'rejected', `${n}`);
      if (result.status === 'rejected') {
        assert.match(result.reason.message, /maxMessageSize/);
        assert.equal(result.reason.name, 'WorkflowWorldError');
        assert.ok(result.reason.status >= 500);
      }
    }
    await until(
      () => calls.length === results.filter(({ status }) => status === 'fulfilled').length,
    );
  });

  test('go one by one where the batch as a whole is refused', async (t) => {
    const { qstash, world, calls } = await place(t);
    qstash.setIntercept(({ path }) =>
      path === '/v2/batch' ? { status: 413, body: { error: 'too large' } } : undefined,
    );
    const results = await send(world, 20);
    assert.ok(results.every(({ status }) => status === 'fulfilled'));
    await until(() => calls.length === 20);
  });

  test('must be JSON, for nothing else can be told apart in the body that is signed', async (t) => {
    const { qstash } = await place(t);
    const driver = createQStashQueue(queueOptions(qstash));
    const message = { id: 's', queueName: '__wkf_step_s', messageId: 'msg_1', attempt: 1 };
    for (const data of ['', 'hello', '1,"attempt":48', '{}}', Buffer.from([0x22, 0xff, 0x22])]) {
      const error = await errorOf(driver.pushStep({ ...message, data: Buffer.from(data) }));
      assert.deepEqual([error.name, error.status], ['WorkflowWorldError', 400], error.message);
    }
    assert.deepEqual(qstash.requests, []);
  });

  test('that QStash does not answer for have failed', async (t) => {
    const { qstash, world } = await place(t);
    qstash.setIntercept(({ path }) =>
      path === '/v2/batch' ? { body: [{ messageId: 'm' }] } : undefined,
    );
    const results = await send(world, 20);
    const failed = results.flatMap((result) =>
      result.status === 'rejected' ? [result.reason] : [],
    );
    assert.ok(failed.length > 10);
    for (const { status, message } of failed) {
      assert.equal(status, 503);
      assert.match(message, /did not say/);
    }
  });
});

describe('when QStash does not take a message', () => {
  const send = (/** @type {Awaited<ReturnType<typeof place>>['world']} */ world) =>
    world.queue(FLOW, { runId: 'r' });

  /** @param {QStash} qstash @param {any} error */
  function assertSecret(qstash, error) {
    const text = inspect(error, { depth: null });
    for (const secret of [qstash.token, ...Object.values(qstash.keys())]) {
      assert.ok(!text.includes(secret), text);
    }
  }

  for (const status of [401, 403]) {
    test(`a refused token (${status}) is said to be one, and not tried again`, async (t) => {
      const { qstash, world } = await place(t);
      qstash.setIntercept(() => ({ status, body: { error: 'no' } }));
      const error = await errorOf(send(world));
      assert.equal(error.name, 'WorkflowWorldError');
      assert.match(error.message, /QSTASH_TOKEN/);
      // The SDK hands its work back to the queue.
      assert.ok(error.status >= 500);
      assert.equal(error.cause.code, 'CONFIGURATION');
      assert.equal(qstash.requests.length, 1);
      assertSecret(qstash, error);
    });
  }

  test('a token that is wrong is refused', async (t) => {
    const { qstash, world } = await place(t, { queue: { token: 'wrong-token' } });
    const error = await errorOf(send(world));
    assert.match(error.message, /QSTASH_TOKEN/);
    assert.ok(!inspect(error).includes('wrong-token'));
    assert.equal(qstash.waiting.size, 0);
  });

  for (const status of [400, 404, 412, 422]) {
    test(`its reason (${status}) is told, and it is not tried again`, async (t) => {
      const { qstash, world } = await place(t);
      qstash.setIntercept(() => ({ status, body: { error: 'quota something exceeded' } }));
      const error = await errorOf(send(world));
      assert.equal(error.cause.code, 'QUEUE');
      assert.match(error.message, /quota something exceeded/);
      assert.equal(qstash.requests.length, 1);
    });
  }

  test('more retries than the plan has are a reason', async (t) => {
    const { world } = await place(t, { queue: { retries: 6 } });
    assert.match((await errorOf(send(world))).message, /quota maxRetries exceeded/);
  });

  test('a longer delay than the plan has is a reason', async (t) => {
    const { world } = await place(t, { queue: { maxDelaySeconds: 8 * 86_400 } });
    const error = await errorOf(world.queue(FLOW, { runId: 'r' }, { delaySeconds: 8 * 86_400 }));
    assert.match(error.message, /quota maxDelay exceeded/);
  });

  /** What 429 says, by limit. @type {Record<string, (seconds: number) => Record<string, string>>} */
  const limits = {
    'Retry-After': (seconds) => ({ 'Retry-After': `${seconds}` }),
    'the daily limit': (seconds) => ({
      'RateLimit-Limit': '1000',
      'RateLimit-Remaining': '0',
      'RateLimit-Reset': `${Math.ceil(Date.now() / 1000) + seconds}`,
      'Burst-RateLimit-Limit': '100',
      'Burst-RateLimit-Remaining': '50',
      'Burst-RateLimit-Reset': `${Math.ceil(Date.now() / 1000) + 1}`,
    }),
    'the limit per second': (seconds) => ({
      'RateLimit-Limit': '1000',
      'RateLimit-Remaining': '500',
      'RateLimit-Reset': `${Math.ceil(Date.now() / 1000) + 40_000}`,
      'Burst-RateLimit-Limit': '100',
      'Burst-RateLimit-Remaining': '0',
      'Burst-RateLimit-Reset': `${Math.ceil(Date.now() / 1000) + seconds}`,
    }),
  };

  for (const [name, headersFor] of Object.entries(limits)) {
    test(`429 of a moment (${name}) is waited for`, async (t) => {
      const { qstash, world, calls } = await place(t);
      qstash.setIntercept(() =>
        qstash.requests.length === 1 ? { status: 429, headers: headersFor(1) } : undefined,
      );
      await send(world);
      assert.equal(qstash.requests.length, 2);
      await until(() => calls.length === 1);
    });

    test(`429 of longer (${name}) is told, with its time`, async (t) => {
      const { qstash, world } = await place(t);
      qstash.setIntercept(() => ({
        status: 429,
        headers: headersFor(3600),
        body: { error: 'limit' },
      }));
      const error = await errorOf(send(world));
      assert.equal(error.name, 'ThrottleError');
      assert.equal(error.status, 429);
      assert.ok(error.retryAfter > 3000 && error.retryAfter <= 3602, `${error.retryAfter}`);
      assert.equal(qstash.requests.length, 1);
    });
  }

  test('429 without a time is tried again, for a while', async (t) => {
    const { qstash, world } = await place(t);
    qstash.setIntercept(() => (qstash.requests.length === 1 ? { status: 429 } : undefined));
    await send(world);
    qstash.setIntercept(() => ({ status: 429 }));
    assert.equal((await errorOf(send(world))).name, 'ThrottleError');
  });

  test('a failure of a moment goes unnoticed', async (t) => {
    for (const answer of [
      { status: 500 },
      { status: 502, body: '<html>' },
      { status: 503 },
      { hangUp: true },
    ]) {
      const { qstash, world, calls } = await place(t);
      qstash.setIntercept(() => (qstash.requests.length <= 2 ? answer : undefined));
      await send(world);
      assert.equal(qstash.requests.length, 3);
      await until(() => calls.length === 1);
    }
  });

  test('a failure of longer is told, after a bounded number of tries', async (t) => {
    const { qstash, world } = await place(t);
    qstash.setIntercept(() => ({ status: 503, body: { error: 'maintenance' } }));
    const error = await errorOf(send(world));
    assert.equal(error.status, 503);
    assert.match(error.message, /503.*maintenance/);
    assert.ok(
      qstash.requests.length > 2 && qstash.requests.length < 12,
      `${qstash.requests.length}`,
    );
    assertSecret(qstash, error);
  });

  test('one that refuses connections is waited for, for a while', async (t) => {
    const { qstash, world, calls } = await place(t);
    await qstash.down();
    const sending = send(world);
    setTimeout(qstash.up, 300);
    await sending;
    await until(() => calls.length === 1);
    await qstash.down();
    const error = await errorOf(send(world));
    assert.equal(error.status, 503);
    assert.match(error.message, /not reachable/);
    await qstash.up();
    await send(world);
  });

  test('an answer that got lost costs nothing: the message is there once', async (t) => {
    const { qstash, world, calls } = await place(t);
    const lost = () => (qstash.requests.length % 2 ? { done: true, hangUp: true } : undefined);
    qstash.setIntercept(lost);
    const { messageId } = await send(world);
    assert.equal(qstash.requests.length, 2);
    await until(() => calls.length > 0 && qstash.isIdle());
    assert.deepEqual(
      calls.map((call) => call.messageId),
      [messageId],
    );
  });

  test('an answer to many that got lost costs nothing either', async (t) => {
    const { qstash, world, calls } = await place(t, {
      standIn: { faults: { seed: 3, lose: 0.3, refuse: 0.2 } },
    });
    await Promise.all(
      Array.from({ length: 200 }, (_, n) =>
        world.queue('__wkf_step_s', /** @type {any} */ ({ n })),
      ),
    );
    await until(() => calls.length >= 200 && qstash.isIdle());
    assert.equal(calls.length, 200);
  });
});

test('createQStashQueue is a driver for a plain createWorld', async (t) => {
  const { qstash } = await place(t);
  const world = createWorld({
    connectionString: NOWHERE,
    queueFactory: () => createQStashQueue(queueOptions(qstash)),
  });
  const { messageId } = await world.queue(FLOW, { runId: 'r' });
  await until(() => qstash.deliveries.length === 1);
  const [{ body, status, answer }] = qstash.deliveries;
  assert.equal(JSON.parse(body.toString()).messageId, messageId);
  assert.deepEqual([status, answer], [200, '{"ok":true}']);
});
