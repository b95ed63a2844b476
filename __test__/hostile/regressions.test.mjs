// What the properties have found, one by one.
import assert from 'node:assert/strict';
import test, { after } from 'node:test';
import { WorkflowRunSchema } from '@workflow/world';
import { createFunctionProxy, createWorld } from '../../index.js';
import { decodeBody, encodeBody } from '../../lib/messages.js';
import { OF_WORLD } from '../queue/fixture.mjs';
import {
  assertRefused,
  bytes,
  event,
  openWorld,
  runCreated,
  runningRun,
  stepCreated,
  typesOf,
  ulid,
} from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';

const database = await testDatabase({ after });
const world = openWorld(database);
after(() => world.close());

/** @param {Promise<unknown>} promise @param {RegExp} names what was wrong */
async function assertInvalid(promise, names) {
  const error = await assertRefused(promise, 'WorkflowWorldError', 400);
  assert.match(error.message, names);
}

const throwing = Object.defineProperty({}, 'resolveData', {
  enumerable: true,
  get() {
    throw new RangeError('a trap');
  },
});

test('a message is decoded at every depth at which it can be sent', () => {
  let levels = 0;
  /** @type {unknown} */
  let message = {};
  try {
    for (; ; levels += 1) {
      if (levels % 100 === 0) decodeBody(encodeBody(message));
      message = { message };
    }
  } catch (error) {
    assert.equal(Object(error).status, 400);
  }
  assert.ok(levels > 2000, `only ${levels} levels`);
});

test('bytes in a message are bytes again, under any name', () => {
  const message = JSON.parse('{"__proto__": {"a": [null, 1]}, "b": 2}');
  message.c = bytes('c');
  Object.defineProperty(message.__proto__, 'd', { enumerable: true, value: 1 });
  Object.getOwnPropertyDescriptor(message, '__proto__')?.value.a.push(bytes('d'));
  assert.deepEqual(decodeBody(encodeBody(message)), message);
});

test('an id with half a character is refused, for it would become another one', async () => {
  const runId = await runningRun(world);
  const half = 'a\ud83d';
  for (const call of [
    () => world.events.create(runId, stepCreated(half)),
    () => world.events.create(runId, event('hook_created', `hook_${ulid()}`, { token: half })),
    () => world.writeToStream(half, runId, 'chunk'),
    () => world.queue('__wkf_step_a', {}, { idempotencyKey: half }),
    () => world.queue(`__wkf_step_${half}`, {}),
  ]) {
    await assertInvalid(call(), /surrogate/);
  }
  assert.deepEqual(await typesOf(world, runId), ['run_created', 'run_started']);
});

test("an event's data and a run's context are objects", async () => {
  const runId = await runningRun(world);
  for (const eventData of [[1], new Date(), { toJSON: () => 'text' }, { toJSON() {} }]) {
    await assertInvalid(
      world.events.create(runId, event('step_started', 's', eventData)),
      /eventData/,
    );
  }
  for (const executionContext of [5, 'text', [1]]) {
    const eventData = { ...runCreated().eventData, executionContext };
    await assertInvalid(world.events.create(null, runCreated({ eventData })), /executionContext/);
  }
});

test('a run whose error is of an odd shape can be read by the SDK', async () => {
  const runId = await runningRun(world);
  const error = { message: ['m'], stack: { at: 1 } };
  await world.events.create(runId, event('run_failed', undefined, { error, errorCode: 7 }));
  const { error: stored } = WorkflowRunSchema.parse(await world.runs.get(runId));
  assert.equal(stored?.message, 'Unknown error');
});

test('a buffer that was transferred away is not taken for an empty one', async () => {
  const gone = bytes('payload');
  structuredClone(gone, { transfer: [gone.buffer] });
  const eventData = { ...runCreated().eventData, input: gone };
  await assertInvalid(world.events.create(null, runCreated({ eventData })), /detached/);
  await assertInvalid(world.writeToStream(`strm_${ulid()}`, 'run', gone), /detached/);
  await assertInvalid(world.queue('__wkf_step_a', { gone }), /detached/);
});

