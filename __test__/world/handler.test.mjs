import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { createWorld } from '../../index.js';

const TOKEN = 'token-of-the-tests';
// Nobody listens there: what is tested here needs no database.
const NOWHERE = 'postgres://nobody:hunter2@127.0.0.1:1/nothing';

/** @param {Record<string, unknown>} [options] */
const worldOf = (options) =>
  createWorld({ connectionString: NOWHERE, securityToken: TOKEN, ...options });

const world = worldOf();

/** @param {Record<string, string | undefined>} [headers] */
function headersOf(headers) {
  const all = {
    'content-type': 'application/json',
    'x-workflow-secret': TOKEN,
    'x-vqs-queue-name': '__wkf_step_s',
    'x-vqs-message-id': 'msg_1',
    'x-vqs-message-attempt': '1',
    ...headers,
  };
  return Object.entries(all).flatMap(([name, value]) =>
    value === undefined ? [] : [/** @type {[string, string]} */ ([name, value])],
  );
}

/**
 * @param {Record<string, string | undefined>} [headers]
 * @param {BodyInit | null} [body]
 */
const delivery = (headers, body = '{"stepId":"step_1"}') =>
  new Request('http://localhost/.well-known/workflow/v1/step', {
    method: 'POST',
    headers: headersOf(headers),
    body,
    // @ts-expect-error a body that is a stream needs it
    duplex: 'half',
  });

/** A body that tells how much of it was read. @param {number} chunks of a megabyte */
function watchedBody(chunks) {
  let pulls = 0;
  const body = new ReadableStream(
    {
      pull(controller) {
        pulls += 1;
        if (pulls > chunks) controller.close();
        else controller.enqueue(new Uint8Array(2 ** 20).fill(32));
      },
    },
    { highWaterMark: 0 },
  );
  return { body, pulls: () => pulls };
}

/**
 * Delivers to a handler that notes what it gets.
 *
 * @param {Request} request
 * @param {{ prefix?: string, result?: any, to?: ReturnType<typeof worldOf> }} [options]
 */
async function deliver(request, { prefix = '__wkf_step_', result, to = world } = {}) {
  /** @type {any[][]} */
  const calls = [];
  const { createQueueHandler } = to;
  const handle = createQueueHandler(/** @type {any} */ (prefix), async (...call) => {
    calls.push(call);
    return typeof result === 'function' ? result() : result;
  });
  const response = await handle(request);
  return { status: response.status, body: JSON.parse(await response.text()), calls };
}

describe('a delivery without the token', () => {
  for (const [name, token] of Object.entries({
    missing: undefined,
    empty: '',
    'cut off': TOKEN.slice(0, -1),
    'one character longer': `${TOKEN}x`,
    'in other letters': TOKEN.toUpperCase(),
    'the default one': 'secret',
    'a list with it': `${TOKEN},other`,
  })) {
    test(`(${name}) is answered 401, its body unread and nothing executed`, async () => {
      const { body, pulls } = watchedBody(1);
      const request = delivery({ 'x-workflow-secret': token }, body);
      const { status, calls, body: answer } = await deliver(request);
      assert.equal(status, 401);
      assert.equal(calls.length, 0);
      assert.equal(pulls(), 0);
      assert.equal(request.bodyUsed, false);
      assert.ok(!JSON.stringify(answer).includes(TOKEN));
    });
  }

  test('is answered 401 whatever else is wrong with it', async () => {
    const nothing = Object.fromEntries(headersOf().map(([name]) => [name, undefined]));
    assert.equal((await deliver(delivery(nothing, null))).status, 401);
  });

  test('is accepted with any token of a list, and with no part of the list', async () => {
    const to = worldOf({ securityToken: 'new-token, old-token' });
    for (const [token, expected] of /** @type {const} */ ([
      ['new-token', 200],
      ['old-token', 200],
      ['new-token, old-token', 401],
      ['new', 401],
      [TOKEN, 401],
    ])) {
      const { status } = await deliver(delivery({ 'x-workflow-secret': token }), { to });
      assert.equal(status, expected, token);
    }
  });
});

