import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { createPostgresUpstashWorld, createWorld } from '../../index.js';
import { claimsOf, sign } from '../../scripts/support/qstash.mjs';
import { NOWHERE } from '../qstash/fixture.mjs';
import { TOKEN } from '../queue/fixture.mjs';
import { creature } from './creatures.mjs';
import { forAll } from './hostility.mjs';

const KEY = 'sig_current';
const TARGET = 'https://app.example';
const ROUTE = `${TARGET}/.well-known/workflow/v1/step`;
const PREFIX = '__wkf_step_';
const BODY = '{"stepId":"step_1","at":{"__type":"Uint8Array","data":"AAEC"}}';

/** What a header can carry. */
const headerText = fc
  .string({ unit: fc.integer({ min: 0x20, max: 0xff }).map((code) => String.fromCharCode(code)) })
  .map((text) => text.trim());
/** @param {string} right */
const header = (right) =>
  fc.oneof(
    { weight: 4, arbitrary: fc.constant(right) },
    headerText,
    headerText.map((text) => right + text),
    fc.constantFrom('', '0', '-1', '1e3', '%', '%00', '%ED%A0%80', '2'.repeat(400)),
  );

const body = fc.oneof(
  { weight: 2, arbitrary: fc.constant({ text: BODY }) },
  fc.json().map((text) => ({ text })),
  fc.string({ unit: 'binary' }).map((text) => ({ text })),
  fc.constantFrom(100, 50_000).map((levels) => ({ levels })),
  fc.uint8Array().map((bytes) => ({ bytes })),
  creature.map((chunk) => ({ chunk })),
  creature.map((failure) => ({ failure })),
);

/**
 * @param {any} given
 * @returns {BodyInit}
 */
function bodyOf({ text, bytes, chunk, failure, levels }) {
  if (levels) return '['.repeat(levels) + ']'.repeat(levels);
  if (text !== undefined) return text;
  if (bytes) return bytes;
  return new ReadableStream({
    pull(controller) {
      if (failure) {
        controller.error(failure.make());
        return;
      }
      controller.enqueue(chunk.make());
      controller.close();
    },
  });
}

/** As QStash signs it, where it is a text. @param {any} given */
const signatureOf = ({ text = '' }) => sign(KEY, claimsOf(ROUTE, Buffer.from(text)));

const worlds = {
  'the token': {
    world: createWorld({ connectionString: NOWHERE, securityToken: TOKEN }),
    credential: 'x-workflow-secret',
    right: () => TOKEN,
  },
  'the signature of QStash': {
    world: createPostgresUpstashWorld({
      databaseUrl: NOWHERE,
      qstash: { token: 'token', targetUrl: TARGET, currentSigningKey: KEY, retries: 100 },
    }),
    credential: 'upstash-signature',
    right: signatureOf,
  },
};

for (const [who, { world, credential, right }] of Object.entries(worlds)) {
  test(`a delivery by ${who} is executed as it is, or answered why not`, async () => {
    const delivery = fc.record({
      queueName: header(`${PREFIX}a`),
      messageId: header('msg_1'),
      attempt: header('1'),
      retried: header('0'),
      forged: fc.option(headerText, { freq: 4 }),
      body,
      result: fc.option(creature),
      failure: fc.option(creature),
    });
    await forAll(400, delivery, async (given) => {
      /** @type {unknown[]} */
      const calls = [];
      const handle = world.createQueueHandler(PREFIX, async (message) => {
        calls.push(message);
        if (given.failure) throw given.failure.make();
        return /** @type {any} */ (given.result?.make());
      });
      const credentials = given.forged ?? right(given.body);
      const request = new Request(ROUTE, {
        method: 'POST',
        headers: {
          [credential]: credentials,
          'x-vqs-queue-name': given.queueName,
          'x-vqs-message-id': given.messageId,
          'x-vqs-message-attempt': given.attempt,
          'upstash-retried': given.retried,
        },
        body: bodyOf(given.body),
        // @ts-expect-error a body that is a stream needs it
        duplex: 'half',
      });
      const response = await handle(request);
      const answer = await response.json();
      assert.ok([200, 400, 401, 489, 500].includes(response.status), String(response.status));
      if (response.status === 200) assert.equal(calls.length, 1);
      if (response.status !== 200 && response.status !== 500) {
        assert.deepEqual(calls, [], 'executed, and refused');
        assert.equal(typeof answer.error, 'string');
      }
      if (given.forged !== null) assert.equal(response.status, 401);
      if (calls.length === 0) return;
      const { text, bytes, chunk, levels } = /** @type {any} */ (given.body);
      if (levels) return;
      const sent = JSON.parse(text ?? Buffer.from(bytes ?? chunk.make()).toString());
      assert.deepEqual(calls[0], text === BODY ? { ...sent, at: new Uint8Array([0, 1, 2]) } : sent);
    });
  });
}
