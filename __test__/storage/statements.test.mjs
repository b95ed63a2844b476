import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createPgBossHttpProxyQueue, createWorld } from '../../index.js';
import { testDatabase } from '../support/database.mjs';
import {
  bytes,
  event,
  liveHook,
  openWait,
  openWorld,
  pendingRun,
  pendingStep,
  runCreated,
  runningRun,
  runningStep,
  stepCreated,
  ulid,
} from './fixture.mjs';
import { wiretap } from './wiretap.mjs';

const database = await testDatabase({ after });
const tap = await wiretap({ after }, database.url);
const world = openWorld(database, { connectionString: tap.url });
after(() => world.close());

/** One statement for the whole call: its transaction is the statement's own. @param {() => Promise<unknown>} call */
async function assertOne(call) {
  const statements = await tap.during(call);
  assert.equal(statements.length, 1, statements.join('\n--\n'));
}

before(async () => {
  // Connects, and counts nothing of it.
  await world.runs.list();
});

describe('one statement is all that it takes', () => {
  /** @type {string} */
  let runId;
  before(async () => {
    runId = await runningRun(world);
  });
  const { events, runs, steps, hooks } = world;

  test('to append an event of any type', async () => {
    const { eventData } = runCreated();
    const resilient = `wrun_${ulid()}`;
    await assertOne(() => events.create(null, runCreated()));
    await assertOne(() => events.create(resilient, event('run_started', undefined, eventData)));
    await assertOne(() => events.create(resilient, event('run_started')));
    const stepId = `step_${ulid()}`;
    await assertOne(() => events.create(runId, stepCreated(stepId)));
    await assertOne(() => events.create(runId, event('step_started', stepId)));
    await assertOne(() => events.create(runId, event('step_retrying', stepId, { error: 'e' })));
    await assertOne(() =>
      events.create(runId, event('step_completed', stepId, { result: bytes('r') })),
    );
    const failing = await runningStep(world, runId);
    await assertOne(() => events.create(runId, event('step_failed', failing, { error: 'e' })));
    const hookId = `hook_${ulid()}`;
    await assertOne(() => events.create(runId, event('hook_created', hookId, { token: hookId })));
    await assertOne(() =>
      events.create(runId, event('hook_received', hookId, { payload: bytes('p') })),
    );
    await assertOne(() => events.create(runId, event('hook_disposed', hookId)));
    const waitId = `wait_${ulid()}`;
    const resumeAt = new Date();
    await assertOne(() => events.create(runId, event('wait_created', waitId, { resumeAt })));
    await assertOne(() => events.create(runId, event('wait_completed', waitId, { resumeAt })));
    for (const end of [
      event('run_completed', undefined, { output: bytes('o') }),
      event('run_failed', undefined, { error: 'e' }),
    ]) {
      const ending = await runningRun(world);
      await assertOne(() => events.create(ending, end));
    }
  });

  test('to cancel a run, and others to wake what sleeps for it, whatever fails', async () => {
    const id = await runningRun(world);
    const statements = await tap.during(() => events.create(id, event('run_cancelled')));
    assert.equal(statements.length, 4, statements.join('\n--\n'));
    assert.match(statements[0], /workflow_runs/);
    assert.match(statements[1], /queue_push/);
    assert.match(statements[2], /append_events/);
    assert.match(statements[3], /queue_push/);
  });

  test('to be refused', async () => {
    const { token } = await liveHook(world, runId);
    const ended = await runningRun(world);
    await events.create(ended, event('run_cancelled'));
    for (const [id, refused] of /** @type {const} */ ([
      [runId, runCreated()],
      [ended, event('run_started')],
      [`wrun_${ulid()}`, event('run_started')],
      [runId, event('step_started', `step_${ulid()}`)],
      [runId, event('hook_created', `hook_${ulid()}`, { token })],
      [runId, event('hook_received', `hook_${ulid()}`, { payload: bytes('p') })],
      [ended, stepCreated(`step_${ulid()}`)],
    ])) {
      await assertOne(() => events.create(id, refused).catch(() => {}));
    }
    await assertOne(() =>
      events.create(runId, stepCreated(`step_${ulid()}`), { stateUpdatedAt: 1 }).catch(() => {}),
    );
  });

  test('to read', async () => {
    const stepId = await pendingStep(world, runId);
    const { hookId, token } = await liveHook(world, runId);
    await openWait(world, runId);
    const page = await events.list({ runId });
    const { eventId } = page.data[0];
    for (const resolveData of /** @type {const} */ (['all', 'none'])) {
      await assertOne(() => runs.get(runId, { resolveData }));
      await assertOne(() => runs.list({ status: 'running', workflowName: 'w', resolveData }));
      await assertOne(() => steps.get(runId, stepId, { resolveData }));
      await assertOne(() => steps.list({ runId, resolveData }));
      await assertOne(() => events.get(runId, eventId, { resolveData }));
      await assertOne(() => events.list({ runId, pagination: { cursor: eventId }, resolveData }));
      await assertOne(() =>
        events.listByCorrelationId({ runId, correlationId: stepId, resolveData }),
      );
      await assertOne(() => hooks.get(hookId, { resolveData }));
      await assertOne(() => hooks.getByToken(token, { resolveData }));
      await assertOne(() => hooks.list({ runId, resolveData }));
    }
  });

  test('to enqueue a message', async () => {
    const id = await pendingRun(world);
    await assertOne(() => world.queue('__wkf_workflow_w', { runId: id }));
    const message = {
      workflowName: 'w',
      workflowRunId: id,
      workflowStartedAt: Date.now(),
      stepId: 's',
    };
    await assertOne(() => world.queue('__wkf_step_s', message, { idempotencyKey: ulid() }));
  });

  test('to write to a stream, to close it and to look at it', async () => {
    const name = `strm_${ulid()}_user`;
    await assertOne(() => world.writeToStream(name, runId, bytes('a')));
    await assertOne(
      () => world.writeToStreamMulti?.(name, runId, [bytes('b'), bytes('c')]) ?? Promise.reject(),
    );
    await assertOne(() => world.closeStream(name, runId));
    await assertOne(() => world.getStreamChunks(name, runId));
    await assertOne(() => world.getStreamInfo(name, runId));
    await assertOne(() => world.listStreamsByRunId(runId));
  });
});

