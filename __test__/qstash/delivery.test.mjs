// What becomes of a message between QStash and the app, both over HTTP.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { claimsOf, sign } from '../../scripts/support/qstash.mjs';
import { createPostgresUpstashWorld } from '../../upstash.js';
import { gate } from '../queue/fixture.mjs';
import { APP, envelope, NOWHERE, place, ROUTES, until } from './fixture.mjs';

const STEP = '__wkf_step_s';
const FLOW = '__wkf_workflow_w';
const DAY = 86_400;

/** @param {any} message */
const any = (message) => message;

/**
 * A place whose time is the stand-in's, which skips what would be waited for.
 *
 * @param {import('node:test').TestContext} t
 * @param {Parameters<typeof place>[1]} [options]
 */
async function timelessPlace(t, options) {
  const found = await place(t, { ...options, standIn: { impatient: true, ...options?.standIn } });
  t.mock.method(Date, 'now', found.qstash.now);
  return found;
}

/** Headers that decide for deliveries with a token, and must not decide here. @param {Record<string, string | undefined>} [headers] */
function headersOf(headers) {
  const all = {
    'x-vqs-queue-name': STEP,
    'x-vqs-message-id': 'msg_1',
    'x-vqs-message-attempt': '1',
    'upstash-retried': '0',
    ...headers,
  };
  return Object.entries(all).flatMap(([name, value]) =>
    value === undefined ? [] : [/** @type {[string, string]} */ ([name, value])],
  );
}

describe('a message', () => {
  const names = [
    'step//./src/orders.ts//ship',
    'workflow//../../a/./b//c d',
    'ünï 名前 😀 100 % %2F',
    'a?b#c&d=e+f;g,h:i@j',
    '"quotes" \\ and \t tabs',
    'dots...',
    'x'.repeat(500),
  ];
  for (const [style, targetUrl, expected] of /** @type {const} */ ([
    ['the base URL of the app', APP, () => `${ROUTES}/step`],
    ['a base URL with a slash', `${APP}/`, () => `${ROUTES}/step`],
    [
      'an endpoint of its own',
      `${APP}/api/queue`,
      (/** @type {string} */ name) => `${APP}/api/queue/${encodeURIComponent(name)}`,
    ],
  ])) {
    test(`reaches ${style}, whatever its queue is called`, async (t) => {
      const { qstash, world, calls } = await place(t, { targetUrl });
      for (const id of names) {
        const name = /** @type {const} */ (`__wkf_step_${id}`);
        const { messageId } = await world.queue(name, any({ stepId: id, id }));
        const call = await until(() => calls.find(({ message }) => message.id === id));
        const { kind, queueName, attempt } = call;
        assert.deepEqual([kind, queueName, attempt], ['step', name, 1]);
        assert.equal(call.messageId, messageId);
        await until(() => qstash.isIdle());
        assert.equal(qstash.deliveries.at(-1)?.url, expected(name));
      }
      await world.queue('__wkf_workflow_w', any({ runId: 'r' }));
      await until(() => calls.some(({ kind }) => kind === 'flow'));
    });
  }

  test('reaches the app as it was sent, bytes included', async (t) => {
    const { world, calls } = await place(t);
    const message = {
      runId: 'r',
      runInput: { input: Uint8Array.from({ length: 256 }, (_, n) => n) },
      text: 'ä\0\ud800 "\\" 名前',
    };
    await world.queue(FLOW, any(message));
    await until(() => calls.length === 1);
    assert.deepEqual(calls[0].message, message);
  });

  test('brings the headers that it was sent with', async (t) => {
    const { world, requests } = await place(t);
    await world.queue(FLOW, { runId: 'r' }, { headers: { traceparent: '00-aa-bb-01' } });
    await until(() => requests.length === 1);
    assert.equal(requests[0].headers.get('traceparent'), '00-aa-bb-01');
  });

  test('cannot choose what lets it in, or which message it is', async (t) => {
    const { world, calls, qstash } = await place(t);
    const headers = {
      'x-vqs-message-id': 'msg_other',
      'x-vqs-message-attempt': '40',
      'x-vqs-queue-name': '__wkf_workflow_other',
      'Upstash-Retries': '0',
      'x-workflow-secret': 'secret',
    };
    const { messageId } = await world.queue(FLOW, { runId: 'r' }, { headers });
    await until(() => calls.length === 1 && qstash.isIdle());
    const [call] = calls;
    assert.deepEqual([call.messageId, call.attempt, call.queueName], [messageId, 1, FLOW]);
    assert.equal(qstash.deliveries[0].maxRetries, 3);
    assert.ok(!('x-workflow-secret' in qstash.deliveries[0].headers));
  });
});

