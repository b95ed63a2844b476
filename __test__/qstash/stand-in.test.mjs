// The official client is the judge of the stand-in that the other tests rely on.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Client, QstashDailyRatelimitError, Receiver } from '@upstash/qstash';
import { startQStash } from '../../scripts/support/qstash.mjs';
import { compileExpression } from '../../scripts/support/qstash-expression.mjs';
import { errorOf, serve, until } from './fixture.mjs';

/** @typedef {import('../../scripts/support/qstash.mjs').QStash} QStash */
/** @typedef {{ headers: Headers, body: string, url: string }} Received */

/**
 * A stand-in, a client of it, and an app that answers with what `answer` gives.
 *
 * @param {import('node:test').TestContext} t
 * @param {Parameters<typeof startQStash>[1]} [options]
 * @param {(count: number) => Response} [answer]
 */
async function standIn(t, options, answer = () => new Response()) {
  /** @type {Received[]} */
  const received = [];
  const app = await serve(t, async (request) => {
    const body = await request.text();
    received.push({ headers: request.headers, body, url: request.url });
    return answer(received.length);
  });
  const qstash = await startQStash(t, options);
  return { qstash, received, app, client: clientOf(qstash) };
}

/** @param {QStash} qstash */
const clientOf = ({ url, token }) =>
  new Client({ baseUrl: url, token, retry: false, enableTelemetry: false });

const quiet = () => {};

/** Its clock skips what nobody waits for, but for the seconds of a busy machine. @param {QStash} qstash @param {number[]} seconds */
function assertPauses({ deliveries }, seconds) {
  const pauses = deliveries.slice(1).map(({ at }, index) => (at - deliveries[index].at) / 1000);
  assert.equal(pauses.length, seconds.length);
  for (const [index, pause] of pauses.entries()) {
    assert.ok(pause >= seconds[index] && pause < seconds[index] + 60, `${pauses}`);
  }
}

test('delivers what the official client publishes, and its Receiver accepts the signature', async (t) => {
  const { qstash, received, app, client } = await standIn(t);
  const { current, next } = qstash.keys();
  const receiver = new Receiver({ currentSigningKey: current, nextSigningKey: next });
  const url = `${app}/here?a=b%2Fc`;
  const { messageId } = await client.publishJSON({
    url,
    body: { a: 'ä' },
    headers: { 'X-Mine': '1' },
  });
  await until(() => received.length === 1);
  const { headers, body, url: path } = received[0];
  assert.equal(new URL(path).search, '?a=b%2Fc');
  assert.equal(body, '{"a":"ä"}');
  assert.equal(headers.get('content-type'), 'application/json');
  assert.equal(headers.get('x-mine'), '1');
  assert.equal(headers.get('upstash-message-id'), messageId);
  assert.equal(headers.get('upstash-retried'), '0');
  assert.equal(headers.get('user-agent'), 'Upstash-QStash');
  const signature = headers.get('upstash-signature') ?? '';
  assert.equal(await receiver.verify({ signature, body, url }), true);

  qstash.rotateKeys();
  await client.publishJSON({ url, body: {} });
  await until(() => received.length === 2);
  const after = { signature: received[1].headers.get('upstash-signature') ?? '', body: '{}', url };
  assert.equal(await receiver.verify(after), true);

  // The Receiver has seen neither of the keys after a second rotation.
  qstash.rotateKeys();
  await client.publishJSON({ url, body: {} });
  await until(() => received.length === 3);
  const late = { signature: received[2].headers.get('upstash-signature') ?? '', body: '{}', url };
  await assert.rejects(receiver.verify(late));
});

test('lets in who knows the token', async (t) => {
  t.mock.method(console, 'error', quiet);
  const { qstash, client, app } = await standIn(t);
  const answer = await fetch(`${qstash.url}/v2/keys`, {
    headers: { authorization: `Bearer ${qstash.token}` },
  });
  assert.deepEqual(await answer.json(), qstash.keys());
  const stranger = new Client({ baseUrl: qstash.url, token: 'other', retry: false });
  assert.equal((await errorOf(stranger.publishJSON({ url: app, body: {} }))).status, 401);
  await client.publishJSON({ url: app, body: {} });
});

