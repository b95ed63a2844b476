import assert from 'node:assert/strict';
import { randomBytes, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createFunctionProxy, createWorld } from './index.js';

/**
 * @typedef {import('./index.js').MessageData} MessageData
 * @typedef {import('./index.js').QueueDriver} QueueDriver
 * @typedef {import('./testing.js').DriverTarget} DriverTarget
 * @typedef {import('./testing.js').QueueDriverTestOptions} Options
 * @typedef {(target: DriverTarget) => QueueDriver | Promise<QueueDriver>} CreateDriver
 * @typedef {'step' | 'workflow'} Kind
 * @typedef {Awaited<ReturnType<typeof createInstance>>} Instance
 * @typedef {ReturnType<typeof createPlace>} Place
 */
/**
 * @typedef {object} Delivery
 * @property {Instance} by
 * @property {Kind} kind of the route that was called
 * @property {string} queueName
 * @property {string} messageId
 * @property {number} attempt
 * @property {Headers} headers
 * @property {Buffer} body
 * @property {number} at of `performance.now()`
 */

const TOKEN = 'token-of-the-conformance-suite';
/** For how long nothing must happen before a test believes that nothing will. */
const QUIET_MS = 1500;
/** Clocks of two machines, and timers that fire a moment early. */
const CLOCK_TOLERANCE_MS = 50;
/** Queues that give up do so after the third attempt, often. */
const FAILED_ATTEMPTS = 3;

/** The app answers as the handler of a World does: by this header a delivery counts as taken. */
const OF_WORLD = { 'x-workflow-world': 'postgres' };
/** A worker asks by this header whether the app takes deliveries, and sends no message. */
const PROBE_HEADER = 'x-workflow-probe';

/** @type {Record<string, () => Response>} */
const FAILURES = {
  'answers 500': () => new Response('not yet', { status: 500, headers: OF_WORLD }),
  'answers 503': () => new Response('not yet', { status: 503 }),
  'answers 404': () => new Response('not here yet', { status: 404 }),
  'answers a redirect': () => new Response(null, { status: 302, headers: { location: '/' } }),
  throws: () => {
    throw new Error('the app crashed, as this test wants it to');
  },
};

const NAMES = [
  'workflow//./src/jobs/order.ts//handleOrder',
  'step//./src/with space/ä😀.ts//λ%2F"quoted"',
  '../up\\and?down#&=+',
  'a:b:c',
  '0',
  'long'.repeat(100),
];
const KEYS = ['step_01KXYZ', 'with:colon', '1', '../ä 😀/*{}', 'long'.repeat(100)];

/**
 * @param {string} name
 * @param {CreateDriver} createDriver
 * @param {Options} [options]
 */