describe('a request that QStash did not sign', () => {
  const body = envelope('{"stepId":"step_1"}');
  const url = `${ROUTES}/step`;

  /** @param {import('node:test').TestContext} t @param {Parameters<typeof place>[1]} [options] */
  async function forging(t, options) {
    const { qstash, options: worldOptions } = await place(t, options);
    const { createQueueHandler } = createPostgresUpstashWorld(worldOptions);
    let executed = 0;
    const handle = createQueueHandler('__wkf_step_', async () => {
      executed += 1;
    });
    /** @param {Record<string, string | undefined>} headers */
    const forge = async (headers) => {
      let pulls = 0;
      const stream = new ReadableStream(
        {
          pull(controller) {
            pulls += 1;
            controller.enqueue(Buffer.from(body));
            controller.close();
          },
        },
        { highWaterMark: 0 },
      );
      const request = new Request(url, {
        method: 'POST',
        headers: headersOf(headers),
        body: stream,
        // @ts-expect-error a body that is a stream needs it
        duplex: 'half',
      });
      const response = await handle(request);
      return { status: response.status, text: await response.text(), pulls, executed };
    };
    return { qstash, forge };
  }

  /** @type {Record<string, (qstash: import('./fixture.mjs').QStash) => Record<string, string>>} */
  const forgeries = {
    'no signature': () => ({}),
    'an empty one': () => ({ 'upstash-signature': '' }),
    'one with a key of its own': () => ({
      'upstash-signature': sign('sig_mine', claimsOf(url, Buffer.from(body))),
    }),
    'one for another URL': ({ keys }) => ({
      'upstash-signature': sign(keys().current, claimsOf(`${ROUTES}/flow`, Buffer.from(body))),
    }),
    'an old one': ({ keys }) => ({
      'upstash-signature': sign(keys().current, claimsOf(url, Buffer.from(body), 1_700_000_000)),
    }),
    'the security token': () => ({ 'x-workflow-secret': 'token-of-the-tests' }),
    'the security token and the mark of a foreign queue': () => ({
      'x-workflow-secret': 'token-of-the-tests',
      'x-workflow-foreign-queue': '1',
    }),
    'the default security token': () => ({ 'x-workflow-secret': 'secret' }),
    'the token of QStash': ({ token }) => ({
      authorization: `Bearer ${token}`,
      'upstash-signature': token,
    }),
    'a region, whose keys would be others': () => ({ 'upstash-region': 'US_EAST_1' }),
  };
  for (const [name, headers] of Object.entries(forgeries)) {
    test(`(${name}) is answered 401, its body unread and nothing executed`, async (t) => {
      const { qstash, forge } = await forging(t, {
        world: any({ securityToken: 'token-of-the-tests' }),
      });
      const { text, ...found } = await forge(headers(qstash));
      assert.deepEqual(found, { status: 401, pulls: 0, executed: 0 });
      for (const secret of [qstash.token, ...Object.values(qstash.keys()), 'token-of-the-tests']) {
        assert.ok(!text.includes(secret), text);
      }
    });
  }

  test('for this body is answered 401 and not executed', async (t) => {
    const { qstash, forge } = await forging(t);
    const signature = (/** @type {string} */ of) =>
      sign(qstash.keys().current, claimsOf(url, Buffer.from(of)));
    const other = await forge({ 'upstash-signature': signature(envelope('{"stepId":"step_2"}')) });
    assert.deepEqual([other.status, other.executed], [401, 0]);
    const own = await forge({ 'upstash-signature': signature(body) });
    assert.deepEqual([own.status, own.executed], [200, 1]);
  });

  test('is refused whatever else is wrong with it', async (t) => {
    const { forge } = await forging(t);
    const nothing = Object.fromEntries(headersOf().map(([name]) => [name, undefined]));
    assert.equal((await forge(nothing)).status, 401);
  });

  test('is refused, as is every other, while there are no keys', async (t) => {
    for (const queue of [
      { currentSigningKey: undefined, nextSigningKey: undefined },
      { currentSigningKey: '', nextSigningKey: '' },
    ]) {
      const { qstash, forge } = await forging(t, { queue });
      for (const key of ['', 'undefined', 'null', ...Object.values(qstash.keys())]) {
        const signature = key === '' ? undefined : sign(key, claimsOf(url, Buffer.from(body)));
        const { status, executed, text } = await forge({ 'upstash-signature': signature });
        assert.deepEqual([status, executed], [401, 0]);
        // The answer does not tell a stranger the reason.
        assert.doesNotMatch(text, /QSTASH/);
      }
    }
  });

  test('is refused where QStash is the queue of a plain World', async (t) => {
    const { forge } = await forging(t);
    assert.equal((await forge({ 'x-workflow-secret': 'secret' })).status, 401);
  });
});