test('holds messages back, by its own clock', async (t) => {
  const { qstash, received, client, app } = await standIn(t);
  const publish = (/** @type {object} */ when, /** @type {string} */ body) =>
    client.publish({ url: app, body, ...when });
  await publish({ delay: '1d2h' }, 'a day and two hours');
  await publish({ delay: 90 }, 'ninety seconds');
  await publish({ delay: '2h' }, 'two hours');
  await publish({ delay: '5m', notBefore: Math.ceil(qstash.now() / 1000) + 10 }, 'ten seconds');
  const order = ['ten seconds', 'ninety seconds', 'two hours', 'a day and two hours'];
  for (const [index, seconds] of [11, 90, 7200, 86_400].entries()) {
    assert.equal(received.length, index);
    qstash.advance(seconds * 1000);
    await until(() => received.length === index + 1);
  }
  assert.deepEqual(
    received.map(({ body }) => body),
    order,
  );
});

test('does not wait where it need not', async (t) => {
  const { received, client, app } = await standIn(t, { impatient: true });
  await client.publish({ url: app, delay: '7d', body: 'x' });
  await until(() => received.length === 1);
});

test('remembers a deduplication id for 10 minutes', async (t) => {
  t.mock.method(console, 'error', quiet);
  const { qstash, received, client, app } = await standIn(t);
  const publish = () => client.publish({ url: app, deduplicationId: 'once', body: 'x' });
  const first = await publish();
  assert.deepEqual(await publish(), { messageId: first.messageId, deduplicated: true });
  const [inBatch, other] = await client.batch([
    { url: app, deduplicationId: 'once', body: 'x' },
    { url: app, deduplicationId: 'other', body: 'x' },
  ]);
  assert.deepEqual(inBatch, { messageId: first.messageId, deduplicated: true });
  assert.deepEqual(Object.keys(other), ['messageId']);
  const raw = await fetch(`${qstash.url}/v2/publish/${app}`, {
    method: 'POST',
    headers: { authorization: `Bearer ${qstash.token}`, 'upstash-deduplication-id': 'once' },
  });
  assert.equal(raw.status, 202);
  qstash.advance(600_001);
  assert.notEqual((await publish()).messageId, first.messageId);
  await until(() => received.length === 3);
  const colon = client.publish({ url: app, deduplicationId: 'a:b', body: 'x' });
  assert.match((await errorOf(colon)).message, /cannot contain ':'/);
});

test('refuses what a plan does not allow', async (t) => {
  t.mock.method(console, 'error', quiet);
  const { client, app } = await standIn(t, { maxMessageBytes: 10 });
  const url = app;
  for (const [request, reason] of /** @type {const} */ ([
    [{ url, retries: 6 }, /quota maxRetries exceeded/],
    [{ url, delay: '8d' }, /quota maxDelay exceeded/],
    [{ url, body: 'more than ten' }, /quota maxMessageSize exceeded/],
    [{ url, delay: 'soon' }, /invalid delay/],
    [{ url, retryDelay: 'retried +' }, /invalid retry delay/],
    [{ url: 'app.example' }, /invalid destination/],
  ])) {
    const error = await errorOf(client.publish(/** @type {any} */ (request)));
    assert.match(error.message, reason);
    assert.ok(error.status >= 400 && error.status < 500);
  }
});

