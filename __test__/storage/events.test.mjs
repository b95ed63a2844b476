import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { runInNewContext } from 'node:vm';
import {
  EventSchema,
  HookSchema,
  StepSchema,
  WaitSchema,
  WorkflowRunSchema,
} from '@workflow/world';
import { testDatabase } from '../support/database.mjs';
import {
  assertLogIsSound,
  assertRefused,
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
  typesOf,
  ulid,
  ulidTime,
} from './fixture.mjs';

const database = await testDatabase({ after });
const world = openWorld(database);
after(() => world.close());
const { events, runs, steps, hooks } = world;

/** Runs that events.create treats as legacy: they have less than a log. */
/** @type {string[]} */
const legacyRuns = [];
const DAY = 24 * 60 * 60 * 1000;

/** Ends a run in each of the three ways. */
const ENDS = {
  completed: event('run_completed', undefined, { output: bytes('output') }),
  failed: event('run_failed', undefined, { error: { message: 'lost' } }),
  cancelled: event('run_cancelled'),
};

/**
 * The result of events.create says of the event what a later read says, and neither says null.
 *
 * @param {string} runId
 * @param {any} created
 */
async function assertAsRead(runId, created) {
  const read = await events.get(runId, created.eventId);
  assert.deepEqual(created, read);
  assert.ok(created.createdAt instanceof Date);
  EventSchema.parse(read);
  assert.ok(!JSON.stringify(read).includes('null'), JSON.stringify(read));
}

describe('run_created', () => {
  test('makes a pending run and its first event', async () => {
    const { run, event: created } = await events.create(null, runCreated());
    assert.match(run.runId, /^wrun_[0-9A-HJKMNP-TV-Z]{26}$/);
    assert.equal(run.status, 'pending');
    assert.deepEqual(run.input, bytes('input'));
    assert.deepEqual(run.executionContext, { workflowCoreVersion: '4.8.9' });
    assert.equal(run.specVersion, 3);
    assert.deepEqual(run, await runs.get(run.runId));
    WorkflowRunSchema.parse(run);
    for (const absent of ['startedAt', 'completedAt', 'error', 'expiredAt']) {
      assert.ok(!(absent in run), absent);
    }
    await assertAsRead(run.runId, created);
    assert.deepEqual(created.eventData, runCreated().eventData);
    assert.equal(created.createdAt.getTime(), run.createdAt.getTime());
  });

  test('takes an empty run id as none', async () => {
    const { run } = await events.create('', runCreated());
    assert.match(run.runId, /^wrun_/);
  });

  test('takes the id that a client chose, if it is a ULID of about now', async () => {
    const now = Date.now();
    for (const time of [now, now - DAY + 60_000, now + 4 * 60_000]) {
      const runId = `wrun_${ulid(time)}`;
      assert.equal((await events.create(runId, runCreated())).run.runId, runId);
    }
    for (const runId of [
      `wrun_${ulid(now - DAY - 60_000)}`,
      `wrun_${ulid(now + 6 * 60_000)}`,
      'wrun_nonsense',
      'wrun_\0',
      `wrun_${ulid()}${'0'.repeat(600)}`,
    ]) {
      await assertRefused(events.create(runId, runCreated()), 'WorkflowWorldError', 400);
    }
  });

  test('of an existing run is a conflict and leaves no second event', async () => {
    const runId = await pendingRun(world);
    await assertRefused(events.create(runId, runCreated()), 'EntityConflictError', 409);
    assert.deepEqual(await typesOf(world, runId), ['run_created']);
  });

  test('needs what a run is made of', async () => {
    const { workflowName, deploymentId } = runCreated().eventData;
    for (const eventData of [undefined, {}, { workflowName }, { deploymentId }, 'text', null]) {
      const wrong = { ...runCreated(), eventData };
      await assertRefused(events.create(null, wrong), 'WorkflowWorldError', 400);
    }
  });

  test('keeps an execution context with whatever a string may hold', async () => {
    const executionContext = { nul: 'a\0b', half: '\ud800', 'key\0': [null, 1.5, { deep: '' }] };
    const { run } = await events.create(
      null,
      runCreated({ eventData: { ...runCreated().eventData, executionContext } }),
    );
    assert.deepEqual((await runs.get(run.runId)).executionContext, executionContext);
    assert.deepEqual(run.executionContext, executionContext);
  });
});

describe('run_started', () => {
  test('starts a pending run and returns its log', async () => {
    const runId = await pendingRun(world);
    const result = await events.create(runId, event('run_started'));
    assert.equal(result.run.status, 'running');
    assert.ok(result.run.startedAt instanceof Date);
    assert.deepEqual(result.run, await runs.get(runId));
    assert.deepEqual(
      result.events.map(({ eventType }) => eventType),
      ['run_created', 'run_started'],
    );
    assert.deepEqual(result.events, await logOf(world, runId));
    assert.equal(result.cursor, result.events[1].eventId);
    assert.equal(result.hasMore, false);
    await assertAsRead(runId, result.event);
    assert.equal(result.event.createdAt.getTime(), result.run.startedAt.getTime());
  });

  test('of a running run appends nothing and returns the run and its log', async () => {
    const runId = await runningRun(world);
    const stepId = await runningStep(world, runId);
    const before = await runs.get(runId);
    const result = await events.create(runId, event('run_started'));
    assert.equal(result.event, undefined);
    assert.deepEqual(result.run, before);
    assert.deepEqual(result.events, await logOf(world, runId));
    assert.equal(result.events.at(-1)?.correlationId, stepId);
    assert.deepEqual(await typesOf(world, runId), [
      'run_created',
      'run_started',
      'step_created',
      'step_started',
    ]);
  });

  for (const [status, end] of Object.entries(ENDS)) {
    test(`of a ${status} run is refused as expired`, async () => {
      const runId = await runningRun(world);
      await events.create(runId, end);
      await assertRefused(events.create(runId, event('run_started')), 'RunExpiredError', 410);
      assert.equal((await runs.get(runId)).status, status);
    });
  }

  test('of a run that is not there and without its data is refused and makes nothing', async () => {
    const runId = `wrun_${ulid()}`;
    const error = await assertRefused(
      events.create(runId, event('run_started')),
      'WorkflowRunNotFoundError',
      404,
    );
    assert.equal(error.runId, runId);
    assert.deepEqual(await logOf(world, runId), []);
  });

  test('that overtook run_created makes the run of what it carries', async () => {
    const runId = `wrun_${ulid()}`;
    const { eventData } = runCreated();
    const result = await events.create(runId, event('run_started', undefined, eventData));
    assert.equal(result.run.status, 'running');
    assert.deepEqual(result.run.input, bytes('input'));
    assert.deepEqual(result.run.executionContext, eventData.executionContext);
    assert.deepEqual(await runs.get(runId), result.run);
    const log = await logOf(world, runId);
    assert.deepEqual(result.events, log);
    assert.deepEqual(
      log.map(({ eventType, eventData: data, specVersion }) => [eventType, data, specVersion]),
      [
        ['run_created', eventData, 3],
        ['run_started', undefined, 3],
      ],
    );
    await assertAsRead(runId, result.event);
    await assertRefused(events.create(runId, runCreated()), 'EntityConflictError', 409);
  });

  test('does not store the data of a run that exists', async () => {
    const runId = await pendingRun(world);
    const { eventData } = runCreated();
    const result = await events.create(runId, event('run_started', undefined, eventData));
    assert.ok(!('eventData' in result.event));
    await assertAsRead(runId, result.event);
  });

  test('tells the same start everywhere and for ever', async () => {
    const runId = await pendingRun(world);
    const first = await events.create(runId, event('run_started'));
    const startedAt = first.run.startedAt.getTime();
    await sleep(5);
    const second = await events.create(runId, event('run_started'));
    const end = await events.create(runId, ENDS.completed);
    const seen = [
      second.run.startedAt,
      end.run.startedAt,
      (await runs.get(runId)).startedAt,
      (await runs.list({ status: 'completed' })).data.find((run) => run.runId === runId)?.startedAt,
      first.events[1].createdAt,
    ];
    assert.deepEqual(
      seen.map((date) => date.getTime()),
      seen.map(() => startedAt),
    );
  });
});