describe('a handler that fails', () => {
  test('is called again by the World: 49 times, each with its attempt', async (t) => {
    const last = 49;
    const { qstash, world, calls } = await timelessPlace(t, {
      handle: ({ attempt }) => {
        if (attempt < last) throw new Error(`attempt ${attempt} fails`);
      },
    });
    await world.queue(STEP, any({ stepId: 's' }));
    await until(() => calls.length >= last && qstash.isIdle());
    assert.deepEqual(
      calls.map(({ attempt }) => attempt),
      Array.from({ length: last }, (_, n) => n + 1),
    );
    assert.equal(qstash.dead.length, 0);
    for (const { status, retried, body } of qstash.deliveries) {
      // QStash is told that it is done: the World repeats it.
      assert.deepEqual([status, retried], [200, 0]);
      assert.deepEqual(JSON.parse(body.toString()).message, { stepId: 's' });
    }
  });

  test('is called again by the World alone where QStash may not repeat', async (t) => {
    const { qstash, world, calls } = await timelessPlace(t, {
      queue: { retries: 0 },
      handle: ({ attempt }) => {
        if (attempt < 5) throw new Error('not yet');
      },
    });
    await world.queue(FLOW, { runId: 'r' });
    await until(() => calls.length === 5 && qstash.isIdle());
    assert.deepEqual(
      calls.map(({ attempt }) => attempt),
      [1, 2, 3, 4, 5],
    );
    assert.ok(qstash.deliveries.every(({ status }) => status === 200));
  });

  test('slows down, up to a quarter of an hour', async (t) => {
    const { qstash, world, calls } = await timelessPlace(t, {
      handle: ({ attempt }) => {
        if (attempt < 20) throw new Error('not yet');
      },
    });
    await world.queue(FLOW, { runId: 'r' });
    await until(() => calls.length === 20 && qstash.isIdle());
    const times = qstash.deliveries.map(({ at }) => at / 1000);
    const pauses = times.slice(1).map((time, index) => time - times[index]);
    assert.ok(Math.min(...pauses) >= 0.9, `${pauses}`);
    assert.ok(Math.max(...pauses) <= 905, `${pauses}`);
  });

  test('keeps its attempt over a pause that the plan does not allow', async (t) => {
    const { qstash, world, calls } = await timelessPlace(t, {
      queue: { retries: 0, maxDelaySeconds: 30 },
      handle: ({ attempt }) => {
        if (attempt < 8) throw new Error('not yet');
      },
    });
    await world.queue(FLOW, { runId: 'r' });
    await until(() => calls.length === 8 && qstash.isIdle());
    assert.deepEqual(
      calls.map(({ attempt }) => attempt),
      [1, 2, 3, 4, 5, 6, 7, 8],
    );
    assert.ok(qstash.deliveries.length > 10, `${qstash.deliveries.length}`);
  });

  test('keeps its headers', async (t) => {
    const { qstash, world, requests, calls } = await timelessPlace(t, {
      queue: { retries: 0 },
      handle: ({ attempt }) => {
        if (attempt === 1) throw new Error('not yet');
      },
    });
    await world.queue(STEP, any({ stepId: 's' }), { headers: { traceparent: '00-aa-bb-01' } });
    await until(() => calls.length === 2 && qstash.isIdle());
    assert.equal(requests[1].headers.get('traceparent'), '00-aa-bb-01');
  });

  test('and cannot be repeated, ends where somebody looks: in the DLQ, with both reasons', async (t) => {
    const { qstash, world } = await timelessPlace(t, {
      queue: { retries: 1 },
      handle: () => {
        throw new Error('the step broke');
      },
    });
    await world.queue(STEP, any({ stepId: 's' }));
    qstash.setIntercept(() => ({ status: 400, body: { error: 'no more' } }));
    await until(() => qstash.dead.length === 1);
    assert.match(qstash.dead[0].answer, /the step broke.*could not be repeated/);
  });

  test('is repeated once for each attempt, however often its delivery comes', async (t) => {
    const { qstash, world, calls } = await timelessPlace(t, {
      standIn: { faults: { seed: 11, duplicate: 1, failAfter: 0.2 } },
      handle: ({ attempt }) => {
        if (attempt < 4) throw new Error('not yet');
      },
    });
    for (let n = 0; n < 20; n += 1) await world.queue(FLOW, any({ runId: `r${n}` }));
    await until(() => qstash.isIdle());
    const published = new Set(qstash.deliveries.map(({ messageId }) => messageId));
    assert.equal(published.size, 20 * 4);
    assert.ok(calls.every(({ attempt }) => attempt <= 4));
  });

  test('does not count deliveries that did not arrive: QStash repeats them as they were', async (t) => {
    const { qstash, world, calls } = await timelessPlace(t, {
      standIn: { faults: { seed: 11, failBefore: 0.3, failAfter: 0.2 } },
    });
    for (let n = 0; n < 20; n += 1) await world.queue(FLOW, any({ runId: `r${n}` }));
    await until(() => qstash.isIdle());
    assert.ok(qstash.deliveries.some(({ retried }) => retried > 0));
    assert.ok(calls.every(({ attempt }) => attempt === 1));
  });
});