export function testQueueDriver(name, createDriver, options = {}) {
  const { duplicates = false, delays = true, limitMs = 60_000 } = options;
  const { largestBody = 2 ** 20, longDeliveryMs = 5000, createUnreachableDriver } = options;
  const connectionString = options.connectionString ?? process.env.WORKFLOW_POSTGRES_URL;

  /**
   * @param {string} title
   * @param {(place: Place) => Promise<void>} body
   * @param {string | false} [skip]
   */
  const rule = (title, body, skip = false) =>
    test(title, { skip }, (t) => body(createPlace(t, createDriver, { duplicates, limitMs })));
  const ofOnceOnly = duplicates && 'this queue may duplicate messages';

  // Most of them wait, most of the time.
  describe(name, { concurrency: 8 }, () => {
    rule('delivers steps to the step route and workflows to the workflow route', async (place) => {
      const worker = await place.started();
      const sent = /** @type {const} */ (['step', 'workflow']).map((kind) => message(kind));
      for (const each of sent) await worker.push(each);
      await place.delivered(sent);
      assert.deepEqual(
        sent.map((each) => new Set(place.of(each).map(({ kind }) => kind))),
        [new Set(['step']), new Set(['workflow'])],
      );
    });

    rule('delivers a body byte by byte', async (place) => {
      const worker = await place.started();
      const bodies = [
        Buffer.from('{"text":"ä 😀 \u2028 \\u0000"}'),
        Buffer.from('a\0b'),
        Buffer.from(Array.from({ length: 256 }, (_, byte) => byte)),
        randomBytes(largestBody),
      ];
      const sent = bodies.map((body) => message('step', { body }));
      for (const each of sent) await worker.push(each);
      await place.delivered(sent);
      for (const [i, each] of sent.entries()) {
        for (const { body } of place.of(each)) {
          assert.ok(
            body.equals(bodies[i]),
            `other bytes arrived: ${excerpt(body)} instead of ${excerpt(bodies[i])}`,
          );
        }
      }
    });

    rule('keeps queue name, message id and headers', async (place) => {
      const worker = await place.started();
      const headers = { traceparent: '00-0af7651916cd43dd-b7ad6b71-01', 'x-own': 'a, b; c="d"' };
      const sent = NAMES.flatMap((id) => [
        message('step', { id, headers }),
        message('workflow', { id, headers }),
      ]);
      for (const each of sent) await worker.push(each);
      await place.delivered(sent);
      for (const each of sent) {
        for (const delivery of place.of(each)) {
          assert.equal(delivery.queueName, each.queueName);
          for (const [header, value] of Object.entries(headers)) {
            assert.equal(delivery.headers.get(header), value);
          }
        }
      }
    });

    rule('takes no message without a key for another one', async (place) => {
      const worker = await place.started();
      const sent = Array.from({ length: 5 }, () => message('step'));
      for (const each of sent) await worker.push(each);
      await place.delivered(sent);
    });

    rule('delivers before start() nothing, and then what was pushed before it', async (place) => {
      const early = await place.instance();
      const sent = [message('step'), message('workflow')];
      for (const each of sent) await early.push(each);
      await place.quiet();
      place.assertNone(place.log);
      await early.start();
      await place.delivered(sent);
    });

    rule('delivers by instances that were started only', async (place) => {
      const producer = await place.instance();
      const sent = [message('step'), message('workflow'), message('step'), message('workflow')];
      for (const each of sent.slice(0, 2)) await producer.push(each);
      const worker = await place.started();
      for (const each of sent.slice(2)) await producer.push(each);
      await place.delivered(sent);
      await place.quiet();
      assert.deepEqual(
        place.log.map(({ by }) => by.nth).filter((nth) => nth !== worker.nth),
        [],
      );
    });

    rule('delivers again what failed, until it succeeds', async (place) => {
      const worker = await place.started();
      const sent = Object.keys(FAILURES).map((id) => message('step', { id }));
      sent.push(message('workflow', { id: 'answers 500' }));
      place.respond = ({ messageId, queueName }) => {
        const [, id] = queueName.split(/^__wkf_[a-z]+_/);
        if (place.log.filter((other) => other.messageId === messageId).length <= FAILED_ATTEMPTS) {
          return FAILURES[id]();
        }
      };
      for (const each of sent) await worker.push(each);
      await place.until(
        () => sent.every((each) => place.of(each).length > FAILED_ATTEMPTS),
        `${FAILED_ATTEMPTS} failed deliveries and one more of each`,
      );
    });

    rule('counts the failed deliveries in attempt, from 1', async (place) => {
      const worker = await place.started();
      const sent = [message('step'), message('workflow')];
      place.respond = ({ messageId }) =>
        place.log.filter((other) => other.messageId === messageId).length <= 2
          ? FAILURES['answers 500']()
          : undefined;
      for (const each of sent) await worker.push(each);
      await place.until(() => sent.every((each) => place.of(each).length > 2), 'three attempts');
      for (const each of sent) {
        const attempts = place.of(each).map(({ attempt }) => attempt);
        if (!duplicates) assert.deepEqual(attempts, [1, 2, 3]);
        assert.equal(Math.min(...attempts), 1);
        assert.ok(Math.max(...attempts) > 1, `these were the attempts: ${attempts}`);
      }
    });

    rule('is not held up by a message that keeps failing', async (place) => {
      const worker = await place.started();
      const poison = message('step');
      place.respond = ({ messageId }) =>
        messageId === poison.messageId ? FAILURES['answers 500']() : undefined;
      await worker.push(poison);
      await place.delivered([poison]);
      const sent = Array.from({ length: 10 }, () => message('step'));
      for (const each of sent) await worker.push(each);
      await place.delivered(sent);
    });

    rule('loses nothing while its target is away', async (place) => {
      const worker = await place.started();
      worker.leave();
      const sent = [message('step'), message('workflow')];
      for (const each of sent) await worker.push(each);
      await sleep(QUIET_MS);
      await worker.comeBack();
      await place.delivered(sent);
    });

    rule('does not deliver again what succeeded', async (place) => {
      const worker = await place.started();
      const sent = [message('step'), message('workflow'), message('step', { id: 'nothing' })];
      place.respond = ({ queueName }) =>
        queueName.endsWith('nothing')
          ? new Response(null, { status: 204, headers: OF_WORLD })
          : undefined;
      for (const each of sent) await worker.push(each);
      await place.delivered(sent);
      // An endless redelivery never comes to rest.
      await place.quiet();
      place.assertOnce(sent);
    });

    rule('keeps a message back for delaySeconds', async (place) => {
      const worker = await place.started();
      const delaySeconds = 3.5;
      const sent = [message('step', { delaySeconds }), message('workflow', { delaySeconds })];
      const pushedAt = performance.now();
      for (const each of sent) await worker.push(each);
      await place.delivered(sent);
      for (const { at } of delays ? place.log : []) {
        const waited = at - pushedAt;
        assert.ok(
          waited >= delaySeconds * 1000 - CLOCK_TOLERANCE_MS,
          `came after ${Math.round(waited)} ms instead of ${delaySeconds} s`,
        );
      }
    });

    rule('takes a delay of months', async (place) => {
      const worker = await place.started();
      const far = message('workflow', { delaySeconds: 60 * 24 * 60 * 60 });
      await worker.push(far);
      await place.quiet();
      // A longer one than a timer takes, or than 32 bits hold, must not come at once.
      if (delays) place.assertNone(place.of(far));
    });

    rule(
      'executes once what is pushed several times under a key, while it waits',
      async (place) => {
        const [one, other] = [await place.instance(), await place.instance()];
        const key = `key-${randomUUID()}`;
        await Promise.all(
          [one, other, one].map((each) => each.push(message('step', { idempotencyKey: key }))),
        );
        await Promise.all([one.start(), other.start()]);
        await place.until(() => place.log.length > 0, 'a delivery');
        await place.quiet();
        assert.equal(place.log.length, 1, place.report());
      },
      ofOnceOnly,
    );

    rule(
      'executes once what is pushed several times under a key, while it runs',
      async (place) => {
        const [worker, other] = [await place.started(), await place.started()];
        const { open, opened } = place.gate();
        place.respond = () => opened;
        const key = `key-${randomUUID()}`;
        const push = (/** @type {Instance} */ by) =>
          by.push(message('step', { idempotencyKey: key }));
        await push(worker);
        await place.until(() => place.log.length > 0, 'a delivery');
        await Promise.all([push(worker), push(other)]);
        await place.quiet();
        open();
        await place.quiet();
        assert.equal(place.log.length, 1, place.report());
      },
      ofOnceOnly,
    );

    rule('takes a key again after its message has ended', async (place) => {
      const worker = await place.started();
      const idempotencyKey = `key-${randomUUID()}`;
      const first = message('step', { idempotencyKey });
      await worker.push(first);
      await place.delivered([first]);
      // The queue may still be about to note that the first has ended: then it drops this one.
      await place.until(async () => {
        await worker.push(message('step', { idempotencyKey }));
        await sleep(100);
        return place.log.some(({ messageId }) => messageId !== first.messageId);
      }, 'a delivery of a later push');
    });

    rule('takes any text as a key, which steps and workflows do not share', async (place) => {
      const worker = await place.started();
      const sent = KEYS.flatMap((idempotencyKey) => [
        message('step', { idempotencyKey }),
        message('workflow', { idempotencyKey }),
      ]);
      for (const each of sent) await worker.push(each);
      await place.delivered(sent);
    });

    rule('delivers each of 100 messages, from and to several instances', async (place) => {
      const producer = await place.instance();
      const workers = [await place.started(), await place.started()];
      const sent = Array.from({ length: 100 }, (_, i) => message(i % 2 ? 'step' : 'workflow'));
      await Promise.all(sent.map((each, i) => [producer, ...workers][i % 3].push(each)));
      await place.delivered(sent);
      await place.quiet();
      place.assertOnce(sent);
    });

    rule('does not let slow deliveries hold up others', async (place) => {
      const worker = await place.started();
      const slow = [message('step'), message('workflow')];
      const { opened } = place.gate();
      place.respond = ({ messageId }) =>
        slow.some((each) => each.messageId === messageId) ? opened : undefined;
      for (const each of slow) await worker.push(each);
      await place.delivered(slow);
      const sent = Array.from({ length: 10 }, (_, i) => message(i % 2 ? 'step' : 'workflow'));
      for (const each of sent) await worker.push(each);
      await place.delivered(sent);
    });

    rule('does not take a long delivery for a lost one', async (place) => {
      const workers = [await place.started(), await place.started()];
      const sent = [message('step'), message('workflow')];
      const { open, opened } = place.gate();
      place.respond = () => opened;
      for (const each of sent) await workers[0].push(each);
      await place.delivered(sent);
      await sleep(longDeliveryMs);
      open();
      await place.quiet();
      place.assertOnce(sent);
    });

    rule('lets a running delivery end when it closes', async (place) => {
      const [closing, next] = [await place.started(), await place.instance()];
      const sent = [message('step'), message('workflow')];
      const { open, opened } = place.gate();
      place.respond = () => opened;
      for (const each of sent) await closing.push(each);
      await place.delivered(sent);
      let closed = false;
      const close = closing.close().then(() => {
        closed = true;
      });
      await sleep(300);
      assert.equal(closed, false, 'close() did not wait for what was running');
      open();
      await close;
      await next.start();
      await place.quiet();
      place.assertOnce(sent);
    });

    rule('leaves to others what fails while it closes', async (place) => {
      const [closing, next] = [await place.started(), await place.instance()];
      const sent = [message('step'), message('workflow')];
      const { open, opened } = place.gate();
      place.respond = ({ by }) => {
        if (by.nth === closing.nth) return opened.then(FAILURES['answers 500']);
      };
      for (const each of sent) await closing.push(each);
      await place.delivered(sent);
      const close = closing.close();
      open();
      await close;
      await next.start();
      await place.delivered(sent, next);
    });

    rule('leaves to others what waits when it closes', async (place) => {
      const [closing, next] = [await place.started(), await place.instance()];
      const sent = Array.from({ length: 60 }, (_, i) => message(i % 2 ? 'step' : 'workflow'));
      const { open, opened } = place.gate();
      place.respond = () => opened;
      for (const each of sent) await closing.push(each);
      await place.until(() => place.log.length > 0, 'a delivery');
      const close = closing.close();
      open();
      await close;
      await next.start();
      await place.delivered(sent);
      await place.quiet();
      place.assertOnce(sent);
    });

    rule('delivers nothing after close()', async (place) => {
      const [closed, producer] = [await place.started(), await place.instance()];
      const before = message('step');
      await closed.push(before);
      await place.delivered([before]);
      await place.quiet();
      await closed.close();
      const sent = [message('step'), message('workflow')];
      for (const each of sent) await producer.push(each);
      await place.quiet();
      place.assertNone(sent.flatMap(place.of));
      await producer.start();
      await place.delivered(sent, producer);
    });

    rule('closes where it was not started, and keeps what was pushed', async (place) => {
      const producer = await place.instance();
      const sent = [message('step'), message('workflow')];
      for (const each of sent) await producer.push(each);
      await producer.close();
      await place.started();
      await place.delivered(sent);
    });

    rule(
      'says that it could not store a message',
      async (place) => {
        const create = /** @type {CreateDriver} */ (createUnreachableDriver);
        const instance = await place.instance(create);
        await Promise.all(
          [message('step'), message('workflow')].map((each) =>
            assert.rejects(instance.push(each), (error) => error !== place.timedOut),
          ),
        );
      },
      !createUnreachableDriver && 'options.createUnreachableDriver was not given',
    );

    describe('in a World', { concurrency: true }, () => {
      const skip =
        !connectionString && 'set options.connectionString or WORKFLOW_POSTGRES_URL to run these';

      /**
       * @param {Place} place
       * @param {(message: any, meta: { queueName: string, messageId: string, attempt: number }) => Promise<void | { timeoutSeconds: number }>} handler
       */
      async function world(place, handler) {
        const instance = await place.instance();
        const world = createWorld({
          connectionString,
          schema: options.schema,
          securityToken: TOKEN,
          queueFactory: () => instance.driver,
        });
        instance.close = () => place.within(world.close(), 'close() of the World');
        const handlers = {
          step: world.createQueueHandler('__wkf_step_', /** @type {any} */ (handler)),
          workflow: world.createQueueHandler('__wkf_workflow_', /** @type {any} */ (handler)),
        };
        place.respond = ({ kind, headers, body }) =>
          handlers[kind](new Request(instance.target.baseUrl, { method: 'POST', headers, body }));
        await place.within(world.start(), 'start() of the World');
        return world;
      }
      /** @param {string} name */
      const body = (name) => ({ __healthCheck: true, correlationId: `${name}-${randomUUID()}` });

      rule(
        'a message reaches its handler, again where that fails',
        async (place) => {
          /** @type {{ message: unknown, queueName: string, messageId: string, attempt: number }[]} */
          const calls = [];
          const { queue } = await world(place, async (message, meta) => {
            calls.push({ message, ...meta });
            if (calls.length === 1) throw new Error('not yet, as this test wants it to');
          });
          const sent = body('failing');
          const { messageId } = await queue('__wkf_step_s/ä', /** @type {any} */ (sent));
          await place.until(() => calls.length > 1, 'a second call of the handler');
          const attempts = duplicates ? calls.map(({ attempt }) => attempt) : [1, 2];
          assert.deepEqual(
            calls,
            attempts.map((attempt) => ({
              message: sent,
              queueName: '__wkf_step_s/ä',
              messageId,
              attempt,
            })),
          );
        },
        skip,
      );

      for (const kind of /** @type {const} */ (['step', 'workflow'])) {
        rule(
          `a ${kind} that asks for a pause comes again after it, and not before`,
          async (place) => {
            const pauseMs = 2000;
            let due = 0;
            /** @type {number[]} */
            const calls = [];
            const { queue } = await world(place, async () => {
              const now = performance.now();
              calls.push(now);
              due ||= now + pauseMs;
              // As the SDK's handlers: what comes early, such as a duplicate, is told the rest.
              if (now < due - CLOCK_TOLERANCE_MS) return { timeoutSeconds: (due - now) / 1000 };
            });
            await queue(`__wkf_${kind}_waiting`, /** @type {any} */ (body('waiting')));
            await place.until(() => calls.some((at) => at > calls[0]), 'a second call');
            await place.until(
              () => calls.some((at) => at >= due - CLOCK_TOLERANCE_MS),
              'a call after the pause',
            );
            if (!duplicates) {
              await place.quiet();
              assert.equal(calls.length, 2, `called after ${calls.map((at) => at - calls[0])} ms`);
            }
          },
          skip,
        );
      }
    });
  });
}