describe('repeats a delivery', () => {
  test('as often as told to, then puts it into the DLQ', async (t) => {
    const { qstash, received, client, app } = await standIn(
      t,
      { impatient: true },
      () => new Response('no', { status: 500, headers: { 'x-why': 'because' } }),
    );
    const { messageId } = await client.publish({ url: app, retries: 2, body: 'x' });
    await until(() => qstash.dead.length === 1);
    assert.deepEqual(
      received.map(({ headers }) => headers.get('upstash-retried')),
      ['0', '1', '2'],
    );
    const { messages } = await client.dlq.listMessages();
    assert.equal(messages.length, 1);
    assert.equal(messages[0].messageId, messageId);
    assert.equal(messages[0].responseStatus, 500);
    assert.equal(messages[0].responseBody, 'no');
    assert.equal(messages[0].body, 'x');
  });

  test('not after 489 with Upstash-NonRetryable-Error', async (t) => {
    const { qstash, received, client, app } = await standIn(
      t,
      { impatient: true },
      (count) =>
        new Response(null, {
          status: 489,
          // Without the header it is a failure like any other.
          headers: count === 1 ? {} : { 'Upstash-NonRetryable-Error': 'true' },
        }),
    );
    await client.publish({ url: app, retries: 5, body: 'x' });
    await until(() => qstash.dead.length === 1);
    assert.equal(received.length, 2);
  });

  test('after the pause that was asked for', async (t) => {
    const answers = [
      new Response(null, { status: 503, headers: { 'retry-after': '200' } }),
      new Response(null, { status: 503, headers: { 'retry-after': '6m5s' } }),
      // More than a day does not count.
      new Response(null, { status: 503, headers: { 'retry-after': '100000' } }),
      new Response(null, { status: 503 }),
      new Response(),
    ];
    const { qstash, client, app } = await standIn(t, { impatient: true }, (n) => answers[n - 1]);
    await client.publish({
      url: app,
      retries: 5,
      retryDelay: '1000000 * (1 + retried)',
      body: 'x',
    });
    await until(() => qstash.deliveries.length === 5);
    assertPauses(qstash, [200, 365, 3000, 4000]);
  });

  test('after its own, where none was', async (t) => {
    const { qstash, client, app } = await standIn(
      t,
      { impatient: true },
      (count) => new Response(null, { status: count < 4 ? 500 : 200 }),
    );
    await client.publish({ url: app, retries: 5, body: 'x' });
    await until(() => qstash.deliveries.length === 4);
    assertPauses(qstash, [12, 148, 1808]);
  });
});

test('computes retry delays', () => {
  for (const [text, retried, expected] of /** @type {const} */ ([
    ['1000', 3, 1000],
    ['1000 * (1 + retried)', 3, 4000],
    ['max(1000, pow(2, retried) * 100)', 0, 1000],
    ['max(1000, pow(2, retried) * 100)', 5, 3200],
    ['min(900000, 2000 * pow(20, retried))', 1, 40_000],
    ['min(900000, 2000 * pow(20, retried))', 9, 900_000],
    ['-1 + 10 / 2 - 1 * 2', 0, 2],
    ['floor(1.5) + ceil(1.5) + round(1.4) + abs(-1) + sqrt(4) + exp(0)', 0, 8],
  ])) {
    assert.equal(compileExpression(text)(retried), expected, text);
  }
  for (const wrong of ['', 'x', '1 +', '(1', 'pow', '1 2', 'process.exit()', 'constructor(1)']) {
    assert.throws(() => compileExpression(wrong), wrong);
  }
});

describe('misbehaves as told to', () => {
  test('the same way for the same seed', async (t) => {
    const faults = { seed: 7, duplicate: 0.3, failBefore: 0.2, failAfter: 0.2 };
    const fates = [];
    for (let round = 0; round < 2; round += 1) {
      const { qstash, client, app } = await standIn(t, { impatient: true, faults });
      const fate = [];
      for (let n = 0; n < 20; n += 1) {
        const { messageId } = await client.publish({ url: app, retries: 5, body: `${n}` });
        await until(() => qstash.isIdle());
        const own = qstash.deliveries.filter((delivery) => delivery.messageId === messageId);
        fate.push(own.map(({ retried }) => retried));
      }
      fates.push(fate);
    }
    assert.deepEqual(fates[0], fates[1]);
    assert.ok(fates[0].some((deliveries) => deliveries.length > 1));
  });

  test('by answering something else, by hanging up, by being away', async (t) => {
    for (const method of /** @type {const} */ (['error', 'warn']))
      t.mock.method(console, method, quiet);
    const { qstash, received, client, app } = await standIn(t);
    const publish = () => client.publish({ url: app, body: 'x' });
    qstash.setIntercept(() => ({
      status: 429,
      headers: { 'RateLimit-Limit': '10', 'RateLimit-Remaining': '0', 'RateLimit-Reset': '9' },
    }));
    assert.ok((await errorOf(publish())) instanceof QstashDailyRatelimitError);
    qstash.setIntercept(() => ({ done: true, hangUp: true }));
    await errorOf(publish());
    await until(() => received.length === 1);
    qstash.setIntercept(undefined);
    await qstash.down();
    await errorOf(publish());
    await qstash.up();
    await publish();
    await until(() => received.length === 2);
  });
});
