import assert from 'node:assert/strict';
import test, { after, describe } from 'node:test';
import { HookSchema, StepSchema, WorkflowRunSchema } from '@workflow/world';
import fc from 'fast-check';
import {
  assertLogIsSound,
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
} from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { changed, changes } from './creatures.mjs';
import { attempt, forAll, rowVersions, throughJson } from './hostility.mjs';

const database = await testDatabase({ after });
const world = openWorld(database);
after(() => world.close());

const runId = await runningRun(world);
const stepId = await runningStep(world, runId);
const { hookId, token } = await liveHook(world, runId, { metadata: bytes('metadata') });
const { data: log } = await world.events.list({ runId });
const eventId = log[1].eventId;

const page = (/** @type {string} */ cursor) => ({ limit: 2, cursor, sortOrder: 'asc' });
const resolveData = 'none';

/** @type {Record<string, [(...args: any[]) => Promise<unknown>, ...unknown[]]>} */
const reads = {
  'runs.get': [world.runs.get, runId, { resolveData }],
  'runs.list': [
    world.runs.list,
    {
      workflowName: 'workflow//./flow//main',
      status: 'running',
      pagination: page(runId),
      resolveData,
    },
  ],
  'steps.get': [world.steps.get, runId, stepId, { resolveData }],
  'steps.list': [world.steps.list, { runId, pagination: page(stepId), resolveData }],
  'events.get': [world.events.get, runId, eventId, { resolveData }],
  'events.list': [world.events.list, { runId, pagination: page(eventId), resolveData }],
  'events.listByCorrelationId': [
    world.events.listByCorrelationId,
    { correlationId: stepId, runId, pagination: page(eventId), resolveData },
  ],
  'hooks.get': [world.hooks.get, hookId, { resolveData }],
  'hooks.getByToken': [world.hooks.getByToken, token, { resolveData }],
  'hooks.list': [world.hooks.list, { runId, pagination: page(hookId), resolveData }],
};

describe('reads give an answer or a refusal, and write nothing', () => {
  for (const [name, [read, ...args]] of Object.entries(reads)) {
    test(name, async () => {
      assert.ok('answer' in (await attempt(() => read(...args))), 'what is right is answered');
      const before = await rowVersions(database);
      await forAll(60, changes, async (hostile) => {
        await attempt(() => read(...changed(args, hostile)));
      });
      assert.deepEqual(await rowVersions(database), before);
    });
  }
});

/**
 * The arguments of `events.create`, right as they are, for an entity of their own.
 * @type {Record<string, () => Promise<[string | null, Record<string, any>]>>}
 */
const events = {
  run_created: async () => [`wrun_${ulid()}`, runCreated()],
  'run_started of a run that exists': async () => [await pendingRun(world), event('run_started')],
  'run_started of a run that does not': async () => [
    `wrun_${ulid()}`,
    event('run_started', undefined, runCreated().eventData),
  ],
  run_completed: async () => [
    await runningRun(world),
    event('run_completed', undefined, { output: bytes('output') }),
  ],
  run_failed: async () => [
    await runningRun(world),
    event('run_failed', undefined, { error: { message: 'm', stack: 's' }, errorCode: 'C' }),
  ],
  run_cancelled: async () => [await runningRun(world), event('run_cancelled')],
  step_created: async () => [await runningRun(world), stepCreated(`step_${ulid()}`)],
  step_started: async () => {
    const run = await runningRun(world);
    return [run, event('step_started', await pendingStep(world, run), { stepName: 's' })];
  },
  step_completed: async () => {
    const run = await runningRun(world);
    const step = await runningStep(world, run);
    return [run, event('step_completed', step, { stepName: 's', result: bytes('result') })];
  },
  step_failed: async () => {
    const run = await runningRun(world);
    const step = await runningStep(world, run);
    return [run, event('step_failed', step, { error: 'e', stack: 's' })];
  },
  step_retrying: async () => {
    const run = await runningRun(world);
    const step = await runningStep(world, run);
    return [run, event('step_retrying', step, { error: 'e', retryAfter: new Date(1e12) })];
  },
  hook_created: async () => [
    await runningRun(world),
    event('hook_created', `hook_${ulid()}`, {
      token: `token-${ulid()}`,
      metadata: bytes('metadata'),
      isWebhook: false,
    }),
  ],
  hook_received: async () => {
    const run = await runningRun(world);
    const hook = await liveHook(world, run);
    return [run, event('hook_received', hook.hookId, { payload: bytes('p'), token: hook.token })];
  },
  hook_disposed: async () => {
    const run = await runningRun(world);
    return [run, event('hook_disposed', (await liveHook(world, run)).hookId, {})];
  },
  wait_created: async () => [
    await runningRun(world),
    event('wait_created', `wait_${ulid()}`, { resumeAt: new Date(Date.now() + 1000.5) }),
  ],
  wait_completed: async () => {
    const run = await runningRun(world);
    const { waitId, resumeAt } = await openWait(world, run);
    return [run, event('wait_completed', waitId, { resumeAt })];
  },
};

/**
 * Without the queue: a cancel sends a wake before its event, which finds the run as it is.
 * @param {Record<string, string>} versions
 */
const ofStorage = (versions) =>
  Object.entries(versions).filter(([name]) => name.startsWith(`${database.schema}.`));

/** @param {any} value */
const isBytes = (value) => value instanceof Uint8Array;