/**
 * A message as a World makes it.
 * @param {Kind} kind
 * @param {Partial<MessageData> & { body?: Uint8Array }} [more]
 * @returns {MessageData}
 */
function message(kind, { id = 'conformance', body = Buffer.from('{"a":1}'), ...more } = {}) {
  return {
    id,
    queueName: `__wkf_${kind}_${id}`,
    messageId: `msg_${randomUUID()}`,
    attempt: 1,
    data: new Bytes(body),
    ...more,
  };
}

/** Bytes in memory and base64 in JSON, as in the messages of a World. */
class Bytes extends Uint8Array {
  toJSON() {
    return Buffer.from(this).toString('base64');
  }
}

/** @param {Buffer} bytes */
function excerpt(bytes) {
  return `${bytes.length} bytes, ${bytes.subarray(0, 20).toString('hex')}…`;
}

/**
 * The surroundings of one test: instances at one queue, and all that they deliver.
 * @param {import('node:test').TestContext} t
 * @param {CreateDriver} createDriver
 * @param {{ duplicates: boolean, limitMs: number }} options
 */
function createPlace(t, createDriver, { duplicates, limitMs }) {
  const queue = `conformance-${randomUUID()}`;
  const timedOut = new Error(`timed out after ${limitMs} ms`);
  /** @type {Instance[]} */
  const instances = [];
  /** @type {(() => void)[]} */
  const gates = [];
  /** @type {Delivery[]} */
  const log = [];

  t.after(async () => {
    for (const open of gates) open();
    await Promise.allSettled(instances.map((instance) => instance.close()));
    for (const instance of instances) instance.leave();
  });

  const place = {
    log,
    timedOut,

    /** What the app answers; nothing stands for a 200. @type {(delivery: Delivery) => Response | void | Promise<Response | void>} */
    respond: () => {},

    async instance(create = createDriver) {
      const instance = await createInstance(place, queue, create, instances.length + 1);
      instances.push(instance);
      return instance;
    },

    async started() {
      const instance = await place.instance();
      await instance.start();
      return instance;
    },

    /** A promise and what resolves it, at the end of the test at the latest. */
    gate() {
      let open = () => {};
      const opened = new Promise((resolve) => {
        open = () => resolve(undefined);
      });
      gates.push(open);
      return { open, opened: /** @type {Promise<void>} */ (opened) };
    },

    /**
     * @template T
     * @param {Promise<T>} promise
     * @param {string} what
     * @returns {Promise<T>}
     */
    async within(promise, what) {
      const timer = new AbortController();
      const limit = sleep(limitMs, undefined, timer).then(() => {
        t.diagnostic(`${what} took longer than ${limitMs} ms\n${place.report()}`);
        throw timedOut;
      });
      limit.catch(() => {});
      return Promise.race([promise, limit]).finally(() => timer.abort());
    },

    /** @param {() => boolean | Promise<boolean>} condition @param {string} what */
    async until(condition, what) {
      const deadline = performance.now() + limitMs;
      while (!(await condition())) {
        assert.ok(
          performance.now() < deadline,
          `not within ${limitMs} ms: ${what}\n${place.report()}`,
        );
        await sleep(10);
      }
    },

    /** Until nothing happens any more. */
    async quiet() {
      await place.until(async () => {
        const before = log.length;
        await sleep(QUIET_MS);
        return log.length === before;
      }, 'an end of the deliveries');
    },

    /** @param {MessageData} message */
    of: ({ messageId }) => log.filter((delivery) => delivery.messageId === messageId),

    /** Until each was delivered. @param {MessageData[]} messages @param {Instance} [to] */
    async delivered(messages, to) {
      const missing = () =>
        messages.filter((each) => !place.of(each).some(({ by }) => !to || by.nth === to.nth));
      await place.until(
        () => missing().length === 0,
        `delivery of all of ${messages.map(({ messageId }) => messageId).join(', ')}`,
      );
    },

    /** @param {Delivery[]} deliveries */
    assertNone(deliveries) {
      assert.equal(deliveries.length, 0, `there must be no such delivery\n${place.report()}`);
    },

    /** @param {MessageData[]} messages */
    assertOnce(messages) {
      if (duplicates) return;
      const wrong = messages.filter((each) => place.of(each).length !== 1);
      assert.equal(wrong.length, 0, `delivered more than once\n${place.report()}`);
    },

    report: () =>
      [
        `${log.length} deliveries`,
        ...log
          .slice(-50)
          .map(
            ({ by, kind, messageId, attempt, at }) =>
              `  ${Math.round(at)} ms: ${messageId} to the ${kind} route, attempt ${attempt}, by instance ${by.nth}`,
          ),
      ].join('\n'),
  };
  return place;
}