test('events that come together share statements', async () => {
  const runIds = await Promise.all(Array.from({ length: 200 }, () => runningRun(world)));
  const statements = await tap.during(() =>
    Promise.all(runIds.map((runId) => world.events.create(runId, stepCreated(`step_${ulid()}`)))),
  );
  assert.ok(statements.length <= 50, `${statements.length} statements for 200 events`);
});

test('a World that was made and not used says nothing', async () => {
  const other = openWorld(database, { connectionString: tap.url, maxPoolSize: 7 });
  const statements = await tap.during(async () => {
    await other.getDeploymentId();
    await other.close();
  });
  assert.deepEqual(statements, []);
});

test('a started World that has nothing to do says at most one thing a second', async (t) => {
  const app = createServer((_request, response) => response.end('{"ok":true}')).listen(
    0,
    '127.0.0.1',
  );
  await once(app, 'listening');
  t.after(() => app.close());
  const { port } = /** @type {import('node:net').AddressInfo} */ (app.address());
  const { schema, queueSchema } = await testDatabase(t, { url: database.url });
  const started = createWorld({
    connectionString: tap.url,
    schema,
    queueSchema,
    securityToken: 'token-of-the-tests',
    queueFactory: () => createPgBossHttpProxyQueue({ port }),
  });
  t.after(() => started.close());
  await started.start();
  // What a start costs is over when a second has passed without a statement.
  for (let quiet = -1; quiet !== tap.count(); await sleep(1000)) quiet = tap.count();
  const statements = await tap.during(() => sleep(10_000));
  assert.ok(statements.length <= 10, statements.join('\n--\n'));
  t.diagnostic(`${statements.length} statements in 10 s`);
});