/** The time as a column holds it. @param {any} time */
const inCalendar = (time) => Math.max(new Date(time).getTime() || 0, Date.UTC(-4713, 10, 24));

/**
 * What the log keeps of an event's data: bytes as they are in the field of the payload, JSON otherwise.
 * @param {any} sent
 * @param {any} stored
 */
function assertSame(sent, stored) {
  const json = throughJson(sent) ?? {};
  for (const [name, value] of Object.entries(stored ?? {})) {
    if (isBytes(value)) {
      assert.ok(Buffer.from(sent[name]).equals(value), `${name} is another one`);
    } else if (value instanceof Date) {
      // An Invalid Date is the epoch.
      assert.equal(value.getTime(), new Date(sent[name]).getTime() || 0, name);
    } else {
      assert.deepEqual(value, json[name], name);
    }
  }
  for (const name of Object.keys(json)) assert.ok(name in stored, `${name} is missing`);
}

describe('an event is stored as it was sent, or refused without a trace', () => {
  for (const [name, prepare] of Object.entries(events)) {
    test(name, async () => {
      const params = { resolveData: 'all', occurredAt: new Date(1e12) };
      const [run, right] = await prepare();
      await world.events.create(run, right, params);

      await forAll(40, changes, async (hostile) => {
        const args = changed([...(await prepare()), params], hostile);
        const before = await rowVersions(database);
        const outcome = await attempt(() => /** @type {any} */ (world.events.create)(...args));
        if ('refusal' in outcome) {
          assert.deepEqual(
            ofStorage(await rowVersions(database)),
            ofStorage(before),
            'half a write',
          );
          return;
        }
        const { event: appended, run: newRun, step: newStep, hook: newHook } = outcome.answer;
        if (newRun) WorkflowRunSchema.parse(newRun);
        if (newStep) StepSchema.parse(newStep);
        if (newHook) HookSchema.parse(newHook);
        if (!appended) return;
        const read = await world.events.get(appended.runId, appended.eventId);
        const [, sent, sentParams] = /** @type {any[]} */ (args);
        if (sentParams?.resolveData !== 'none') assert.deepEqual(appended, read);
        if (read.eventType === 'hook_conflict') return;
        assert.equal(read.eventType, sent.eventType);
        assert.equal(read.correlationId ?? null, sent.correlationId ?? null);
        if (sentParams?.occurredAt) {
          assert.equal(read.occurredAt?.getTime(), inCalendar(sentParams.occurredAt));
        }
        if (read.eventType !== 'run_started') assertSame(sent.eventData, read.eventData);
        if (read.eventType === 'step_created') {
          const { input, ...step } = await world.steps.get(read.runId, read.correlationId);
          assert.equal(step.stepName, sent.eventData.stepName);
          assertSame({ input: sent.eventData.input }, { input });
        }
        if (read.eventType === 'wait_created') {
          const { resumeAt } = outcome.answer.wait;
          assert.equal(resumeAt.getTime(), inCalendar(sent.eventData.resumeAt));
        }
        if (read.eventType === 'run_created') {
          const { input, ...created } = await world.runs.get(read.runId);
          assert.equal(created.workflowName, sent.eventData.workflowName);
          assert.equal(created.deploymentId, sent.eventData.deploymentId);
          assert.deepEqual(created.executionContext, throughJson(sent.eventData.executionContext));
          assertSame({ input: sent.eventData.input }, { input });
        }
      });
    });
  }

  test('runs.create', async () => {
    const { create } = /** @type {any} */ (world).runs;
    const newRun = () => ({
      runId: `wrun_${ulid()}`,
      deploymentId: 'dpl',
      workflowName: 'w',
      input: bytes('input'),
      executionContext: { a: 1 },
    });
    await create(newRun());
    await forAll(40, changes, async (hostile) => {
      const args = /** @type {any[]} */ (changed([newRun()], hostile));
      const before = await rowVersions(database);
      const outcome = await attempt(() => create(...args));
      if ('refusal' in outcome) {
        assert.deepEqual(await rowVersions(database), before, 'half a write');
        return;
      }
      const run = await world.runs.get(outcome.answer.runId);
      assert.equal(run.workflowName, args[0].workflowName);
      assertSame({ input: args[0].input }, { input: run.input });
    });
  });

  test('and its neighbours in the same statement do not notice', async () => {
    const kinds = Object.keys(events);
    const batch = fc.array(fc.record({ kind: fc.constantFrom(...kinds), hostile: changes }), {
      minLength: 2,
      maxLength: 8,
    });
    await forAll(15, batch, async (calls) => {
      const prepared = await Promise.all(
        calls.map(async ({ kind, hostile }) => ({
          right: await events[kind](),
          wrong: changed([...(await events[kind]()), {}], hostile),
        })),
      );
      const outcomes = await Promise.all(
        prepared.flatMap(({ right, wrong }) => [
          attempt(() => /** @type {any} */ (world.events.create)(...wrong)),
          attempt(() => world.events.create(...right)),
        ]),
      );
      for (const [index, outcome] of outcomes.entries()) {
        if (index % 2 === 1) assert.ok('answer' in outcome, Object(outcome).refusal?.stack);
      }
    });
  });

  test('and the log is sound', async () => {
    // Runs of spec version 1 are outside the rules.
    const { rows } = await database.pool.query(
      `SELECT run_id FROM ${database.schema}.workflow_runs WHERE spec_version IS DISTINCT FROM 3`,
    );
    await assertLogIsSound(
      database,
      rows.map((row) => row.run_id),
    );
  });
});