/**
 * A driver and its app.
 * @param {Place} place
 * @param {string} queue
 * @param {CreateDriver} create
 * @param {number} nth
 */
async function createInstance(place, queue, create, nth) {
  let away = false;

  /** @param {Kind} kind @returns {(request: Request) => Promise<Response>} */
  const entrypoint = (kind) => async (request) => {
    if (away) throw new Error('the app is away, as this test wants it to be');
    const { headers } = request;
    if (headers.get('x-workflow-secret') !== TOKEN) {
      return new Response(null, { status: 401, headers: OF_WORLD });
    }
    const taken = () => Response.json({ ok: true }, { headers: OF_WORLD });
    if (headers.has(PROBE_HEADER)) return taken();
    /** @type {Delivery} */
    const delivery = {
      by: instance,
      kind,
      queueName: decodeURIComponent(headers.get('x-vqs-queue-name') ?? ''),
      messageId: headers.get('x-vqs-message-id') ?? '',
      attempt: Number(headers.get('x-vqs-message-attempt')),
      headers,
      body: Buffer.from(await request.arrayBuffer()),
      at: performance.now(),
    };
    place.log.push(delivery);
    return (await place.respond(delivery)) ?? taken();
  };
  const [stepEntrypoint, workflowEntrypoint] = [entrypoint('step'), entrypoint('workflow')];

  const server = createServer(async (incoming, outgoing) => {
    const route = { step: stepEntrypoint, flow: workflowEntrypoint }[
      /^\/\.well-known\/workflow\/v1\/(step|flow)$/.exec(incoming.url ?? '')?.[1] ?? ''
    ];
    try {
      const chunks = [];
      for await (const chunk of incoming) chunks.push(chunk);
      const response =
        route && incoming.method === 'POST'
          ? await route(
              new Request(`http://localhost${incoming.url}`, {
                method: 'POST',
                headers: /** @type {Record<string, string>} */ (incoming.headers),
                body: Buffer.concat(chunks),
              }),
            )
          : new Response(null, { status: 404 });
      outgoing.writeHead(response.status, Object.fromEntries(response.headers));
      outgoing.end(Buffer.from(await response.arrayBuffer()));
    } catch {
      incoming.socket.destroy();
    }
  });
  /** @param {number} port */
  const listen = async (port) => {
    server.listen(port, '127.0.0.1');
    await once(server, 'listening');
    return /** @type {import('node:net').AddressInfo} */ (server.address()).port;
  };
  const port = await listen(0);

  const target = {
    queue,
    baseUrl: `http://127.0.0.1:${port}`,
    securityToken: TOKEN,
    stepEntrypoint,
    workflowEntrypoint,
    proxy: createFunctionProxy({ stepEntrypoint, workflowEntrypoint, securityToken: TOKEN }),
  };
  const driver = await place.within(Promise.resolve(create(target)), 'making the driver');
  /** @type {Promise<void> | undefined} */
  let closed;

  const instance = {
    nth,
    target,
    driver,
    /** @param {MessageData} message */
    push: (message) =>
      place.within(
        message.queueName.startsWith('__wkf_step_')
          ? driver.pushStep(message)
          : driver.pushFlow(message),
        'a push',
      ),
    start: () => place.within(driver.start(), 'start()'),
    close() {
      closed ??= place.within(Promise.resolve(driver.close?.()), 'close()');
      return closed;
    },
    leave() {
      away = true;
      server.close();
      server.closeAllConnections();
    },
    async comeBack() {
      await listen(port);
      away = false;
    },
  };
  return instance;
}
