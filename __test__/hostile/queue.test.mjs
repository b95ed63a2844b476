import assert from 'node:assert/strict';
import test, { after } from 'node:test';
import { types } from 'node:util';
import fc from 'fast-check';
import {
  createPgBossFunctionProxyQueue,
  createPgBossHttpProxyQueue,
  createWorld,
} from '../../index.js';
import { TOKEN } from '../queue/fixture.mjs';
import { bytes, ulid } from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { assertInvariants } from '../support/invariants.mjs';
import { changed, changes } from './creatures.mjs';
import { attempt, forAll, rowVersions } from './hostility.mjs';

const database = await testDatabase({ after });
const { url: connectionString, schema, queueSchema, pool } = database;
const settings = { connectionString, schema, queueSchema, securityToken: TOKEN, maxPoolSize: 4 };
/** @type {any} */
const world = createWorld(settings);
after(() => world.close());

const job = async (/** @type {string} */ messageId) => {
  const { rows } = await pool.query(
    `SELECT name, data, start_after AS due FROM ${queueSchema}.job WHERE data ->> 'messageId' = $1`,
    [messageId],
  );
  return rows[0];
};

// Keys may come twice: each message is to be a new one.
const forgetAll = () => pool.query(`DELETE FROM ${queueSchema}.job`);

const message = () => ({
  runId: `wrun_${ulid()}`,
  traceCarrier: { traceparent: '00-1' },
  runInput: { input: bytes('input'), specVersion: 3, nested: [{ a: 1 }] },
});

/** @type {(kind: string, options: object) => unknown[]} */
const sending = (kind, options) => [`__wkf_${kind}_a//./b`, message(), options];

const options = () => ({
  idempotencyKey: `key_${ulid()}`,
  headers: { traceparent: '00-1', 'x-name': 'value' },
  delaySeconds: 1.5,
  deploymentId: 'dpl',
  specVersion: 3,
});

/**
 * JSON, in which bytes are told from what looks alike.
 * @param {unknown} message
 */
const asText = (message) =>
  JSON.stringify(
    message,
    /** @this {any} */
    function (key, value) {
      const original = this[key];
      return types.isUint8Array(original)
        ? `bytes ${Buffer.from(original).toString('hex')}`
        : value;
    },
  );

/** As the handler of the message's queue gets it. @param {any} data @param {string} kind */
async function delivered(data, kind) {
  /** @type {any[]} */
  const calls = [];
  const handle = world.createQueueHandler(`__wkf_${kind}_`, async (/** @type {any} */ received) => {
    calls.push(received);
  });
  const response = await handle(
    new Request('http://localhost/', {
      method: 'POST',
      headers: {
        'x-workflow-secret': TOKEN,
        'x-vqs-queue-name': encodeURIComponent(data.queueName),
        'x-vqs-message-id': data.messageId,
        'x-vqs-message-attempt': '1',
      },
      body: Buffer.from(data.data, 'base64'),
    }),
  );
  assert.equal(response.status, 200, await response.text());
  return calls[0];
}

for (const kind of ['workflow', 'step']) {
  test(`queue() sends a message to a ${kind} as it is, or nothing`, async () => {
    await world.queue(...sending(kind, options()));
    await forAll(60, changes, async (hostile) => {
      const args = /** @type {any[]} */ (changed(sending(kind, options()), hostile));
      await forgetAll();
      const before = await rowVersions(database);
      const outcome = await attempt(() => world.queue(...args));
      if ('refusal' in outcome) {
        assert.deepEqual(await rowVersions(database), before, 'half a write');
        return;
      }
      const [queueName, sent, sentOptions] = args;
      const stored = await job(outcome.answer.messageId);
      assert.ok(stored, 'the message is stored');
      assert.equal(stored.data.queueName, queueName);
      // Not spread: what is no header has symbols for keys, as Node gives promises.
      const headers = Object.fromEntries(Object.entries(sentOptions?.headers ?? {}));
      assert.deepEqual(stored.data.headers ?? {}, headers);
      assert.equal(stored.data.idempotencyKey, sentOptions?.idempotencyKey ?? undefined);
      assert.equal(asText(await delivered(stored.data, kind)), asText(sent));
    });
  });
}

const data = () => ({
  id: 'a//./b',
  queueName: '__wkf_step_a//./b',
  messageId: `msg_${ulid()}`,
  attempt: 1,
  data: bytes('{"stepId":"step_1"}'),
  ...options(),
});

const drivers = {
  createPgBossHttpProxyQueue: createPgBossHttpProxyQueue(settings),
  createPgBossFunctionProxyQueue: createPgBossFunctionProxyQueue({
    ...settings,
    workflowEntrypoint: async () => new Response(),
  }),
};

for (const [name, driver] of Object.entries(drivers)) {
  after(() => driver.close?.());

  for (const method of /** @type {const} */ (['pushStep', 'pushFlow'])) {
    test(`${method} of ${name} takes a message as it is, or not at all`, async () => {
      await driver[method](data());
      await forAll(40, changes, async (hostile) => {
        const [given] = /** @type {any[]} */ (changed([data()], hostile));
        await forgetAll();
        const before = await rowVersions(database);
        const outcome = await attempt(() => driver[method](given));
        if ('refusal' in outcome) {
          assert.deepEqual(await rowVersions(database), before, 'half a write');
          return;
        }
        const stored = await job(/** @type {string} */ (outcome.answer));
        assert.equal(stored.data.queueName, given.queueName);
        const body =
          typeof given.data === 'string' ? Buffer.from(given.data, 'base64') : given.data;
        assert.ok(Buffer.from(stored.data.data, 'base64').equals(body));
      });
    });
  }
}

test('those that are sent at the same moment do not suffer from each other', async () => {
  const batch = fc.array(changes, { minLength: 2, maxLength: 10 });
  await forAll(15, batch, async (all) => {
    const outcomes = await Promise.all(
      all.flatMap((hostile) => [
        attempt(() => world.queue(...changed(sending('step', options()), hostile))),
        attempt(() => world.queue(...sending('step', options()))),
      ]),
    );
    for (const [index, outcome] of outcomes.entries()) {
      if (index % 2 === 1) assert.ok('answer' in outcome, Object(outcome).refusal?.stack);
    }
  });
});

test('and what is stored is sound', async () => {
  // Messages of runs that do not exist are part of these tests.
  await forgetAll();
  await assertInvariants(database);
});