describe('a delivery that somebody captured', () => {
  /** A delivery as it came, and what sends it again. @param {import('node:test').TestContext} t @param {Parameters<typeof place>[1]} [options] */
  async function captured(t, options) {
    const found = await place(t, options);
    const { messageId } = await found.world.queue(STEP, any({ stepId: 'step_1' }));
    await until(() => found.calls.length === 1 && found.qstash.deliveries.length === 1);
    const [{ url, signature, body }] = found.qstash.deliveries;
    const { createQueueHandler } = createPostgresUpstashWorld(found.options);
    /** @type {any[]} */
    const metas = [];
    /** @param {Record<string, string>} headers @param {any} [prefix] */
    const replay = async (headers, prefix = '__wkf_step_') => {
      const handle = createQueueHandler(prefix, async (_, meta) => {
        metas.push(meta);
        throw new Error('it fails');
      });
      const all = { 'upstash-signature': signature, ...headers };
      const request = new Request(url, {
        method: 'POST',
        headers: all,
        body: new Uint8Array(body),
      });
      return handle(request);
    };
    return { ...found, messageId, replay, metas };
  }

  /** @type {Record<string, Record<string, string>>} */
  const changes = {
    'another queue': { 'x-vqs-queue-name': '__wkf_step_other' },
    'another message id': { 'x-vqs-message-id': 'msg_other' },
    'another attempt': { 'x-vqs-message-attempt': '49' },
    'another count of repetitions': { 'upstash-retried': '1000' },
    'another time': { 'x-workflow-not-before': `${2 ** 42}` },
    'another trace': { traceparent: '00-ff-ff-01' },
    'the mark of a foreign queue': { 'x-workflow-foreign-queue': '1' },
    'all of them': Object.fromEntries(headersOf({ 'x-vqs-message-attempt': '49' })),
  };
  for (const [name, headers] of Object.entries(changes)) {
    test(`is the same one with ${name} in its headers`, async (t) => {
      const { replay, metas, messageId, qstash } = await captured(t);
      await replay(headers);
      await replay(headers);
      assert.deepEqual(metas, Array(2).fill({ queueName: STEP, messageId, attempt: 1 }));
      // Its one successor is the second attempt, at its time.
      const [successor, ...others] = qstash.waiting;
      assert.deepEqual(others, []);
      assert.equal(JSON.parse(successor.body.toString()).attempt, 2);
      assert.ok(successor.due - qstash.now() <= 1000);
      assert.ok(!('traceparent' in successor.headers));
    });
  }

  test('is not executed by the handler of another queue', async (t) => {
    for (const targetUrl of [APP, `${APP}/queue`]) {
      const { replay, metas } = await captured(t, { targetUrl });
      for (const prefix of ['__wkf_workflow_', '__other_wkf_step_']) {
        const { status } = await replay({ 'x-vqs-queue-name': `${prefix}s` }, prefix);
        assert.ok(status === 401 || status === 489, `${status}`);
      }
      assert.deepEqual(metas, []);
    }
  });
});