describe('a delivery that is not one is answered 400 and not executed', () => {
  /** @type {Record<string, Record<string, string | undefined>>} */
  const wrongHeaders = {
    'no queue name': { 'x-vqs-queue-name': undefined },
    'no message id': { 'x-vqs-message-id': undefined },
    'no attempt': { 'x-vqs-message-attempt': undefined },
    'attempt 0': { 'x-vqs-message-attempt': '0' },
    'attempt -1': { 'x-vqs-message-attempt': '-1' },
    'attempt 1.5': { 'x-vqs-message-attempt': '1.5' },
    'attempt x': { 'x-vqs-message-attempt': 'x' },
    'an empty attempt': { 'x-vqs-message-attempt': '' },
    'another kind of queue': { 'x-vqs-queue-name': '__wkf_workflow_w' },
    'another namespace': { 'x-vqs-queue-name': '__other_wkf_step_s' },
    'no queue': { 'x-vqs-queue-name': 'step' },
    'a queue without a name': { 'x-vqs-queue-name': '__wkf_step_' },
    'a name that is not encoded': { 'x-vqs-queue-name': '__wkf_step_%E0%A4%A' },
  };
  for (const [name, headers] of Object.entries(wrongHeaders)) {
    test(name, async () => {
      const { status, calls, body } = await deliver(delivery(headers));
      assert.deepEqual([status, calls], [400, []]);
      assert.equal(typeof body.error, 'string');
    });
  }

  for (const [name, content] of /** @type {const} */ ([
    ['no body', null],
    ['an empty body', ''],
    ['half a body', '{"stepId":'],
    ['no JSON', 'hello'],
  ])) {
    test(name, async () => {
      const { status, calls } = await deliver(delivery({}, content));
      assert.deepEqual([status, calls], [400, []]);
    });
  }

  test('a body that says that it is too large, unread', async () => {
    const { body, pulls } = watchedBody(1);
    const { status, calls } = await deliver(delivery({ 'content-length': `${2 ** 40}` }, body));
    assert.deepEqual([status, calls, pulls()], [400, [], 0]);
  });

  test('a body that turns out to be too large, read no further', async () => {
    const { body, pulls } = watchedBody(1000);
    const { status, calls } = await deliver(delivery({}, body));
    assert.deepEqual([status, calls], [400, []]);
    assert.ok(pulls() < 100, `${pulls()} MB were read`);
  });

  test('a body that breaks off', async () => {
    const body = new ReadableStream({ pull: (controller) => controller.error(new Error('reset')) });
    const { status, calls } = await deliver(delivery({}, body));
    assert.deepEqual([status, calls], [400, []]);
  });
});

describe('a delivery', () => {
  test('reaches the handler with what the headers tell', async () => {
    const { status, body, calls } = await deliver(
      delivery({ 'x-vqs-message-id': 'msg_7', 'x-vqs-message-attempt': '49' }),
    );
    assert.deepEqual([status, body], [200, { ok: true }]);
    assert.deepEqual(calls, [
      [{ stepId: 'step_1' }, { queueName: '__wkf_step_s', messageId: 'msg_7', attempt: 49 }],
    ]);
  });

  test('is told again after the seconds that the handler asks for', async () => {
    for (const timeoutSeconds of [0, 1, 0.25, 86_400]) {
      const { status, body } = await deliver(delivery(), { result: { timeoutSeconds } });
      assert.deepEqual([status, body], [200, { timeoutSeconds }]);
    }
    for (const result of [
      undefined,
      null,
      {},
      { timeoutSeconds: undefined },
      { timeoutSeconds: -1 },
    ]) {
      const { status, body } = await deliver(delivery(), { result });
      assert.deepEqual([status, body], [200, { ok: true }]);
    }
    const tenYears = 315_360_000;
    for (const timeoutSeconds of [1e19, Number.MAX_VALUE, Number.POSITIVE_INFINITY]) {
      const { body } = await deliver(delivery(), { result: { timeoutSeconds } });
      assert.deepEqual(body, { timeoutSeconds: tenYears }, `${timeoutSeconds}`);
    }
    for (const timeoutSeconds of [Number.NEGATIVE_INFINITY, '5']) {
      const { body } = await deliver(delivery(), { result: { timeoutSeconds } });
      assert.deepEqual(body, { ok: true }, `${timeoutSeconds}`);
    }
    const { body } = await deliver(delivery(), { result: { timeoutSeconds: Number.NaN } });
    assert.deepEqual(body, { timeoutSeconds: 0 });
  });

  test('whose handler throws is answered 500', async () => {
    for (const thrown of [new Error('lost'), 'lost', undefined]) {
      const result = () => {
        throw thrown;
      };
      const { status, body } = await deliver(delivery(), { result });
      assert.equal(status, 500);
      assert.equal(typeof body, 'string');
      if (thrown) assert.match(body, /lost/);
    }
  });

  test('carries any queue name', async () => {
    for (const id of ['step//./src/a.ts//b', 'ünï 100% #1', 'a\nb', '名前', '%41', 'a+b&c=d']) {
      const queueName = `__wkf_step_${id}`;
      const { calls } = await deliver(
        delivery({ 'x-vqs-queue-name': encodeURIComponent(queueName) }),
      );
      assert.equal(calls[0][1].queueName, queueName);
    }
  });

  test('of a namespace goes to the handler of that namespace', async () => {
    const request = () => delivery({ 'x-vqs-queue-name': '__shop_wkf_step_s' });
    assert.equal((await deliver(request(), { prefix: '__shop_wkf_step_' })).status, 200);
    assert.equal((await deliver(request())).status, 400);
  });

  test('of a World that was closed is refused, not executed', async () => {
    const closed = worldOf();
    await closed.close();
    const handle = closed.createQueueHandler('__wkf_step_', () => assert.fail('executed'));
    const answer = await handle(delivery()).catch((error) => error);
    assert.ok(answer.status >= 400, `${answer.status}`);
  });
});