describe('the end of a run', () => {
  test('run_completed keeps its output', async () => {
    const runId = await runningRun(world);
    const { run, event: created } = await events.create(runId, ENDS.completed);
    assert.equal(run.status, 'completed');
    assert.deepEqual(run.output, bytes('output'));
    assert.ok(run.completedAt instanceof Date);
    await assertAsRead(runId, created);
    const read = await runs.get(runId);
    assert.deepEqual(read.output, bytes('output'));
    assert.deepEqual(read.completedAt, run.completedAt);
    WorkflowRunSchema.parse(read);
  });

  test('run_completed may come without an output', async () => {
    for (const eventData of [{}, undefined, { output: undefined }]) {
      const runId = await runningRun(world);
      const { run } = await events.create(runId, event('run_completed', undefined, eventData));
      assert.equal(run.output, undefined);
      assert.equal((await runs.get(runId)).output, undefined);
    }
  });

  test('run_failed keeps its error, whatever its form', async () => {
    for (const [eventData, error] of [
      [
        { error: { message: 'm', stack: 's' }, errorCode: 'USER_ERROR' },
        { message: 'm', stack: 's', code: 'USER_ERROR' },
      ],
      [{ error: 'text' }, { message: 'text' }],
      [{ error: {} }, { message: 'Unknown error' }],
      [{ error: null }, { message: 'Unknown error' }],
      [{ error: { message: 'a\0b\ud800', stack: '\0' } }, { message: 'a\0b\ud800', stack: '\0' }],
    ]) {
      const runId = await runningRun(world);
      const { run, event: created } = await events.create(
        runId,
        event('run_failed', undefined, eventData),
      );
      assert.deepEqual(run.error, error);
      assert.equal(run.status, 'failed');
      const read = await runs.get(runId);
      assert.deepEqual(read.error, error);
      WorkflowRunSchema.parse(read);
      assert.deepEqual(await events.get(runId, created.eventId), created);
    }
  });

  for (const [first, end] of Object.entries(ENDS)) {
    for (const [second, late] of Object.entries(ENDS)) {
      if (first === 'cancelled' && second === 'cancelled') continue;
      test(`a ${first} run cannot become ${second}`, async () => {
        const runId = await runningRun(world);
        await events.create(runId, end);
        const before = await runs.get(runId);
        await assertRefused(events.create(runId, late), 'EntityConflictError', 409);
        assert.deepEqual(await runs.get(runId), before);
        assert.equal((await logOf(world, runId)).length, 3);
      });
    }
  }

  test('a run may be cancelled again', async () => {
    const runId = await pendingRun(world);
    const first = await events.create(runId, ENDS.cancelled);
    assert.equal(first.run.status, 'cancelled');
    const second = await events.create(runId, ENDS.cancelled);
    assert.deepEqual(second.run, first.run);
    WorkflowRunSchema.parse(second.run);
  });

  test('a pending run may end', async () => {
    for (const [status, end] of Object.entries(ENDS)) {
      const runId = await pendingRun(world);
      assert.equal((await events.create(runId, end)).run.status, status);
      assert.ok(!('startedAt' in (await runs.get(runId))));
    }
  });

  test('of a run that is not there is told so', async () => {
    for (const end of Object.values(ENDS)) {
      const runId = `wrun_${ulid()}`;
      const error = await assertRefused(events.create(runId, end), 'WorkflowRunNotFoundError', 404);
      assert.equal(error.runId, runId);
    }
  });

  test('takes the hooks and waits of the run with it', async () => {
    for (const end of Object.values(ENDS)) {
      const runId = await runningRun(world);
      const { token, hookId } = await liveHook(world, runId);
      const { waitId } = await openWait(world, runId);
      await events.create(runId, end);
      await assertRefused(hooks.getByToken(token), 'HookNotFoundError', 404);
      const payload = event('hook_received', hookId, { token, payload: bytes('late') });
      await assertRefused(events.create(runId, payload), 'HookNotFoundError', 404);
      await assertRefused(
        events.create(runId, event('wait_completed', waitId)),
        'EntityConflictError',
        409,
      );
      const other = await runningRun(world);
      const again = await events.create(other, event('hook_created', `hook_${ulid()}`, { token }));
      assert.equal(again.event.eventType, 'hook_created');
    }
  });

  test('lets nothing new begin', async () => {
    for (const end of Object.values(ENDS)) {
      const runId = await runningRun(world);
      const stepId = await pendingStep(world, runId);
      await events.create(runId, end);
      const resumeAt = new Date();
      for (const late of [
        stepCreated(`step_${ulid()}`),
        event('hook_created', `hook_${ulid()}`, { token: ulid() }),
        event('wait_created', `wait_${ulid()}`, { resumeAt }),
      ]) {
        await assertRefused(events.create(runId, late), 'EntityConflictError', 409);
      }
      for (const step of [stepId, `step_${ulid()}`]) {
        await assertRefused(
          events.create(runId, event('step_started', step)),
          'RunExpiredError',
          410,
        );
      }
    }
  });

  test('lets running steps report', async () => {
    const reports = {
      step_completed: { stepName: 's', result: bytes('result') },
      step_failed: { stepName: 's', error: 'late' },
      step_retrying: { stepName: 's', error: 'again', stack: 'at' },
    };
    for (const end of Object.values(ENDS)) {
      for (const [report, eventData] of Object.entries(reports)) {
        const runId = await runningRun(world);
        const stepId = await runningStep(world, runId);
        await events.create(runId, end);
        const again = await events.create(runId, event('step_started', stepId));
        assert.equal(again.step.attempt, 2);
        const { step } = await events.create(runId, event(report, stepId, eventData));
        assert.equal(step.status, { step_retrying: 'pending' }[report] ?? report.slice(5));
        if (report === 'step_retrying') {
          await assertRefused(
            events.create(runId, event('step_started', stepId)),
            'RunExpiredError',
            410,
          );
        }
      }
    }
  });
});

