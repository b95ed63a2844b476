import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { testDatabase } from '../support/database.mjs';
import { relay } from '../support/relay.mjs';
import {
  assertLogIsSound,
  bytes,
  event,
  liveHook,
  logOf,
  openWorld,
  pendingStep,
  refusal,
  runningRun,
  runningStep,
  ulid,
} from './fixture.mjs';

/**
 * Calls whose first try reaches PostgreSQL last, after their repetition over another connection was
 * committed.
 */
const database = await testDatabase({ after });
const line = await relay({ after }, database.url);
const direct = openWorld(database);
const world = openWorld(database, { connectionString: line.url, maxPoolSize: 2 });
after(async () => {
  await world.close();
  await direct.close();
});

/** @param {string} runId @param {string} type */
const countOf = async (runId, type) =>
  (await logOf(direct, runId)).filter(({ eventType }) => eventType === type).length;

test('a chunk of a stream is there once', async () => {
  const runId = await runningRun(direct);
  const name = `stream-${ulid()}`;
  await world.writeToStream(name, runId, bytes('0'));
  const first = line.holdBack(name);
  await world.writeToStream(name, runId, bytes('1'));
  await first.arrive();
  await world.writeToStream(name, runId, bytes('2'));
  const { data } = await direct.getStreamChunks(name, runId);
  assert.deepEqual(
    data.map(({ data }) => Buffer.from(data).toString()),
    ['0', '1', '2'],
  );
});

test('a start of a step uses up one attempt', async () => {
  const runId = await runningRun(direct);
  const stepId = await pendingStep(direct, runId);
  const first = line.holdBack(stepId);
  const { step } = await world.events.create(runId, event('step_started', stepId));
  await first.arrive();
  assert.equal(step.attempt, 1);
  assert.equal((await direct.steps.get(runId, stepId)).attempt, 1);
  assert.equal(await countOf(runId, 'step_started'), 1);
  await assertLogIsSound(database);
});

test('a failure that is to be retried leaves the next attempt alone', async () => {
  const runId = await runningRun(direct);
  const stepId = await runningStep(direct, runId);
  const first = line.holdBack(stepId);
  await world.events.create(runId, event('step_retrying', stepId, { error: 'again' }));
  await direct.events.create(runId, event('step_started', stepId));
  await first.arrive();
  const { status, attempt } = await direct.steps.get(runId, stepId);
  assert.deepEqual({ status, attempt }, { status: 'running', attempt: 2 });
  await assertLogIsSound(database);
});

test('a payload of a hook is received once, however much has happened since', async () => {
  const runId = await runningRun(direct);
  const { hookId } = await liveHook(direct, runId);
  const first = line.holdBack(hookId);
  await world.events.create(runId, event('hook_received', hookId, { payload: bytes('payload') }));
  for (let others = 0; others < 60; others += 1) await pendingStep(direct, runId);
  await first.arrive();
  assert.equal(await countOf(runId, 'hook_received'), 1);
  await assertLogIsSound(database);
});

test('a message is delivered once, also where its job has ended since', async () => {
  const jobs = async (/** @type {string} */ key) => {
    const { rows } = await database.pool.query(
      `SELECT id FROM ${database.queueSchema}.job WHERE singleton_key = $1`,
      [key],
    );
    return rows.length;
  };
  const runId = await runningRun(direct);
  const stepId = `step_${ulid()}`;
  for (const { key, push } of [
    { key: runId, push: () => world.queue('__wkf_workflow_w', { runId }) },
    {
      key: stepId,
      push: () =>
        world.queue('__wkf_step_s', { workflowRunId: runId, stepId }, { idempotencyKey: stepId }),
    },
  ]) {
    const first = line.holdBack(key);
    await push();
    assert.equal(await jobs(key), 1);
    await database.pool.query(`DELETE FROM ${database.queueSchema}.job WHERE singleton_key = $1`, [
      key,
    ]);
    await first.arrive();
    assert.equal(await jobs(key), 0, key);
  }
});

test('a call whose repetition was refused does nothing either', async () => {
  const runId = await runningRun(direct);
  const stepId = await pendingStep(direct, runId);
  const retryAfter = new Date(Date.now() + 2000);
  const first = line.holdBack(stepId, () =>
    direct.events.create(runId, event('step_retrying', stepId, { error: 'again', retryAfter })),
  );
  const error = await refusal(world.events.create(runId, event('step_started', stepId)));
  assert.equal(error.name, 'TooEarlyError', error.stack);
  await database.pool.query(`SELECT pg_sleep_until($1)`, [new Date(Number(retryAfter) + 10)]);
  await first.arrive();
  assert.equal(await countOf(runId, 'step_started'), 0);
});

test('a try that arrives after the try that followed it is recognised, too', async () => {
  const runId = await runningRun(direct);
  const name = `stream-${ulid()}`;
  await world.writeToStream(name, runId, bytes('0'));
  /** @type {ReturnType<typeof line.holdBack> | undefined} */
  let second;
  const first = line.holdBack(name, async () => {
    second = line.holdBack(name);
  });
  await world.writeToStream(name, runId, bytes('1'));
  await second?.arrive();
  await first.arrive();
  const { data } = await direct.getStreamChunks(name, runId);
  assert.equal(data.length, 2);
});

test('what is kept of repeated calls is forgotten after a day', async () => {
  const { rows } = await database.pool.query(
    `INSERT INTO ${database.schema}.workflow_repeated_calls
     SELECT -n, 1, now() - interval '25 hours' FROM generate_series(1, 20) AS n RETURNING request_id`,
  );
  assert.equal(rows.length, 20);
  const runId = await runningRun(direct);
  const stepId = await pendingStep(direct, runId);
  const first = line.holdBack(stepId);
  await world.events.create(runId, event('step_started', stepId));
  await first.arrive();
  const left = await database.pool.query(
    `SELECT min(request_id) AS least FROM ${database.schema}.workflow_repeated_calls`,
  );
  assert.ok(Number(left.rows[0].least) >= 0);
});