describe('a message', () => {
  /** What a queue gets of it. @param {unknown} message @param {any} [options] */
  async function pushed(message, options) {
    /** @type {any[]} */
    const messages = [];
    const push = async (/** @type {any} */ pushedMessage) => void messages.push(pushedMessage);
    const sender = worldOf({
      queueFactory: () => ({ pushStep: push, pushFlow: push, start: async () => {} }),
    });
    const { messageId } = await sender.queue(
      '__wkf_step_step//./a//s',
      /** @type {any} */ (message),
      options,
    );
    assert.equal(messages.length, 1);
    assert.equal(messages[0].messageId, messageId);
    return messages[0];
  }

  test('reaches the handler as it was sent, bytes included', async () => {
    const bytes = Uint8Array.from({ length: 256 }, (_, i) => i);
    const message = {
      runId: 'wrun_1',
      runInput: {
        input: bytes,
        workflowName: 'w',
        executionContext: { list: [1, null, 'a\0\ud800'] },
      },
      view: bytes.subarray(10, 20),
      none: new Uint8Array(),
      nested: [[{ deep: bytes.subarray(0, 1) }]],
    };
    const { data } = await pushed(message);
    const { calls } = await deliver(delivery({}, data));
    assert.deepEqual(calls[0][0], {
      ...message,
      view: Uint8Array.from(bytes.subarray(10, 20)),
    });
    assert.equal(calls[0][0].runInput.input.constructor, Uint8Array);
  });

  test('takes Buffers as bytes and dates as text', async () => {
    const { data } = await pushed({ buffer: Buffer.from('abc'), requestedAt: new Date(0) });
    const { calls } = await deliver(delivery({}, data));
    assert.deepEqual(calls[0][0], {
      buffer: new TextEncoder().encode('abc'),
      requestedAt: '1970-01-01T00:00:00.000Z',
    });
  });

  test('survives a queue that stores JSON', async () => {
    const message = await pushed({ a: 1 }, { idempotencyKey: 'k', headers: { traceparent: 't' } });
    const stored = JSON.parse(JSON.stringify(message));
    assert.deepEqual(stored, {
      id: 'step//./a//s',
      queueName: '__wkf_step_step//./a//s',
      messageId: message.messageId,
      attempt: 1,
      idempotencyKey: 'k',
      headers: { traceparent: 't' },
      data: Buffer.from('{"a":1}').toString('base64'),
    });
    assert.match(message.messageId, /^msg_[0-9A-HJKMNP-TV-Z]{26}$/);
  });

  test('needs a queue name, a JSON value and a delay of at least nothing', async () => {
    const wrong = [
      () => world.queue(/** @type {any} */ ('step'), { runId: 'r' }),
      () => world.queue(/** @type {any} */ (undefined), { runId: 'r' }),
      () => world.queue('__wkf_step_', { runId: 'r' }),
      () => world.queue('__wkf_step_s', /** @type {any} */ (undefined)),
      () => world.queue('__wkf_step_s', { runId: 'r' }, /** @type {any} */ ({ delaySeconds: -1 })),
      () =>
        world.queue(
          '__wkf_step_s',
          { runId: 'r' },
          /** @type {any} */ ({ delaySeconds: Number.NaN }),
        ),
    ];
    for (const call of wrong) {
      await assert.rejects(call, { name: 'WorkflowWorldError', status: 400 });
    }
  });

  test('may be told by the driver under which id it is known', async () => {
    const push = async () => 'msg_of_before';
    const sender = worldOf({
      queueFactory: () => ({ pushStep: push, pushFlow: push, start: async () => {} }),
    });
    const { messageId } = await sender.queue('__wkf_workflow_w', { runId: 'r' });
    assert.equal(messageId, 'msg_of_before');
  });
});