describe('a wait', () => {
  /** Waits once. @param {number} timeoutSeconds */
  const waitsOnce = (timeoutSeconds) => {
    let waited = false;
    return () => {
      if (waited) return undefined;
      waited = true;
      return { timeoutSeconds };
    };
  };

  test('is a fresh message with a delay, and the one at hand is done', async (t) => {
    const { qstash, world, calls } = await timelessPlace(t, { handle: waitsOnce(3 * DAY) });
    const start = qstash.now();
    await world.queue(FLOW, { runId: 'r' }, { headers: { traceparent: '00-aa-bb-01' } });
    await until(() => calls.length === 2 && qstash.isIdle());
    const [first, second] = qstash.deliveries;
    assert.equal(first.status, 200);
    assert.notEqual(second.messageId, first.messageId);
    assert.equal(second.retried, 0);
    assert.ok(second.at - start >= 3 * DAY * 1000);
    assert.deepEqual(
      calls.map(({ message, attempt }) => [message.runId, attempt]),
      [
        ['r', 1],
        ['r', 1],
      ],
    );
    const publication = qstash.requests.at(-1);
    assert.equal(publication?.headers['upstash-delay'], `${3 * DAY}s`);
    assert.equal(publication?.headers['upstash-forward-traceparent'], '00-aa-bb-01');
  });

  test('of no time comes again at once', async (t) => {
    const { world, calls } = await place(t, { handle: waitsOnce(0) });
    await world.queue(FLOW, { runId: 'r' });
    await until(() => calls.length === 2);
  });

  test('longer than the plan allows is chained, and nothing is replayed before its end', async (t) => {
    const { qstash, world, calls } = await timelessPlace(t, { handle: waitsOnce(20 * DAY) });
    const start = qstash.now();
    await world.queue(FLOW, { runId: 'r' });
    await until(() => calls.length === 2 && qstash.isIdle());
    const days = qstash.deliveries.map(({ at }) => Math.floor((at - start) / 1000 / DAY));
    assert.deepEqual(days, [0, 7, 14, 20]);
    assert.ok(qstash.deliveries.every(({ status }) => status === 200));
  });

  test('of a message from the start is chained, too', async (t) => {
    const { qstash, world, calls } = await timelessPlace(t, { queue: { maxDelaySeconds: 3600 } });
    const start = qstash.now();
    await world.queue(STEP, any({ stepId: 's' }), { delaySeconds: 4.5 * 3600 });
    await until(() => calls.length === 1 && qstash.isIdle());
    assert.equal(calls[0].attempt, 1);
    assert.equal(qstash.deliveries.length, 5);
    const last = qstash.deliveries[4];
    assert.ok(last.at - start >= 4.5 * 3600 * 1000);
  });

  test('for which many replays ask is one message', async (t) => {
    const { qstash, world, calls } = await place(t, { handle: () => ({ timeoutSeconds: 1000 }) });
    for (let n = 0; n < 5; n += 1) {
      await world.queue(FLOW, { runId: 'r' });
      await until(() => calls.length === n + 1 && qstash.waiting.size === 1);
    }
    assert.equal(qstash.requests.length, 6);
  });

  test('that cannot be published fails the delivery, which is repeated', async (t) => {
    for (const refused of [1, 2]) {
      const { qstash, world, calls } = await timelessPlace(t, { handle: waitsOnce(60) });
      await world.queue(FLOW, { runId: 'r' });
      let left = refused;
      qstash.setIntercept(() => {
        left -= 1;
        return left >= 0 ? { status: 400, body: { error: 'no' } } : undefined;
      });
      await until(() => calls.length === 2 && qstash.isIdle());
      // By the World, if it can, or else by QStash.
      assert.deepEqual(
        qstash.deliveries.map(({ status }) => status),
        [refused === 1 ? 200 : 500, 200],
      );
    }
  });
});

