import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { after, describe, test } from 'node:test';
import { testDatabase } from '../support/database.mjs';
import { relay } from '../support/relay.mjs';
import {
  assertLogIsSound,
  bytes,
  event,
  liveHook,
  logOf,
  openWait,
  openWorld,
  pendingRun,
  pendingStep,
  refusal,
  runCreated,
  runningRun,
  runningStep,
  stepCreated,
  ulid,
} from './fixture.mjs';

const COMMAND_COMPLETE = 'C'.charCodeAt(0);

/**
 * Stands between a World and PostgreSQL. Once armed, it lets the next statement through, waits until
 * PostgreSQL says that it is complete, and cuts the connection instead of telling, after `meanwhile`.
 *
 * @param {string} target
 */
async function answerLoser(target) {
  const { hostname, port } = new URL(target);
  /** @type {(() => Promise<unknown>) | undefined} */
  let armed;
  let lost = 0;
  const server = createServer({ noDelay: true }, (client) => {
    const upstream = connect({ host: hostname, port: Number(port), noDelay: true });
    client.pipe(upstream);
    upstream.on('data', (chunk) => {
      if (armed && completes(chunk)) {
        const meanwhile = armed;
        armed = undefined;
        lost += 1;
        meanwhile().then(() => {
          client.destroy();
          upstream.destroy();
        });
      } else {
        client.write(chunk);
      }
    });
    for (const [socket, other] of [
      [client, upstream],
      [upstream, client],
    ]) {
      socket.on('error', () => {});
      socket.on('close', () => other.destroy());
    }
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  after(() => void server.close());
  const url = new URL(target);
  url.port = String(/** @type {import('node:net').AddressInfo} */ (server.address()).port);
  return {
    url: url.href,
    /** @template T @param {() => Promise<T>} call @param {() => Promise<unknown>} [meanwhile] */
    async during(call, meanwhile = async () => {}) {
      const before = lost;
      armed = meanwhile;
      const result = await call();
      assert.equal(lost, before + 1, 'no answer was lost');
      return result;
    },
  };
}

/** Whether the messages of PostgreSQL in `chunk` say that a statement is complete. @param {Buffer} chunk */
function completes(chunk) {
  for (let at = 0; at + 5 <= chunk.length; at += 1 + chunk.readUInt32BE(at + 1)) {
    if (chunk[at] === COMMAND_COMPLETE) return true;
  }
  return false;
}

const database = await testDatabase({ after });
const loser = await answerLoser(database.url);
const direct = openWorld(database);
const world = openWorld(database, { connectionString: loser.url, maxPoolSize: 3 });
after(async () => {
  await world.close();
  await direct.close();
});

/** @param {any} value as JSON says it, without what is absent */
const plain = (value) => JSON.parse(JSON.stringify(value));

/**
 * A call of each type, on a run that is ready for it.
 * @type {Record<string, () => Promise<{ runId: string | null, event: Record<string, any>, type?: string }>>}
 */
const calls = {
  run_created: async () => ({ runId: null, event: runCreated() }),
  'run_created with an id': async () => ({ runId: `wrun_${ulid()}`, event: runCreated() }),
  run_started: async () => ({ runId: await pendingRun(direct), event: event('run_started') }),
  'run_started that creates its run': async () => ({
    runId: `wrun_${ulid()}`,
    event: event('run_started', undefined, runCreated().eventData),
  }),
  run_completed: async () => ({
    runId: await runningRun(direct),
    event: event('run_completed', undefined, { output: bytes('output') }),
  }),
  run_failed: async () => ({
    runId: await runningRun(direct),
    event: event('run_failed', undefined, { error: 'no', errorCode: 'USER_ERROR' }),
  }),
  run_cancelled: async () => ({ runId: await runningRun(direct), event: event('run_cancelled') }),
  step_created: async () => ({
    runId: await runningRun(direct),
    event: stepCreated(`step_${ulid()}`),
  }),
  step_started: async () => {
    const runId = await runningRun(direct);
    return { runId, event: event('step_started', await pendingStep(direct, runId)) };
  },
  step_completed: async () => {
    const runId = await runningRun(direct);
    const stepId = await runningStep(direct, runId);
    return { runId, event: event('step_completed', stepId, { result: bytes('result') }) };
  },
  step_failed: async () => {
    const runId = await runningRun(direct);
    return {
      runId,
      event: event('step_failed', await runningStep(direct, runId), { error: 'no' }),
    };
  },
  step_retrying: async () => {
    const runId = await runningRun(direct);
    const data = { error: 'again', retryAfter: new Date(Date.now() + 60_000) };
    return { runId, event: event('step_retrying', await runningStep(direct, runId), data) };
  },
  hook_created: async () => ({
    runId: await runningRun(direct),
    event: event('hook_created', `hook_${ulid()}`, { token: ulid(), metadata: bytes('m') }),
  }),
  'hook_created that meets a token in use': async () => {
    const { token } = await liveHook(direct, await runningRun(direct));
    return {
      runId: await runningRun(direct),
      event: event('hook_created', `hook_${ulid()}`, { token }),
      type: 'hook_conflict',
    };
  },
  hook_received: async () => {
    const runId = await runningRun(direct);
    const { hookId } = await liveHook(direct, runId);
    return { runId, event: event('hook_received', hookId, { payload: bytes('payload') }) };
  },
  hook_disposed: async () => {
    const runId = await runningRun(direct);
    const { hookId } = await liveHook(direct, runId);
    return { runId, event: event('hook_disposed', hookId) };
  },
  wait_created: async () => ({
    runId: await runningRun(direct),
    event: event('wait_created', `wait_${ulid()}`, { resumeAt: new Date(Date.now() + 60_000) }),
  }),
  wait_completed: async () => {
    const runId = await runningRun(direct);
    const { waitId } = await openWait(direct, runId, new Date());
    return { runId, event: event('wait_completed', waitId) };
  },
};

describe('an event whose commit was not answered is recognised when it is sent again', () => {
  // The first use of a connection prepares the statement, in an exchange of its own.
  test.before(() => runningRun(world));

  for (const [name, arrange] of Object.entries(calls)) {
    test(name, async () => {
      const control = await arrange();
      const undisturbed = await direct.events.create(control.runId, control.event);

      const { runId, event: sent, type = sent.eventType } = await arrange();
      const result = await loser.during(() => world.events.create(runId, sent));

      const owner = runId ?? result.run.runId;
      const log = await logOf(direct, owner);
      const stored = log.filter(
        ({ eventType, correlationId }) =>
          eventType === type && correlationId === sent.correlationId,
      );
      assert.equal(stored.length, 1, JSON.stringify(log, undefined, 1));
      // A run that runs already is told so, as to any second caller of run_started.
      if (type !== 'run_started') assert.deepEqual(plain(result.event), plain(stored[0]));
      for (const entity of ['run', 'step', 'hook', 'wait']) {
        const [got, expected] = [result, undisturbed].map((answer) => Reflect.get(answer, entity));
        assert.deepEqual(Object.keys(got ?? {}).sort(), Object.keys(expected ?? {}).sort(), entity);
        assert.equal(got?.status, expected?.status);
        assert.deepEqual(got?.input, expected?.input);
        assert.deepEqual(got?.output, expected?.output);
        assert.equal(got?.attempt, expected?.attempt);
      }
      assert.equal(result.events?.length, undisturbed.events?.length);
      await assertLogIsSound(database);
    });
  }

  test('each call of a batch, and no other call that looks the same', async () => {
    const runId = await runningRun(direct);
    const { hookId } = await liveHook(direct, runId);
    const payload = () => event('hook_received', hookId, { payload: bytes('the same') });
    await loser.during(() =>
      Promise.all(Array.from({ length: 40 }, () => world.events.create(runId, payload()))),
    );
    const received = (await logOf(direct, runId)).filter(
      ({ eventType }) => eventType === 'hook_received',
    );
    assert.equal(received.length, 40);
  });
});

for (const { since, name, error } of [
  { since: [], name: 'runs', error: 'TooEarlyError' },
  {
    since: [event('step_completed', undefined, { result: bytes('result') })],
    name: 'has completed',
    error: 'EntityConflictError',
  },
]) {
  test(`a start whose answer was lost is not told of an attempt of another, which ${name}`, async () => {
    await runningRun(world);
    const runId = await runningRun(direct);
    const stepId = await pendingStep(direct, runId);
    const started = loser.during(
      () => refusal(world.events.create(runId, event('step_started', stepId))),
      async () => {
        for (const { eventType, eventData } of [event('step_started'), ...since]) {
          await direct.events.create(runId, event(eventType, stepId, eventData));
        }
      },
    );
    assert.equal((await started).name, error);
    const log = await logOf(direct, runId);
    assert.equal(log.filter(({ eventType }) => eventType === 'step_started').length, 2);
    await assertLogIsSound(database);
  });
}

test('chunks of a stream whose commit was not answered are there once', async () => {
  const runId = await runningRun(direct);
  const name = `stream-${ulid()}`;
  await world.writeToStream(name, runId, bytes('0'));
  await loser.during(async () => world.writeToStreamMulti?.(name, runId, [bytes('1'), bytes('2')]));
  await world.writeToStream(name, runId, bytes('3'));
  await loser.during(() => world.closeStream(name, runId));
  const { data, done } = await world.getStreamChunks(name, runId);
  assert.deepEqual(
    data.map((chunk) => Buffer.from(chunk.data).toString()),
    ['0', '1', '2', '3'],
  );
  assert.equal(done, true);
});

test('a message whose commit was not answered is there once', async () => {
  const runId = await runningRun(direct);
  await world.queue('__wkf_workflow_warm', { runId: await runningRun(direct) });
  await loser.during(() => world.queue('__wkf_workflow_w', { runId }));
  const idempotencyKey = `step_${ulid()}`;
  await loser.during(() =>
    world.queue(
      '__wkf_step_s',
      { workflowRunId: runId, stepId: idempotencyKey },
      { idempotencyKey },
    ),
  );
  const { rows } = await database.pool.query(
    `SELECT name, state FROM ${database.queueSchema}.job WHERE singleton_key = ANY ($1) ORDER BY name`,
    [[runId, idempotencyKey]],
  );
  assert.deepEqual(
    rows.map(({ state }) => state),
    ['created', 'created'],
  );
});

test('while PostgreSQL is away, what user code has come to waits; other callers are told 503', async (t) => {
  const line = await relay(t, database.url);
  const cut = openWorld(database, { connectionString: line.url, maxPoolSize: 5 });
  t.after(() => cut.close());
  const runId = await runningRun(direct);
  const [completed, failed, retrying, streaming] = await Promise.all(
    Array.from({ length: 4 }, () => runningStep(direct, runId)),
  );
  const { hookId } = await liveHook(direct, runId);
  const name = `stream-${ulid()}`;
  line.cut('refusing');
  const outcomes = Promise.all([
    cut.events.create(runId, event('step_completed', completed, { result: bytes('result') })),
    cut.events.create(runId, event('step_failed', failed, { error: 'no' })),
    cut.events.create(runId, event('step_retrying', retrying, { error: 'again' })),
    cut.writeToStream(name, runId, bytes('chunk')),
  ]);
  const refused = await Promise.all([
    refusal(cut.events.create(runId, event('hook_received', hookId, { payload: bytes('p') }))),
    refusal(cut.events.create(runId, event('step_started', streaming))),
    refusal(cut.events.create(null, runCreated())),
  ]);
  for (const error of refused) assert.equal(error.status, 503, error.stack);
  line.heal();
  await outcomes;
  assert.deepEqual(
    (await logOf(direct, runId))
      .slice(-3)
      .map(({ eventType }) => eventType)
      .sort(),
    ['step_completed', 'step_failed', 'step_retrying'],
  );
  assert.equal((await direct.getStreamChunks(name, runId)).data.length, 1);
});
