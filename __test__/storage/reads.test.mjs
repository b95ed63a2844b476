import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { EventSchema, HookSchema, StepSchema, WorkflowRunSchema } from '@workflow/world';
import { testDatabase } from '../support/database.mjs';
import {
  assertRefused,
  bytes,
  event,
  liveHook,
  logOf,
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

const database = await testDatabase({ after });
const world = openWorld(database);
after(() => world.close());
const { events, runs, steps, hooks } = world;

/**
 * All pages of a list, each of `limit`.
 *
 * @param {(params: any) => Promise<{ data: any[], cursor: string | null, hasMore: boolean }>} list
 * @param {Record<string, any>} params
 * @param {number} limit
 * @param {'asc' | 'desc'} [sortOrder]
 */
async function pages(list, params, limit, sortOrder) {
  const all = [];
  let cursor;
  for (;;) {
    const page = await list({ ...params, pagination: { limit, cursor, sortOrder } });
    assert.ok(page.data.length <= limit);
    all.push(...page.data);
    if (page.data.length > 0) assert.equal(typeof page.cursor, 'string');
    if (!page.hasMore) return all;
    assert.equal(page.data.length, limit);
    assert.notEqual(page.cursor, cursor);
    cursor = page.cursor;
  }
}

/** @param {string[]} ids */
const sorted = (ids) => ids.toSorted();
/** @param {string[]} ids */
const reversed = (ids) => ids.toSorted().reverse();

describe('lists', () => {
  const workflowName = `workflow//./lists//${ulid()}`;
  /** @type {string[]} */
  let runIds;
  /** @type {string} */
  let runId;
  /** @type {string[]} */
  let stepIds;
  /** @type {string[]} */
  let hookIds;

  before(async () => {
    const eventData = { ...runCreated().eventData, workflowName };
    runIds = await Promise.all(Array.from({ length: 25 }, () => pendingRun(world, { eventData })));
    runId = await runningRun(world);
    stepIds = await Promise.all(Array.from({ length: 25 }, () => pendingStep(world, runId)));
    hookIds = (await Promise.all(Array.from({ length: 105 }, () => liveHook(world, runId)))).map(
      ({ hookId }) => hookId,
    );
  });

  test('default orders and limits', async () => {
    const listedRuns = await runs.list({ workflowName });
    assert.deepEqual(
      listedRuns.data.map((run) => run.runId),
      reversed(runIds).slice(0, 20),
    );
    assert.equal(listedRuns.hasMore, true);
    const listedSteps = await steps.list({ runId });
    assert.deepEqual(
      listedSteps.data.map((step) => step.stepId),
      reversed(stepIds).slice(0, 20),
    );
    const listedHooks = await hooks.list({ runId });
    assert.deepEqual(
      listedHooks.data.map((hook) => hook.hookId),
      sorted(hookIds).slice(0, 100),
    );
    const listedEvents = await events.list({ runId });
    assert.equal(listedEvents.data.length, 2 + 25 + 105);
    assert.equal(listedEvents.hasMore, false);
    assert.equal(listedEvents.data[0].eventType, 'run_created');
  });

  test('sortOrder is honoured everywhere, page by page', async () => {
    for (const limit of [1, 7, 25, 1000]) {
      for (const [sortOrder, order] of /** @type {const} */ ([
        ['asc', sorted],
        ['desc', reversed],
      ])) {
        const all = await Promise.all([
          pages(runs.list, { workflowName }, limit, sortOrder),
          pages(steps.list, { runId }, limit, sortOrder),
          pages(hooks.list, { runId }, limit, sortOrder),
          pages(events.list, { runId }, limit, sortOrder),
        ]);
        assert.deepEqual(
          all[0].map((run) => run.runId),
          order(runIds),
        );
        assert.deepEqual(
          all[1].map((step) => step.stepId),
          order(stepIds),
        );
        assert.deepEqual(
          all[2].map((hook) => hook.hookId),
          order(hookIds),
        );
        const ids = all[3].map(({ eventId }) => eventId);
        assert.deepEqual(ids, order(ids));
        assert.equal(new Set(ids).size, 132);
      }
    }
  });

  test('a limit is brought into 1 to 1000', async () => {
    for (const [limit, count] of [
      [0, 1],
      [-5, 1],
      [1, 1],
      [100_000, 25],
    ]) {
      const page = await runs.list({ workflowName, pagination: { limit } });
      assert.equal(page.data.length, count);
    }
    await assertRefused(runs.list({ pagination: { limit: 1.5 } }), 'WorkflowWorldError', 400);
    await assertRefused(
      runs.list({ pagination: { limit: /** @type {any} */ ('10') } }),
      'WorkflowWorldError',
      400,
    );
  });

  test('a wrong sortOrder or cursor is the mistake of the caller', async () => {
    const sortOrder = /** @type {any} */ ('up; DROP TABLE');
    const lists = [
      (/** @type {any} */ pagination) => runs.list({ pagination }),
      (/** @type {any} */ pagination) => steps.list({ runId, pagination }),
      (/** @type {any} */ pagination) => hooks.list({ pagination }),
      (/** @type {any} */ pagination) => events.list({ runId, pagination }),
    ];
    for (const list of lists) {
      for (const wrong of [{ sortOrder }, { cursor: 'a\0' }, { cursor: 7 }]) {
        await assertRefused(list(wrong), 'WorkflowWorldError', 400);
      }
    }
  });

  test('an empty cursor is the first page', async () => {
    for (const cursor of ['', undefined, null]) {
      const pagination = { cursor, limit: 3 };
      for (const list of [runs.list, steps.list, hooks.list, events.list]) {
        const page = await list({ runId, pagination });
        assert.deepEqual(page, await list({ runId, pagination: { limit: 3 } }));
        assert.equal(page.data.length, 3);
      }
    }
  });

  test('runs are found by name and status', async () => {
    const [first, second] = runIds;
    await events.create(first, event('run_started'));
    await events.create(second, event('run_cancelled'));
    for (const [status, expected] of /** @type {const} */ ([
      ['running', [first]],
      ['cancelled', [second]],
      ['failed', []],
    ])) {
      const { data } = await runs.list({ workflowName, status });
      assert.deepEqual(
        data.map((run) => run.runId),
        expected,
      );
    }
    assert.equal((await runs.list({ workflowName: `${workflowName}x` })).data.length, 0);
    const all = await runs.list();
    assert.equal(all.data.length, 20);
    for (const run of all.data) WorkflowRunSchema.parse(run);
  });

  test('a filter that no row can match finds nothing', async () => {
    for (const filter of [{ workflowName: 'a\0b' }, { status: 'a\0b' }, { status: 'unheard-of' }]) {
      const page = await runs.list(/** @type {any} */ (filter));
      assert.deepEqual(page, { data: [], cursor: null, hasMore: false });
    }
  });

  test('hooks of all runs are listed, those of ended or disposed hooks are not', async () => {
    const other = await runningRun(world);
    const kept = await liveHook(world, other);
    const disposed = await liveHook(world, other);
    await events.create(other, event('hook_disposed', disposed.hookId));
    const all = await pages(hooks.list, {}, 50);
    assert.equal(all.length, 106);
    for (const hook of all) HookSchema.parse(hook);
    assert.deepEqual(
      (await hooks.list({ runId: other })).data.map((hook) => hook.hookId),
      [kept.hookId],
    );
    await events.create(other, event('run_completed', undefined, {}));
    assert.equal((await hooks.list({ runId: other })).data.length, 0);
  });

  test('of a run that is not there are empty', async () => {
    const missing = `wrun_${ulid()}`;
    const empty = { data: [], cursor: null, hasMore: false };
    assert.deepEqual(await steps.list({ runId: missing }), empty);
    assert.deepEqual(await events.list({ runId: missing }), empty);
    assert.deepEqual(await hooks.list({ runId: missing }), empty);
  });
});

describe('the pages of a log', () => {
  test('the cursor of the last page leads to what comes later', async () => {
    const runId = await runningRun(world);
    const first = await events.list({ runId, pagination: { sortOrder: 'asc' } });
    assert.equal(first.hasMore, false);
    assert.equal(first.cursor, first.data.at(-1)?.eventId);

    const cursor = /** @type {string} */ (first.cursor);
    const nothing = await events.list({ runId, pagination: { sortOrder: 'asc', cursor } });
    assert.deepEqual([nothing.data, nothing.hasMore], [[], false]);

    const stepId = await pendingStep(world, runId);
    const delta = await events.list({ runId, pagination: { sortOrder: 'asc', cursor } });
    assert.deepEqual(
      delta.data.map(({ correlationId }) => correlationId),
      [stepId],
    );
  });

  test('a cursor of another run or of no run is refused, so that the runtime starts over', async () => {
    const [runId, other] = [await runningRun(world), await runningRun(world)];
    const [foreign] = await logOf(world, other);
    for (const cursor of [foreign.eventId, 'evnt_', 'evnt_nonsense', `evnt_${ulid()}`, runId]) {
      await assertRefused(
        events.list({ runId, pagination: { cursor } }),
        'WorkflowWorldError',
        400,
      );
      await assertRefused(events.get(runId, cursor), 'WorkflowWorldError', 404);
    }
  });

  test('a log of 2,500 events is read whole, in order, in pages of a thousand', async () => {
    const runId = await runningRun(world);
    const { hookId } = await liveHook(world, runId);
    const received = Array.from({ length: 2497 }, (_, i) =>
      events.create(runId, event('hook_received', hookId, { payload: bytes(`${i}`) })),
    );
    await Promise.all(received);
    const first = await events.list({ runId });
    assert.deepEqual([first.data.length, first.hasMore], [1000, true]);
    const log = await logOf(world, runId);
    assert.equal(log.length, 2500);
    const ids = log.map(({ eventId }) => eventId);
    assert.deepEqual(ids, sorted([...new Set(ids)]));
    const payloads = new Set(log.slice(3).map((e) => Buffer.from(e.eventData.payload).toString()));
    assert.equal(payloads.size, 2497);
    const { events: preload } = await events.create(runId, event('run_started'));
    assert.deepEqual(preload, log);
    const backwards = await pages(events.list, { runId }, 1000, 'desc');
    assert.deepEqual(backwards, log.toReversed());
  });

  test('events.get gives each event of a list', async () => {
    const runId = await runningRun(world);
    await runningStep(world, runId);
    for (const listed of await logOf(world, runId)) {
      assert.deepEqual(await events.get(runId, listed.eventId), listed);
      EventSchema.parse(listed);
    }
  });
});

describe('events by correlation id', () => {
  test('are found with and without their run', async () => {
    const runId = await runningRun(world);
    const { startedAt } = await runs.get(runId);
    // One made as the SDK makes them, with the time of the run's start, and one made otherwise.
    for (const stepId of [`step_${ulid(startedAt?.getTime())}`, `step_${ulid(5)}`, 'odd:id']) {
      await events.create(runId, stepCreated(stepId));
      await events.create(runId, event('step_started', stepId));
      await events.create(runId, event('step_completed', stepId, { result: bytes('r') }));
      const correlationId = stepId;
      for (const filter of [{ correlationId }, { correlationId, runId }]) {
        const page = await events.listByCorrelationId(filter);
        assert.deepEqual(
          page.data.map(({ eventType }) => eventType),
          ['step_created', 'step_started', 'step_completed'],
        );
        assert.ok(page.data.every((e) => e.runId === runId && e.correlationId === stepId));
        assert.equal(page.cursor, page.data[2].eventId);
        const [created] = page.data;
        const rest = await events.listByCorrelationId({
          ...filter,
          pagination: { cursor: created.eventId, limit: 1 },
        });
        assert.deepEqual([rest.data, rest.hasMore], [[page.data[1]], true]);
        const last = await events.listByCorrelationId({
          ...filter,
          pagination: { sortOrder: 'desc', limit: 1 },
        });
        assert.deepEqual(last.data, [page.data[2]]);
      }
    }
  });

  test('are none for an unknown id', async () => {
    const empty = { data: [], cursor: null, hasMore: false };
    const runId = await runningRun(world);
    const correlationId = `step_${ulid()}`;
    assert.deepEqual(await events.listByCorrelationId({ correlationId }), empty);
    assert.deepEqual(await events.listByCorrelationId({ correlationId, runId }), empty);
  });
});

describe('one entity', () => {
  test('that is not there is told so', async () => {
    const runId = await runningRun(world);
    const other = `wrun_${ulid()}`;
    const missing = await assertRefused(runs.get(other), 'WorkflowRunNotFoundError', 404);
    assert.equal(missing.runId, other);
    const stepId = `step_${ulid()}`;
    for (const run of [runId, other, undefined]) {
      await assertRefused(steps.get(run, stepId), 'WorkflowWorldError', 404);
    }
    await assertRefused(events.get(runId, `evnt_${ulid()}`), 'WorkflowWorldError', 404);
    for (const read of [hooks.get, hooks.getByToken]) {
      const error = await assertRefused(read('unheard-of'), 'HookNotFoundError', 404);
      assert.equal(error.token, 'unheard-of');
    }
  });

  test('whose id no entity can have is not there either', async () => {
    const long = 'x'.repeat(1000);
    for (const id of ['', 'a\0b', long]) {
      await assertRefused(runs.get(id), 'WorkflowRunNotFoundError', 404);
      await assertRefused(hooks.getByToken(id), 'HookNotFoundError', 404);
      await assertRefused(hooks.get(id), 'HookNotFoundError', 404);
    }
  });

  test('whose id is not a string is a mistake of the caller', async () => {
    for (const id of /** @type {any[]} */ ([undefined, null, 7, {}])) {
      await assertRefused(runs.get(id), 'WorkflowWorldError', 400);
      await assertRefused(hooks.getByToken(id), 'WorkflowWorldError', 400);
      await assertRefused(steps.get(undefined, id), 'WorkflowWorldError', 400);
      await assertRefused(events.list({ runId: id }), 'WorkflowWorldError', 400);
    }
  });

  test('a step is found without its run', async () => {
    const runId = await runningRun(world);
    const { startedAt } = await runs.get(runId);
    for (const stepId of [`step_${ulid(startedAt?.getTime())}`, `step_${ulid(7)}`, 'odd step']) {
      await events.create(runId, stepCreated(stepId));
      const step = await steps.get(undefined, stepId);
      assert.deepEqual(step, await steps.get(runId, stepId));
      StepSchema.parse(step);
    }
  });

  test('of a hook that was made without isWebhook says that webhooks may resume it', async () => {
    const runId = await runningRun(world);
    const hookId = `hook_${ulid()}`;
    await events.create(runId, event('hook_created', hookId, { token: hookId }));
    assert.equal((await hooks.get(hookId)).isWebhook, true);
    assert.equal((await hooks.getByToken(hookId)).isWebhook, true);
    assert.equal((await hooks.get(hookId)).metadata, undefined);
  });
});

describe("resolveData 'none'", () => {
  test('leaves out the payloads of entities and nothing else', async () => {
    const resolveData = /** @type {const} */ ('none');
    const runId = await runningRun(world);
    const stepId = await runningStep(world, runId);
    await events.create(runId, event('step_retrying', stepId, { error: 'e' }));
    await events.create(runId, event('step_completed', stepId, { result: bytes('r') }));
    const { hookId, token } = await liveHook(world, runId, { metadata: bytes('m') });
    const hook = await hooks.get(hookId);
    const { metadata: _, ...rest } = hook;
    assert.deepEqual(await hooks.get(hookId, { resolveData }), rest);
    assert.equal((await hooks.getByToken(token, { resolveData })).metadata, undefined);
    assert.equal((await hooks.list({ runId, resolveData })).data[0].metadata, undefined);

    await events.create(runId, event('run_completed', undefined, { output: bytes('o') }));
    for (const [full, none, listed] of [
      [
        await runs.get(runId),
        await runs.get(runId, { resolveData }),
        (await runs.list({ resolveData, status: 'completed' })).data.find(
          (run) => run.runId === runId,
        ),
      ],
      [
        await steps.get(runId, stepId),
        await steps.get(runId, stepId, { resolveData }),
        (await steps.list({ runId, resolveData })).data[0],
      ],
    ]) {
      assert.ok(full?.input && full.output);
      assert.deepEqual(none, { ...full, input: undefined, output: undefined });
      assert.deepEqual(listed, none);
    }
  });

  test('leaves out of an event what the SDK says, and keeps the rest', async () => {
    const runId = await runningRun(world);
    const stepId = await runningStep(world, runId);
    const retryAfter = new Date(Date.now() - 1);
    await events.create(
      runId,
      event('step_retrying', stepId, { stepName: 's', error: 'e', stack: 'at', retryAfter }),
    );
    const result = bytes('r');
    await events.create(runId, event('step_completed', stepId, { stepName: 's', result }));
    const failing = await runningStep(world, runId);
    await events.create(
      runId,
      event('step_failed', failing, { stepName: 's', error: 'e', stack: 'at' }),
    );
    const { hookId, token } = await liveHook(world, runId, {
      metadata: bytes('m'),
      isWebhook: true,
    });
    await events.create(runId, event('hook_received', hookId, { token, payload: bytes('p') }));
    await events.create(runId, event('hook_received', hookId, { payload: bytes('p') }));
    await events.create(runId, event('hook_disposed', hookId, { token }));
    const { resumeAt, waitId } = await openWait(world, runId);
    await events.create(runId, event('wait_completed', waitId, { resumeAt }));
    await events.create(
      runId,
      event('run_failed', undefined, { error: { message: 'm', stack: 's' }, errorCode: 'C' }),
    );
    const { input: _, ...created } = runCreated().eventData;
    const step = { stepName: 'step//./a//s', workflowName: 'w' };
    const bare = await events.list({ runId, resolveData: 'none' });
    assert.deepEqual(
      bare.data.map(({ eventType, eventData }) => [eventType, eventData]),
      [
        ['run_created', created],
        ['run_started', undefined],
        ['step_created', step],
        ['step_started', undefined],
        ['step_retrying', { stepName: 's', stack: 'at', retryAfter }],
        ['step_completed', { stepName: 's' }],
        ['step_created', step],
        ['step_started', undefined],
        ['step_failed', { stepName: 's', stack: 'at' }],
        ['hook_created', { token, isWebhook: true }],
        ['hook_received', { token }],
        ['hook_received', undefined],
        ['hook_disposed', { token }],
        ['wait_created', { resumeAt }],
        ['wait_completed', { resumeAt }],
        ['run_failed', { errorCode: 'C' }],
      ],
    );
    assert.ok(!('eventData' in bare.data[11]));
    for (const listed of bare.data) {
      assert.deepEqual(await events.get(runId, listed.eventId, { resolveData: 'none' }), listed);
    }
    const correlated = await events.listByCorrelationId({
      correlationId: stepId,
      resolveData: 'none',
    });
    assert.deepEqual(correlated.data, bare.data.slice(2, 6));
  });

  test('is honoured by the result of events.create', async () => {
    const { event: created } = await events.create(null, runCreated(), { resolveData: 'none' });
    assert.ok(!('input' in created.eventData));
    assert.equal(created.eventData.workflowName, 'workflow//./flow//main');
  });
});

describe('payloads', () => {
  test('are exact to the byte, from none to megabytes', async () => {
    const sizes = [0, 1, 255, 65_536, 1_048_576, 5_000_000];
    for (const size of sizes) {
      const payload = new Uint8Array(randomBytes(size));
      const eventData = { ...runCreated().eventData, input: payload };
      const { run } = await events.create(null, runCreated({ eventData }));
      assert.ok(Buffer.from(payload).equals(/** @type {any} */ (run.input)));
      assert.ok(Buffer.from(payload).equals(/** @type {any} */ (await runs.get(run.runId)).input));
      const { events: log } = await events.create(run.runId, event('run_started'));
      assert.ok(Buffer.from(payload).equals(log[0].eventData.input));
    }
  });

  test('that are empty differ from absent ones', async () => {
    const runId = await runningRun(world);
    const stepId = `step_${ulid()}`;
    const empty = new Uint8Array();
    await events.create(runId, stepCreated(stepId, { input: empty }));
    assert.deepEqual((await steps.get(runId, stepId)).input, empty);
    const { step } = await events.create(runId, event('step_started', stepId));
    assert.deepEqual(step.input, empty);
    await events.create(runId, event('step_completed', stepId, { result: empty }));
    assert.deepEqual((await steps.get(runId, stepId)).output, empty);
    assert.deepEqual((await logOf(world, runId)).at(-1)?.eventData, { result: empty });

    const bare = `hook_${ulid()}`;
    await events.create(runId, event('hook_created', bare, { token: bare }));
    assert.equal((await hooks.get(bare)).metadata, undefined);
    const full = `hook_${ulid()}`;
    await events.create(runId, event('hook_created', full, { token: full, metadata: empty }));
    assert.deepEqual((await hooks.get(full)).metadata, empty);

    await events.create(runId, event('run_completed', undefined, { output: empty }));
    assert.deepEqual((await runs.get(runId)).output, empty);
  });

  test('have a buffer of their own, which may be transferred away', async () => {
    const runId = await runningRun(world);
    await runningStep(world, runId);
    const { events: log } = await events.create(runId, event('run_started'));
    const found = [
      (await runs.get(runId)).input,
      ...log.flatMap((e) => (e.eventData?.input ? [e.eventData.input] : [])),
      ...(await logOf(world, runId)).flatMap((e) =>
        e.eventData?.input ? [e.eventData.input] : [],
      ),
    ];
    assert.equal(found.length, 5);
    for (const payload of /** @type {Uint8Array[]} */ (found)) {
      assert.equal(payload.constructor, Uint8Array);
      assert.equal(payload.buffer.byteLength, payload.byteLength);
    }
    assert.equal(new Set(found.map((payload) => /** @type {any} */ (payload).buffer)).size, 5);
    structuredClone(found[0], { transfer: [/** @type {any} */ (found[0]).buffer] });
    assert.deepEqual(found[1], bytes('input'));
  });
});

test('strings are kept as they are, NUL and half characters included', async () => {
  const odd = 'nul \0, half \ud83d, quote \' " \\ $1 :"schema", line\u2028, \u{1f600}';
  const runId = await runningRun(world);
  const stepId = `step_${ulid()}`;
  await events.create(runId, stepCreated(stepId, { workflowName: odd }));
  await events.create(
    runId,
    event('step_failed', stepId, { stepName: 's', error: odd, stack: odd }),
  );
  assert.deepEqual((await steps.get(runId, stepId)).error, { message: odd, stack: odd });
  const [created, failed] = (await logOf(world, runId)).slice(2);
  assert.equal(created.eventData.workflowName, odd);
  assert.deepEqual([failed.eventData.error, failed.eventData.stack], [odd, odd]);
});