test('a run that cannot be started is not created by its start', async () => {
  const { eventData } = runCreated();
  for (const specVersion of [0, 1]) {
    const runId = `wrun_${ulid()}`;
    const started = { ...event('run_started', undefined, eventData), specVersion };
    await assertInvalid(world.events.create(runId, started), /specVersion/);
    await assertRefused(world.runs.get(runId), 'WorkflowRunNotFoundError', 404);
  }
});

test('the answer has a payload as a later read gives it', async () => {
  const eventData = { ...runCreated().eventData, input: Buffer.from('input') };
  const { event: created, run } = await world.events.create(null, runCreated({ eventData }));
  assert.deepEqual(created, await world.events.get(run.runId, created.eventId));
  assert.deepEqual(run.input, bytes('input'));
});

test('a date that is none is named', async () => {
  const runId = await runningRun(world);
  for (const resumeAt of ['tomorrow', true, {}]) {
    const wait = event('wait_created', `wait_${ulid()}`, { resumeAt });
    await assertInvalid(world.events.create(runId, wait), /resumeAt/);
  }
});

test('an argument that throws when it is read is the mistake of the caller', async () => {
  await assertInvalid(world.runs.list(/** @type {any} */ (throwing)), /a trap/);
  await assertInvalid(world.runs.get('a', /** @type {any} */ (throwing)), /a trap/);
  await assertInvalid(world.events.create(null, runCreated(), throwing), /a trap/);
});

test('options of queue() are what they should be, or nothing is sent', async () => {
  const send = (/** @type {any} */ options) => world.queue('__wkf_step_a', {}, options);
  await assertInvalid(send({ headers: 'text' }), /headers/);
  await assertInvalid(send({ headers: { a: 1 } }), /headers/);
  for (const delaySeconds of [1e308, -1, Number.NaN, '5']) {
    await assertInvalid(send({ delaySeconds }), /delaySeconds/);
  }
  assert.match(
    (await world.queue('__wkf_step_a', {}, /** @type {any} */ (null))).messageId,
    /^msg_/,
  );
});

test('settings of a wrong type are named', async () => {
  for (const options of [
    { maxPoolSize: 5n },
    { schema: () => 'mine' },
    { jobPrefix: Symbol('p') },
    { queueFactory: 5 },
  ]) {
    const wrong = createWorld(/** @type {any} */ (options));
    const error = await assertRefused(wrong.runs.list(), 'WorkflowWorldError', 500);
    const [name] = Object.keys(options);
    assert.deepEqual([error.code, error.message.includes(name)], ['CONFIGURATION', true]);
    await wrong.close();
  }
});

test('what cannot be a header of a delivery is refused when it is sent', async () => {
  const long = 'x'.repeat(20_000);
  await assertInvalid(world.queue(`__wkf_step_${long}`, {}), /queueName may have/);
  await assertInvalid(
    world.queue('__wkf_step_a', {}, { headers: { a: long } }),
    /headers may have/,
  );
});

test('a message in memory of any kind is delivered to a function', async () => {
  let received = '';
  const proxy = createFunctionProxy({
    securityToken: 'token',
    async workflowEntrypoint(request) {
      received = await request.text();
      return Response.json({ ok: true }, { headers: OF_WORLD });
    },
  });
  const message = { id: 'a', queueName: '__wkf_step_a', messageId: 'm', attempt: 1 };
  // @ts-expect-error resizable buffers are not in the library of ES2023
  for (const buffer of [new SharedArrayBuffer(2), new ArrayBuffer(2, { maxByteLength: 8 })]) {
    const data = new Uint8Array(buffer);
    data.set(bytes('{}'));
    received = '';
    await proxy.proxyStep({ ...message, data });
    assert.equal(received, '{}');
  }
});