describe('a delivery that is none goes to the DLQ at once', () => {
  /** @type {Record<string, string>} */
  const malformed = {
    'no message id': envelope('{}', { messageId: undefined }),
    'a message id that is no text': envelope('{}', { messageId: 1 }),
    'no attempt': envelope('{}', { attempt: undefined }),
    'attempt 0': envelope('{}', { attempt: 0 }),
    'an attempt that is no number': envelope('{}', { attempt: '1' }),
    'another kind of queue': envelope('{}', { queueName: '__other_wkf_step_s' }),
    'a message alone': '{"stepId":"step_1"}',
    'a body that is no object': 'null',
    'a body that is no JSON': 'hello',
    'no body': '',
  };
  for (const [name, body] of Object.entries(malformed)) {
    test(name, async (t) => {
      const { qstash, calls } = await place(t);
      const response = await fetch(`${qstash.url}/v2/publish/${ROUTES}/step`, {
        method: 'POST',
        headers: Object.fromEntries([
          ['authorization', `Bearer ${qstash.token}`],
          ...headersOf().map(([header, value]) => [`upstash-forward-${header}`, value]),
        ]),
        body,
      });
      assert.equal(response.status, 200);
      await until(() => qstash.dead.length === 1);
      const [{ status, answerHeaders, retried }] = qstash.dead;
      assert.deepEqual([status, retried], [489, 0]);
      assert.equal(answerHeaders['upstash-nonretryable-error'], 'true');
      assert.equal(calls.length, 0);
    });
  }
});

describe('a queue that misbehaves', () => {
  test('runs a step that it delivers twice at once only once', async (t) => {
    const { open, opened } = gate();
    const { qstash, world, calls, requests } = await place(t, {
      standIn: { faults: { duplicate: 1 } },
      handle: ({ message }) => (message.stepId === 's' ? opened : undefined),
    });
    await world.queue(STEP, any({ stepId: 's' }));
    await until(() => requests.length === 2);
    // Both have had their time when those that came later are done.
    for (let n = 1; n <= 5; n += 1) {
      await world.queue(STEP, any({ stepId: `later ${n}` }));
      await until(() => qstash.deliveries.length === 2 * n);
    }
    open();
    await until(() => qstash.isIdle());
    assert.equal(calls.filter(({ message }) => message.stepId === 's').length, 1);
    assert.ok(qstash.deliveries.every(({ status }) => status === 200));
  });

  test('with 20 % duplicates, 10 % failures, reordering, limits and lost answers loses nothing', async (t) => {
    const faults = {
      seed: Number(process.env.TEST_SEED ?? 42),
      duplicate: 0.2,
      failBefore: 0.05,
      failAfter: 0.05,
      reorder: 0.3,
      refuse: 0.05,
      throttle: 0.02,
      lose: 0.05,
    };
    t.diagnostic(`seed ${faults.seed}`);
    const { qstash, world, calls } = await timelessPlace(t, { standIn: { faults } });
    const count = 300;
    await Promise.all(
      Array.from({ length: count }, (_, n) => world.queue(STEP, any({ stepId: `s${n}`, n }))),
    );
    await until(() => qstash.isIdle());
    assert.equal(new Set(calls.map(({ message }) => message.n)).size, count);
    assert.ok(calls.length > count);
    const order = calls.map(({ message }) => message.n);
    assert.notDeepEqual(
      order,
      order.toSorted((a, b) => a - b),
    );
    assert.equal(qstash.dead.length, 0);
  });
});

test('keys may be rotated under a World that runs', async (t) => {
  const { qstash, world, calls } = await timelessPlace(t);
  await world.queue(FLOW, { runId: 'r1' });
  await until(() => calls.length === 1);
  qstash.rotateKeys();
  await world.queue(FLOW, { runId: 'r2' });
  await until(() => calls.length === 2);
  // A World that was not told of the second rotation lets nothing in any more.
  qstash.rotateKeys();
  await world.queue(FLOW, { runId: 'r3' });
  await until(() => qstash.dead.length === 1);
  assert.equal(qstash.dead[0].status, 401);
  assert.equal(calls.length, 2);
});

test('a World that is closed takes no delivery', async (t) => {
  const { options } = await place(t);
  const world = createPostgresUpstashWorld({ ...options, databaseUrl: NOWHERE });
  await world.close();
  const handle = world.createQueueHandler('__wkf_step_', () => assert.fail('executed'));
  const answer = await handle(
    new Request(`${ROUTES}/step`, { method: 'POST', headers: headersOf(), body: '{}' }),
  );
  assert.ok(answer.status >= 400);
});