describe('steps', () => {
  test('step_created makes a pending step', async () => {
    const runId = await runningRun(world);
    const stepId = `step_${ulid()}`;
    const { step, event: created } = await events.create(runId, stepCreated(stepId));
    assert.deepEqual([step.status, step.attempt, step.stepName], ['pending', 0, 'step//./a//s']);
    assert.deepEqual(step.input, bytes('arguments'));
    assert.deepEqual(step, await steps.get(runId, stepId));
    StepSchema.parse(step);
    await assertAsRead(runId, created);
  });

  test('step_created twice is a conflict and one event', async () => {
    const runId = await runningRun(world);
    const stepId = await pendingStep(world, runId);
    await assertRefused(events.create(runId, stepCreated(stepId)), 'EntityConflictError', 409);
    assert.equal((await logOf(world, runId)).length, 3);
  });

  test('two runs may use one step id', async () => {
    const stepId = `step_${ulid()}`;
    const [one, other] = [await runningRun(world), await runningRun(world)];
    await events.create(one, stepCreated(stepId, { input: bytes('one') }));
    await events.create(other, stepCreated(stepId, { input: bytes('other') }));
    assert.deepEqual((await steps.get(one, stepId)).input, bytes('one'));
    assert.deepEqual((await steps.get(other, stepId)).input, bytes('other'));
  });

  test('step_started counts attempts, keeps the first start and returns the input', async () => {
    const runId = await runningRun(world);
    const stepId = await pendingStep(world, runId);
    const first = await events.create(runId, event('step_started', stepId, { stepName: 's' }));
    assert.deepEqual([first.step.status, first.step.attempt], ['running', 1]);
    assert.deepEqual(first.step.input, bytes('arguments'));
    assert.deepEqual(first.step, await steps.get(runId, stepId));
    assert.equal(first.step.startedAt.getTime(), first.event.createdAt.getTime());
    await assertAsRead(runId, first.event);
    await sleep(3);
    const second = await events.create(runId, event('step_started', stepId));
    assert.equal(second.step.attempt, 2);
    assert.deepEqual(second.step.startedAt, first.step.startedAt);
    StepSchema.parse(second.step);
  });

  test('step_completed keeps its result', async () => {
    const runId = await runningRun(world);
    const stepId = await runningStep(world, runId);
    const done = event('step_completed', stepId, { stepName: 's', result: bytes('result') });
    const { step, event: created } = await events.create(runId, done);
    assert.equal(step.status, 'completed');
    assert.deepEqual(step.output, bytes('result'));
    assert.ok(step.completedAt instanceof Date);
    await assertAsRead(runId, created);
    const read = await steps.get(runId, stepId);
    assert.deepEqual([read.output, read.input], [bytes('result'), bytes('arguments')]);
    StepSchema.parse(read);
  });

  test('step_completed may come before step_started', async () => {
    const runId = await runningRun(world);
    const stepId = await pendingStep(world, runId);
    const done = event('step_completed', stepId, { result: bytes('r') });
    const { step } = await events.create(runId, done);
    assert.deepEqual([step.status, step.attempt], ['completed', 0]);
  });

  test('step_failed keeps its error, whatever its form', async () => {
    for (const [eventData, error] of [
      [
        { error: 'text', stack: 'at' },
        { message: 'text', stack: 'at' },
      ],
      [
        { error: { message: 'm' }, stack: 'at' },
        { message: 'm', stack: 'at' },
      ],
      [{ error: { message: 'm', stack: 'inner' } }, { message: 'm', stack: 'inner' }],
      [
        { error: 'a\0b\udfff', stack: '\0' },
        { message: 'a\0b\udfff', stack: '\0' },
      ],
      [{ error: null }, { message: 'Unknown error' }],
    ]) {
      const runId = await runningRun(world);
      const stepId = await runningStep(world, runId);
      const failed = event('step_failed', stepId, { stepName: 's', ...eventData });
      const { step, event: created } = await events.create(runId, failed);
      assert.equal(step.status, 'failed');
      assert.deepEqual(step.error, error);
      const read = await steps.get(runId, stepId);
      assert.deepEqual(read.error, error);
      StepSchema.parse(read);
      assert.deepEqual(created, await events.get(runId, created.eventId));
    }
  });

  test('step_retrying makes the step pending until its time', async () => {
    const runId = await runningRun(world);
    const stepId = await runningStep(world, runId);
    const retryAfter = new Date(Date.now() + 90_000);
    const retrying = event('step_retrying', stepId, {
      stepName: 's',
      error: 'e',
      stack: 'at',
      retryAfter,
    });
    const { step, event: created } = await events.create(runId, retrying);
    assert.equal(step.status, 'pending');
    assert.deepEqual(step.retryAfter, retryAfter);
    assert.deepEqual(step.error, { message: 'e', stack: 'at' });
    assert.deepEqual(created.eventData.retryAfter, retryAfter);
    await assertAsRead(runId, created);

    const error = await assertRefused(
      events.create(runId, event('step_started', stepId)),
      'TooEarlyError',
      425,
    );
    assert.ok(error.retryAfter >= 89 && error.retryAfter <= 90, `${error.retryAfter}`);
    assert.equal((await steps.get(runId, stepId)).attempt, 1);
  });

  test('a step whose retry is due starts again, its first start unchanged', async () => {
    const runId = await runningRun(world);
    const stepId = await runningStep(world, runId);
    const first = await steps.get(runId, stepId);
    const retryAfter = new Date(Date.now() - 1);
    await events.create(runId, event('step_retrying', stepId, { error: 'e', retryAfter }));
    const { step } = await events.create(runId, event('step_started', stepId));
    assert.deepEqual([step.status, step.attempt], ['running', 2]);
    assert.deepEqual(step.startedAt, first.startedAt);
    assert.ok(!('retryAfter' in step));
  });

  test('step_retrying without a time lets the step start at once', async () => {
    const runId = await runningRun(world);
    const stepId = await runningStep(world, runId);
    const later = new Date(Date.now() + 90_000);
    await events.create(runId, event('step_retrying', stepId, { error: 'e', retryAfter: later }));
    await events.create(runId, event('step_retrying', stepId, { error: 'e' }));
    assert.equal((await events.create(runId, event('step_started', stepId))).step.attempt, 2);
  });

  test('refusals hold the words that other suites and tools look for', async () => {
    const runId = await runningRun(world);
    const [stepId, waiting] = [await runningStep(world, runId), await runningStep(world, runId)];
    const retryAfter = new Date(Date.now() + 60_000);
    await events.create(runId, event('step_completed', stepId, { result: bytes('r') }));
    await events.create(runId, event('step_retrying', waiting, { error: 'e', retryAfter }));
    const words = async (/** @type {string | null} */ id, /** @type {any} */ what) =>
      (await refusal(events.create(id, what))).message;
    const [missing, pending] = [`step_${ulid()}`, await pendingStep(world, runId)];
    assert.match(await words(null, event('run_started')), /runId is required/);
    assert.match(await words(runId, event('step_started', stepId)), /terminal/);
    assert.match(await words(runId, event('step_failed', stepId, { error: 'e' })), /terminal/);
    assert.match(await words(runId, event('step_started', waiting)), /retryAfter/);
    assert.match(await words(runId, event('step_started', missing)), /" not found/);
    assert.match(await words(runId, event('wait_completed', `wait_${ulid()}`)), /" not found/);
    assert.match(await words(runId, stepCreated(stepId)), /already exists/);
    await events.create(runId, ENDS.cancelled);
    for (const late of [
      event('run_started'),
      ENDS.completed,
      stepCreated(missing),
      event('step_started', pending),
      event('hook_created', `hook_${ulid()}`, { token: ulid() }),
      event('wait_created', `wait_${ulid()}`, { resumeAt: new Date() }),
    ]) {
      assert.match(await words(runId, late), /terminal/, late.eventType);
    }
  });

  test('nothing happens to a step that has ended', async () => {
    for (const end of [
      { eventType: 'step_completed', eventData: { result: bytes('r') } },
      { eventType: 'step_failed', eventData: { error: 'e' } },
    ]) {
      const runId = await runningRun(world);
      const stepId = await runningStep(world, runId);
      await events.create(runId, { ...end, correlationId: stepId, specVersion: 3 });
      const before = await steps.get(runId, stepId);
      for (const late of [
        stepCreated(stepId),
        event('step_started', stepId),
        event('step_completed', stepId, { result: bytes('again') }),
        event('step_failed', stepId, { error: 'again' }),
        event('step_retrying', stepId, { error: 'again' }),
      ]) {
        await assertRefused(events.create(runId, late), 'EntityConflictError', 409);
      }
      assert.deepEqual(await steps.get(runId, stepId), before);
      assert.equal((await logOf(world, runId)).length, 5);
    }
  });

  test('a step that is not there is told so', async () => {
    const runId = await runningRun(world);
    const stepId = `step_${ulid()}`;
    for (const eventType of ['step_started', 'step_completed', 'step_failed', 'step_retrying']) {
      await assertRefused(
        events.create(runId, event(eventType, stepId, { error: 'e', result: bytes('r') })),
        'WorkflowWorldError',
        404,
      );
    }
    assert.equal((await logOf(world, runId)).length, 2);
  });
});

describe('hooks', () => {
  test('hook_created makes a hook that its token finds', async () => {
    const runId = await runningRun(world);
    const hookId = `hook_${ulid()}`;
    const token = `token ${ulid()} ✓`;
    const eventData = { token, metadata: bytes('metadata'), isWebhook: false };
    const result = await events.create(runId, event('hook_created', hookId, eventData));
    assert.equal(result.event.eventType, 'hook_created');
    assert.deepEqual(result.hook, await hooks.getByToken(token));
    assert.deepEqual(result.hook.metadata, bytes('metadata'));
    assert.equal(result.hook.isWebhook, false);
    HookSchema.parse(result.hook);
    await assertAsRead(runId, result.event);
  });

  const random = (/** @type {number} */ length) =>
    randomBytes(length).toString('base64url').slice(0, length);
  for (const [what, token, other] of [
    ['that is empty', '', ' '],
    ['of 3,000 bytes', random(3000), random(3000)],
    ['of 10,000 bytes', random(10_000), random(10_000)],
    ['of 60,000 bytes', random(60_000), random(60_000)],
    ['of 60,000 bytes that compress', 'ey'.repeat(30_000), 'ye'.repeat(30_000)],
    ['of other letters', '漢😀é'.repeat(1000), '漢😀e'.repeat(1000)],
    ['that looks like an escape', '\\x61\\141\\', 'aa'],
  ]) {
    test(`a token ${what} has one owner, and is free again`, async () => {
      const [owner, rival] = [await runningRun(world), await runningRun(world)];
      const { hookId } = await liveHook(world, owner, { token });
      await liveHook(world, owner, { token: other });
      const found = await hooks.getByToken(token);
      assert.equal(found.hookId, hookId);
      // A failure must not print it.
      assert.ok(found.token === token);

      const claim = () => event('hook_created', `hook_${ulid()}`, { token });
      const { event: conflict } = await events.create(rival, claim());
      assert.equal(conflict.eventType, 'hook_conflict');
      assert.equal(conflict.eventData.conflictingRunId, owner);
      assert.ok(conflict.eventData.token === token);

      const payload = bytes('p');
      await events.create(owner, event('hook_received', hookId, { token, payload }));
      await events.create(owner, event('hook_disposed', hookId, { token }));
      await assertRefused(hooks.getByToken(token), 'HookNotFoundError', 404);
      const { hook } = await events.create(rival, claim());
      assert.equal((await hooks.getByToken(token)).hookId, hook.hookId);
      await events.create(rival, event('run_completed', undefined, { output: payload }));
      await events.create(owner, event('run_completed', undefined, { output: payload }));
    });
  }

  test('a token that PostgreSQL cannot store is named', async () => {
    const runId = await runningRun(world);
    const wrong = event('hook_created', `hook_${ulid()}`, { token: 'a\0' });
    const { message } = await assertRefused(events.create(runId, wrong), 'WorkflowWorldError', 400);
    assert.match(message, /token/);
    await assertRefused(hooks.getByToken('a\0'), 'HookNotFoundError', 404);
  });

  test('a token in use makes a stored hook_conflict, not a hook', async () => {
    const owner = await runningRun(world);
    const { token, hookId: ownersHook } = await liveHook(world, owner);
    const runId = await runningRun(world);
    const hookId = `hook_${ulid()}`;
    const eventData = { token, metadata: bytes('m'), isWebhook: true };
    const result = await events.create(runId, event('hook_created', hookId, eventData));
    assert.equal(result.event.eventType, 'hook_conflict');
    assert.equal(result.event.correlationId, hookId);
    assert.deepEqual(result.event.eventData, { token, conflictingRunId: owner });
    assert.equal(result.hook, undefined);
    await assertAsRead(runId, result.event);
    assert.deepEqual((await logOf(world, runId)).at(-1), result.event);
    assert.equal((await hooks.getByToken(token)).hookId, ownersHook);
    await assertRefused(hooks.get(hookId), 'HookNotFoundError', 404);
    const payload = event('hook_received', hookId, { token, payload: bytes('p') });
    await assertRefused(events.create(runId, payload), 'HookNotFoundError', 404);
  });

  test('a run may conflict with itself', async () => {
    const runId = await runningRun(world);
    const { token } = await liveHook(world, runId);
    const result = await events.create(runId, event('hook_created', `hook_${ulid()}`, { token }));
    assert.deepEqual(result.event.eventData, { token, conflictingRunId: runId });
  });

  test('the same hook again is a conflict, and one event', async () => {
    const runId = await runningRun(world);
    const { hookId, token } = await liveHook(world, runId);
    for (const again of [token, ulid()]) {
      await assertRefused(
        events.create(runId, event('hook_created', hookId, { token: again })),
        'EntityConflictError',
        409,
      );
    }
    assert.equal((await logOf(world, runId)).length, 3);
  });

  test('a hook that lost its token cannot be made later', async () => {
    const owner = await runningRun(world);
    const { token } = await liveHook(world, owner);
    const runId = await runningRun(world);
    const hookId = `hook_${ulid()}`;
    const created = event('hook_created', hookId, { token });
    await events.create(runId, created);
    await events.create(owner, ENDS.completed);
    // A second replay that began before the conflict was stored.
    await events.create(runId, created).catch(() => {});
    assert.ok(!(await typesOf(world, runId)).includes('hook_created'));
    await assertRefused(hooks.getByToken(token), 'HookNotFoundError', 404);
  });

  test('hook_received keeps its payload, any number of times', async () => {
    const runId = await runningRun(world);
    const { hookId, token } = await liveHook(world, runId);
    const before = await hooks.get(hookId);
    for (const payload of [bytes('one'), bytes('two'), new Uint8Array()]) {
      const result = await events.create(runId, event('hook_received', hookId, { token, payload }));
      assert.deepEqual(result.event.eventData, { token, payload });
      await assertAsRead(runId, result.event);
    }
    assert.deepEqual(await hooks.get(hookId), before);
  });

  test('hook_received may come without a token', async () => {
    const runId = await runningRun(world);
    const { hookId } = await liveHook(world, runId);
    const received = event('hook_received', hookId, { payload: bytes('p') });
    const result = await events.create(runId, received);
    assert.deepEqual(result.event.eventData, { payload: bytes('p') });
  });

  test('hook_disposed frees the token and ends the hook', async () => {
    const runId = await runningRun(world);
    const { hookId, token } = await liveHook(world, runId);
    const result = await events.create(runId, event('hook_disposed', hookId, { token }));
    await assertAsRead(runId, result.event);
    await assertRefused(hooks.getByToken(token), 'HookNotFoundError', 404);
    await assertRefused(hooks.get(hookId), 'HookNotFoundError', 404);
    for (const late of [
      event('hook_received', hookId, { token, payload: bytes('p') }),
      event('hook_disposed', hookId, { token }),
    ]) {
      await assertRefused(events.create(runId, late), 'HookNotFoundError', 404);
    }
    await assertRefused(
      events.create(runId, event('hook_created', hookId, { token })),
      'EntityConflictError',
      409,
    );
    const { hook } = await events.create(runId, event('hook_created', `hook_${ulid()}`, { token }));
    assert.equal(hook.token, token);
    assert.equal((await logOf(world, runId)).length, 5);
  });

  test('a hook that is not there is told so, with or without its run', async () => {
    for (const runId of [await runningRun(world), `wrun_${ulid()}`]) {
      const hookId = `hook_${ulid()}`;
      for (const eventType of ['hook_received', 'hook_disposed']) {
        const error = await assertRefused(
          events.create(runId, event(eventType, hookId, { payload: bytes('p') })),
          'HookNotFoundError',
          404,
        );
        assert.equal(typeof error.token, 'string');
      }
    }
  });
});

describe('waits', () => {
  test('a wait opens once and completes once', async () => {
    const runId = await runningRun(world);
    const waitId = `wait_${ulid()}`;
    const resumeAt = new Date('2031-01-02T03:04:05.678Z');
    const created = await events.create(runId, event('wait_created', waitId, { resumeAt }));
    assert.equal(created.wait.waitId, `${runId}-${waitId}`);
    assert.equal(created.wait.status, 'waiting');
    assert.deepEqual(created.wait.resumeAt, resumeAt);
    assert.deepEqual(created.event.eventData.resumeAt, resumeAt);
    WaitSchema.parse(created.wait);
    await assertAsRead(runId, created.event);
    await assertRefused(
      events.create(runId, event('wait_created', waitId, { resumeAt })),
      'EntityConflictError',
      409,
    );
    const completed = await events.create(runId, event('wait_completed', waitId, { resumeAt }));
    assert.equal(completed.wait.status, 'completed');
    assert.ok(completed.wait.completedAt instanceof Date);
    assert.deepEqual(completed.event.eventData.resumeAt, resumeAt);
    WaitSchema.parse(completed.wait);
    await assertAsRead(runId, completed.event);
    await assertRefused(
      events.create(runId, event('wait_completed', waitId, { resumeAt })),
      'EntityConflictError',
      409,
    );
    assert.equal((await logOf(world, runId)).length, 4);
  });

  test('wait_completed may come without data', async () => {
    const runId = await runningRun(world);
    const { waitId } = await openWait(world, runId);
    const { event: created } = await events.create(runId, event('wait_completed', waitId));
    assert.ok(!('eventData' in created));
    await assertAsRead(runId, created);
  });

  test('a date may come as text, and must be one', async () => {
    const runId = await runningRun(world);
    const resumeAt = '2031-01-02T03:04:05.678Z';
    const { event: created } = await events.create(
      runId,
      event('wait_created', `wait_${ulid()}`, { resumeAt }),
    );
    assert.deepEqual(created.eventData.resumeAt, new Date(resumeAt));
    for (const wrong of ['soon', undefined]) {
      await assertRefused(
        events.create(runId, event('wait_created', `wait_${ulid()}`, { resumeAt: wrong })),
        'WorkflowWorldError',
        400,
      );
    }
  });

  test('a wait that is not there is told so', async () => {
    const runId = await runningRun(world);
    await assertRefused(
      events.create(runId, event('wait_completed', `wait_${ulid()}`)),
      'WorkflowWorldError',
      404,
    );
  });
});

describe('the guard of stateUpdatedAt', () => {
  /** @param {{ eventId: string }} last */
  const snapshotOf = ({ eventId }) => ({ stateUpdatedAt: ulidTime(eventId) });

  /** @param {string} runId */
  const lastOf = async (runId) => /** @type {any} */ ((await logOf(world, runId)).at(-1));

  test('refuses a write of a replay that has not seen an external event, to the millisecond', async () => {
    for (let round = 0; round < 20; round++) {
      const runId = await runningRun(world);
      const { hookId, token } = await liveHook(world, runId);
      const stepId = await runningStep(world, runId);
      const { waitId } = await openWait(world, runId);
      const seen = snapshotOf(await lastOf(runId));
      const external = [
        event('hook_received', hookId, { token, payload: bytes('p') }),
        event('step_completed', stepId, { result: bytes('r') }),
        event('step_failed', stepId, { stepName: 's', error: 'e' }),
        // A sleep that was cut short from outside.
        event('wait_completed', waitId),
      ][round % 4];
      const { event: marker } = await events.create(runId, external);
      for (const write of [
        stepCreated(`step_${ulid()}`),
        event('wait_created', `wait_${ulid()}`, { resumeAt: new Date() }),
        event('hook_created', `hook_${ulid()}`, { token: ulid() }),
        event('hook_disposed', hookId, { token }),
        ENDS.completed,
      ]) {
        const error = await refusal(events.create(runId, write, seen));
        assert.deepEqual([error.name, error.status], ['PreconditionFailedError', 412]);
      }
      assert.equal((await lastOf(runId)).eventId, marker.eventId);
      // An equal time has seen the event.
      await events.create(runId, stepCreated(`step_${ulid()}`), snapshotOf(marker));
      await events.create(runId, ENDS.completed, snapshotOf(await lastOf(runId)));
    }
  });

  test('is not moved by the events of replays', async () => {
    const runId = await runningRun(world);
    const seen = snapshotOf(await lastOf(runId));
    await sleep(3);
    const stepId = `step_${ulid()}`;
    await events.create(runId, stepCreated(stepId), seen);
    await events.create(runId, event('step_started', stepId));
    await sleep(3);
    const { waitId, resumeAt } = await openWait(world, runId);
    await events.create(runId, event('wait_completed', waitId, { resumeAt }), seen);
    await events.create(runId, stepCreated(`step_${ulid()}`), seen);
    await events.create(runId, ENDS.completed, seen);
  });

  test('refuses a write of a replay that has seen what the log has lost', async () => {
    const runId = await runningRun(world);
    const { waitId, resumeAt } = await openWait(world, runId);
    const stepId = await runningStep(world, runId);
    const left = await lastOf(runId);
    const done = event('step_completed', stepId, { result: bytes('r') });
    const { event: lost } = await events.create(runId, done);
    // As on a standby that was promoted before it got the end of the log.
    const { pool, schema } = database;
    await pool.query(`DELETE FROM ${schema}.workflow_events WHERE run_id = $1 AND slot > 5`, [
      runId,
    ]);
    await pool.query(
      `UPDATE ${schema}.workflow_steps SET status = 'running', output_slot = NULL, completed_at = NULL
       WHERE run_id = $1`,
      [runId],
    );
    for (const write of [
      stepCreated(`step_${ulid()}`),
      event('wait_created', `wait_${ulid()}`, { resumeAt }),
      event('wait_completed', waitId, { resumeAt }),
      event('hook_created', `hook_${ulid()}`, { token: ulid() }),
      ENDS.completed,
    ]) {
      const error = await refusal(events.create(runId, write, snapshotOf(lost)));
      assert.deepEqual([error.name, error.status], ['PreconditionFailedError', 412]);
      assert.match(error.message, /asynchronous standby/);
    }
    assert.equal((await lastOf(runId)).eventId, left.eventId);
    await events.create(runId, stepCreated(`step_${ulid()}`), snapshotOf(left));
    // The result of a step survives the loss of its start from the log.
    await events.create(runId, done);
    await events.create(runId, ENDS.completed, snapshotOf(await lastOf(runId)));
  });

  test('does not stand in the way of those who send no snapshot', async () => {
    const runId = await runningRun(world);
    const { hookId, token } = await liveHook(world, runId);
    await events.create(runId, event('hook_received', hookId, { token, payload: bytes('p') }));
    await events.create(runId, stepCreated(`step_${ulid()}`));
    await events.create(runId, ENDS.cancelled);
  });

  test('a write to an ended run is a conflict, whatever it has seen', async () => {
    const runId = await runningRun(world);
    const stepId = await runningStep(world, runId);
    const seen = snapshotOf(await lastOf(runId));
    await events.create(runId, event('step_completed', stepId, { result: bytes('r') }));
    await events.create(runId, ENDS.cancelled);
    for (const write of [stepCreated(`step_${ulid()}`), ENDS.completed]) {
      await assertRefused(events.create(runId, write, seen), 'EntityConflictError', 409);
    }
  });

  test('external events have times of their own', async () => {
    const runId = await runningRun(world);
    const { hookId, token } = await liveHook(world, runId);
    const received = event('hook_received', hookId, { token, payload: bytes('p') });
    await Promise.all(Array.from({ length: 20 }, () => events.create(runId, received)));
    const times = (await logOf(world, runId)).slice(2).map(({ createdAt }) => createdAt.getTime());
    assert.equal(new Set(times).size, times.length);
    assert.deepEqual(
      times,
      times.toSorted((a, b) => a - b),
    );
  });
});

describe('spec versions', () => {
  for (const specVersion of [0, 1]) {
    test(`a run of spec version ${specVersion} can only be cancelled, without an event`, async () => {
      const runId = await pendingRun(world, { specVersion });
      legacyRuns.push(runId);
      assert.equal((await runs.get(runId)).specVersion, specVersion);
      for (const unsupported of [
        event('run_started'),
        ENDS.completed,
        ENDS.failed,
        stepCreated(`step_${ulid()}`),
        event('hook_created', `hook_${ulid()}`, { token: ulid() }),
        event('wait_created', `wait_${ulid()}`, { resumeAt: new Date() }),
      ]) {
        const error = await refusal(events.create(runId, unsupported));
        assert.match(error.message, /legacy/, unsupported.eventType);
      }
      const result = await events.create(runId, ENDS.cancelled);
      assert.equal(result.event, undefined);
      assert.equal(result.run.status, 'cancelled');
      WorkflowRunSchema.parse(await runs.get(runId));
      assert.deepEqual(await typesOf(world, runId), ['run_created']);
      assert.equal((await events.create(runId, ENDS.cancelled)).run.status, 'cancelled');
    });
  }

  test('a run of spec version 1 may be resumed: the event is all that is stored', async () => {
    const runId = await pendingRun(world, { specVersion: 1 });
    legacyRuns.push(runId);
    const payload = { plain: true };
    for (const resumed of [
      event('hook_received', `hook_${ulid()}`, { payload }),
      event('wait_completed', `wait_${ulid()}`),
    ]) {
      const result = await events.create(runId, resumed);
      assert.equal(result.event.eventType, resumed.eventType);
      assert.deepEqual(result.event.eventData, resumed.eventData);
      assert.deepEqual(await events.get(runId, result.event.eventId), result.event);
    }
    assert.deepEqual(await typesOf(world, runId), [
      'run_created',
      'hook_received',
      'wait_completed',
    ]);
  });

  test('payloads of spec version 1 are JSON', async () => {
    const input = [{ text: 'a\0', list: [1, null, false] }];
    const { eventData } = runCreated();
    const { run, event: created } = await events.create(
      null,
      runCreated({ specVersion: 1, eventData: { ...eventData, input } }),
    );
    legacyRuns.push(run.runId);
    assert.deepEqual(run.input, input);
    assert.deepEqual((await runs.get(run.runId)).input, input);
    assert.deepEqual(created.eventData.input, input);
    assert.deepEqual(await events.get(run.runId, created.eventId), created);
    const none = await events.get(run.runId, created.eventId, { resolveData: 'none' });
    assert.ok(!('input' in none.eventData));
    assert.equal((await runs.get(run.runId, { resolveData: 'none' })).input, undefined);
  });

  test('payloads that are JSON live in steps, hooks and outputs too', async () => {
    const runId = await runningRun(world);
    for (const value of [0, false, '', [], { a: 1 }]) {
      const stepId = `step_${ulid()}`;
      const created = await events.create(runId, stepCreated(stepId, { input: value }));
      assert.deepEqual(created.step.input, value);
      const started = await events.create(runId, event('step_started', stepId));
      assert.deepEqual(started.step.input, value);
      const done = event('step_completed', stepId, { result: value });
      assert.deepEqual((await events.create(runId, done)).step.output, value);
      const read = await steps.get(runId, stepId);
      assert.deepEqual([read.input, read.output], [value, value]);
    }
    const metadata = { plain: true };
    const hookId = `hook_${ulid()}`;
    await events.create(runId, event('hook_created', hookId, { token: hookId, metadata }));
    assert.deepEqual((await hooks.get(hookId)).metadata, metadata);
    await events.create(runId, event('run_completed', undefined, { output: [1] }));
    assert.deepEqual((await runs.get(runId)).output, [1]);
  });

  test('runs and events of newer spec versions are refused', async () => {
    const error = await refusal(events.create(null, runCreated({ specVersion: 4 })));
    assert.equal(error.name, 'RunNotSupportedError');
    assert.deepEqual([error.runSpecVersion, error.worldSpecVersion], [4, 3]);

    const runId = await runningRun(world);
    const { pool, schema } = database;
    const change = `UPDATE ${schema}.workflow_runs SET spec_version = $2 WHERE run_id = $1`;
    await pool.query(change, [runId, 7]);
    const stored = await refusal(events.create(runId, ENDS.completed));
    assert.equal(stored.name, 'RunNotSupportedError');
    assert.deepEqual([stored.runSpecVersion, stored.worldSpecVersion], [7, 3]);
    assert.equal((await runs.get(runId)).specVersion, 7);
    await pool.query(change, [runId, 3]);
  });

  test('what has no spec version is of the current one', async () => {
    for (const specVersion of [undefined, null]) {
      const bare = (/** @type {Record<string, any>} */ event) => ({ ...event, specVersion });
      const created = await events.create(null, bare(runCreated()));
      const { runId } = created.run;
      const { run } = await events.create(runId, bare(event('run_started')));
      assert.deepEqual([run.status, run.specVersion], ['running', 3]);

      const [stepId, hookId, waitId] = [`step_${ulid()}`, `hook_${ulid()}`, `wait_${ulid()}`];
      const { step } = await events.create(runId, bare(stepCreated(stepId)));
      const { hook } = await events.create(
        runId,
        bare(event('hook_created', hookId, { token: hookId })),
      );
      const { wait } = await events.create(
        runId,
        bare(event('wait_created', waitId, { resumeAt: new Date() })),
      );
      assert.deepEqual([step.specVersion, hook.specVersion, wait.specVersion], [3, 3, 3]);
      for (const next of [
        event('step_started', stepId),
        event('step_retrying', stepId, { stepName: 's', error: '' }),
        event('step_completed', stepId, { stepName: 's', result: bytes('r') }),
        event('hook_received', hookId, { token: hookId, payload: bytes('p') }),
        event('hook_disposed', hookId, { token: hookId }),
        event('wait_completed', waitId),
        ENDS.completed,
      ]) {
        await events.create(runId, bare(next));
      }
      const log = await logOf(world, runId);
      assert.equal(log.length, 12);
      for (const { eventType, specVersion } of log) assert.equal(specVersion, 3, eventType);
    }
  });

  test('a resilient start without a spec version makes a run of the current one', async () => {
    const runId = `wrun_${ulid()}`;
    const { eventData } = runCreated();
    const started = { ...event('run_started', undefined, eventData), specVersion: undefined };
    const { run } = await events.create(runId, started);
    assert.deepEqual([run.status, run.specVersion], ['running', 3]);
  });

  test('a run of spec version 2 is a run', async () => {
    const runId = await pendingRun(world, { specVersion: 2 });
    assert.equal((await events.create(runId, event('run_started'))).run.specVersion, 2);
  });
});

describe('what is sent', () => {
  test('times are kept to the millisecond as far as dates reach', async () => {
    const runId = await runningRun(world);
    for (const ms of [-1, 0, 8_481_405_576_010_298, 8_640_000_000_000_000, -210_863_519_999_999]) {
      const time = new Date(ms);
      const created = await events.create(
        runId,
        event('wait_created', `wait_${ulid()}`, { resumeAt: time }),
        { occurredAt: time },
      );
      assert.deepEqual(created.wait.resumeAt, time);
      const read = await events.get(runId, created.event.eventId);
      assert.deepEqual([read.occurredAt, read.eventData.resumeAt], [time, time]);
    }
  });

  test('occurredAt is kept', async () => {
    const occurredAt = new Date('2026-03-04T05:06:07.891Z');
    const result = await events.create(null, runCreated(), { occurredAt });
    assert.deepEqual(result.event.occurredAt, occurredAt);
    await assertAsRead(result.run.runId, result.event);
    const started = await events.create(result.run.runId, event('run_started'), { occurredAt });
    assert.deepEqual(started.event.occurredAt, occurredAt);
    assert.notDeepEqual(started.event.createdAt, occurredAt);
    await assertAsRead(result.run.runId, started.event);
  });

  test('bytes of any realm and any view are bytes', async () => {
    const foreign = runInNewContext('new Uint8Array([1, 2, 3])');
    const slice = new Uint8Array([0, 1, 2, 3, 4]).subarray(1, 4);
    for (const input of [foreign, slice, Buffer.from([1, 2, 3])]) {
      const { eventData } = runCreated();
      const { run } = await events.create(null, runCreated({ eventData: { ...eventData, input } }));
      assert.deepEqual((await runs.get(run.runId)).input, new Uint8Array([1, 2, 3]));
    }
  });

  test('the payload may change after the call', async () => {
    const input = bytes('before');
    const { eventData } = runCreated();
    const creating = events.create(null, runCreated({ eventData: { ...eventData, input } }));
    input.fill(0);
    const { run } = await creating;
    const { input: stored } = await runs.get(run.runId);
    assert.deepEqual(stored, bytes('before'));
  });

  test('nonsense is refused as the mistake of the caller', async () => {
    const runId = await runningRun(world);
    for (const [id, wrong] of [
      [runId, { eventType: 'hook_conflict', correlationId: 'hook_1', eventData: { token: 't' } }],
      [runId, { eventType: 'no_such_event' }],
      [runId, {}],
      [runId, null],
      [runId, undefined],
      [null, event('run_started')],
      [7, event('run_started')],
      [runId, event('step_started')],
      [runId, event('step_started', '')],
      [runId, event('step_started', 'step_\0')],
      [runId, event('step_created', `step_${ulid()}`, {})],
      [runId, stepCreated(`step_${ulid()}`, { stepName: 'a\0' })],
      [runId, event('hook_created', `hook_${ulid()}`, {})],
      [runId, { ...event('run_completed'), specVersion: 2.5 }],
      [runId, event('step_failed', `step_${ulid()}`, { error: 1n })],
    ]) {
      await assertRefused(events.create(/** @type {any} */ (id), wrong), 'WorkflowWorldError', 400);
    }
    assert.deepEqual(await typesOf(world, runId), ['run_created', 'run_started']);
  });

  test('a value that PostgreSQL cannot store is the mistake of the caller', async () => {
    const runId = await runningRun(world);
    const step = stepCreated(`step_${ulid()}`);
    const stateUpdatedAt = -8.64e15;
    await assertRefused(events.create(runId, step, { stateUpdatedAt }), 'WorkflowWorldError', 400);
    for (const specVersion of [2 ** 31, 2 ** 40, -1]) {
      await assertRefused(
        events.create(runId, { ...step, specVersion }),
        'WorkflowWorldError',
        400,
      );
    }
  });

  test('a date outside the calendar of PostgreSQL is stored as the nearest one in it', async () => {
    const runId = await runningRun(world);
    const stepId = await runningStep(world, runId);
    const [first, last] = [new Date(-8.64e15), new Date(8.64e15)];
    const times = [];
    for (const at of [first, last]) {
      const waitId = `wait_${ulid()}`;
      const created = await events.create(runId, event('wait_created', waitId, { resumeAt: at }), {
        occurredAt: at,
      });
      const retrying = event('step_retrying', stepId, { stepName: 's', error: '', retryAfter: at });
      const { step } = await events.create(runId, retrying);
      times.push(created.wait.resumeAt.getTime(), step.retryAfter.getTime());
      // The event keeps what the caller gave: a replay reads it.
      const stored = await events.get(runId, created.event.eventId);
      assert.deepEqual(stored, created.event);
      assert.deepEqual(stored.eventData, { resumeAt: at });
      await events.create(runId, event('wait_completed', waitId, { resumeAt: at }));
    }
    const earliest = Date.UTC(-4713, 10, 24);
    assert.deepEqual(times, [earliest, earliest, last.getTime(), last.getTime()]);
  });

  test('an Invalid Date is the epoch, as in the reference World', async () => {
    const runId = await runningRun(world);
    const stepId = await runningStep(world, runId);
    const [never, epoch] = [new Date(Number.NaN), new Date(0)];
    const waiting = event('wait_created', `wait_${ulid()}`, { resumeAt: never });
    const { event: created, wait } = await events.create(runId, waiting);
    assert.deepEqual([wait.resumeAt, created.eventData], [epoch, { resumeAt: epoch }]);
    assert.deepEqual(await events.get(runId, created.eventId), created);
    const retrying = { stepName: 's', error: '', retryAfter: never };
    const { step } = await events.create(runId, event('step_retrying', stepId, retrying));
    assert.deepEqual(step.retryAfter, epoch);
    await events.create(runId, event('step_started', stepId));
  });

  test('a call that PostgreSQL refuses takes no other call with it', async () => {
    const runId = await runningRun(world);
    const results = await Promise.allSettled(
      Array.from({ length: 200 }, (_, i) =>
        events.create(
          runId,
          stepCreated(`step_${ulid()}`),
          i % 20 === 7 ? { stateUpdatedAt: -8.64e15 } : {},
        ),
      ),
    );
    assert.deepEqual(
      results.map(({ status }) => status),
      results.map((_, i) => (i % 20 === 7 ? 'rejected' : 'fulfilled')),
    );
  });

  test('times are whole milliseconds in the database and in every answer', async () => {
    const runId = await runningRun(world);
    const stepId = await runningStep(world, runId);
    const { rows } = await database.pool.query(
      `SELECT created_at <> date_trunc('milliseconds', created_at) AS fraction
       FROM ${database.schema}.workflow_events WHERE run_id = $1`,
      [runId],
    );
    assert.ok(rows.length === 4 && rows.every(({ fraction }) => fraction === false));
    const log = await logOf(world, runId);
    for (const { eventId, createdAt } of log) assert.equal(ulidTime(eventId), createdAt.getTime());
    const step = await steps.get(runId, stepId);
    assert.deepEqual(step.startedAt, log[3].createdAt);
    assert.deepEqual(step.updatedAt, log[3].createdAt);
  });

  test('ids of events sort as they came, within a millisecond too', async () => {
    const runId = await runningRun(world);
    await Promise.all(Array.from({ length: 60 }, () => pendingStep(world, runId)));
    const ids = (await logOf(world, runId)).map(({ eventId }) => eventId);
    assert.equal(ids.length, 62);
    assert.deepEqual(ids, ids.toSorted());
  });
});

describe('resilient start', () => {
  test('run_created and run_started race, and one run comes of it', async () => {
    const other = openWorld(database, { maxPoolSize: 3 });
    try {
      for (let round = 0; round < 50; round++) {
        const runId = `wrun_${ulid()}`;
        const { eventData } = runCreated();
        const started = event('run_started', undefined, eventData);
        const [created, ...starts] = await Promise.allSettled([
          events.create(runId, runCreated()),
          other.events.create(runId, started),
          events.create(runId, started),
        ]);
        if (created.status === 'rejected') assert.equal(created.reason.name, 'EntityConflictError');
        const startedAt = starts.map((start) => {
          assert.equal(start.status, 'fulfilled');
          return /** @type {any} */ (start).value.run.startedAt.getTime();
        });
        assert.equal(startedAt[0], startedAt[1]);
        assert.deepEqual(await typesOf(world, runId), ['run_created', 'run_started']);
      }
    } finally {
      await other.close();
    }
  });
});

test('after all this the log and the entities agree', async () => {
  await assertLogIsSound(database, legacyRuns);
});
