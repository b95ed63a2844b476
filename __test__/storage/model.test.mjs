import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { testDatabase } from '../support/database.mjs';
import {
  assertLogIsSound,
  bytes,
  event,
  logOf,
  openWorld,
  runCreated,
  stepCreated,
  ulid,
} from './fixture.mjs';
import { random } from './racer.mjs';

const database = await testDatabase({ after });
const world = openWorld(database);
after(() => world.close());

const seed = Number(process.env.TEST_SEED ?? Date.now() % 2 ** 31);
const FAR = 10 ** 9;
/** Events that a replay waits for, unless it wrote them itself: then it sends a snapshot. */
const EXTERNAL = new Set(['hook_received', 'step_completed', 'step_failed', 'wait_completed']);

/**
 * What the SDK's contract says of events, one at a time, in as few words as possible.
 *
 * @param {Map<string, string>} tokens whose run has which
 * @param {string} runId
 */
function model(tokens, runId) {
  /** @type {string | undefined} */
  let run;
  /** @type {Map<string, { status: string, attempt: number, early: boolean }>} */
  const steps = new Map();
  /** @type {Map<string, string | undefined>} the token of a hook, as long as it has one */
  const hooks = new Map();
  /** @type {Map<string, string>} */
  const waits = new Map();
  /** @type {string[]} */
  const log = [];
  let external = 0;
  let last = 0;

  const ended = () => ['completed', 'failed', 'cancelled'].includes(run ?? '');

  /** @param {string} status */
  function end(status) {
    run = status;
    for (const token of hooks.values()) if (token) tokens.delete(token);
    hooks.clear();
    waits.clear();
  }

  /** @type {Record<string, (id: string, data: any) => string | void>} what is refused, or the type that is stored */
  const rules = {
    run_started() {
      if (ended()) return 'RunExpiredError';
      if (run === 'running') return 'unchanged';
      run = 'running';
    },
    run_completed: () => (ended() ? 'EntityConflictError' : end('completed')),
    run_failed: () => (ended() ? 'EntityConflictError' : end('failed')),
    run_cancelled() {
      if (run === 'cancelled') return;
      return ended() ? 'EntityConflictError' : end('cancelled');
    },
    step_created(id) {
      if (ended() || steps.has(id)) return 'EntityConflictError';
      steps.set(id, { status: 'pending', attempt: 0, early: false });
    },
    step_started(id) {
      const step = steps.get(id);
      if (ended() && step?.status !== 'running') return 'RunExpiredError';
      if (!step) return 'WorkflowWorldError';
      if (step.status !== 'pending' && step.status !== 'running') return 'EntityConflictError';
      if (step.early) return 'TooEarlyError';
      step.status = 'running';
      step.attempt += 1;
    },
    step_completed: (id) => report(id, 'completed'),
    step_failed: (id) => report(id, 'failed'),
    step_retrying(id, { retryAfter }) {
      const refused = report(id, 'pending');
      const step = steps.get(id);
      if (!refused && step) step.early = retryAfter > Date.now();
      return refused;
    },
    hook_created(id, { token }) {
      if (ended() || hooks.has(id)) return 'EntityConflictError';
      const free = !tokens.has(token);
      hooks.set(id, free ? token : undefined);
      if (!free) return 'hook_conflict';
      tokens.set(token, runId);
    },
    hook_received(id) {
      if (!hooks.get(id)) return 'HookNotFoundError';
    },
    hook_disposed(id) {
      const token = hooks.get(id);
      if (!token) return 'HookNotFoundError';
      tokens.delete(token);
      hooks.set(id, undefined);
    },
    wait_created(id) {
      if (ended() || waits.has(id)) return 'EntityConflictError';
      waits.set(id, 'waiting');
    },
    wait_completed(id) {
      if (ended() || waits.get(id) === 'completed') return 'EntityConflictError';
      if (!waits.has(id)) return 'WorkflowWorldError';
      waits.set(id, 'completed');
    },
  };

  /** @param {string} id @param {string} status */
  function report(id, status) {
    const step = steps.get(id);
    if (!step) return 'WorkflowWorldError';
    if (step.status !== 'pending' && step.status !== 'running') return 'EntityConflictError';
    step.status = status;
    step.early = false;
  }

  return {
    /**
     * @param {any} what
     * @param {number | undefined} snapshot
     * @returns {string} the type that is stored, 'unchanged', or the name of the error
     */
    expect({ eventType, correlationId, eventData }, snapshot) {
      if (run === undefined) {
        const creates = eventType === 'run_created' || (eventType === 'run_started' && eventData);
        if (!creates)
          return /^hook_[rd]/.test(eventType) ? 'HookNotFoundError' : 'WorkflowRunNotFoundError';
        run = 'pending';
        log.push('run_created');
        if (eventType === 'run_created') return eventType;
      }
      if (eventType === 'run_created') return 'EntityConflictError';
      // One that is newer than the log is of a log that has lost its end.
      if (snapshot !== undefined && !ended() && (external > snapshot || last < snapshot))
        return 'PreconditionFailedError';
      const outcome = rules[eventType](correlationId, eventData ?? {}) ?? eventType;
      if (outcome === eventType || outcome === 'hook_conflict') log.push(outcome);
      return outcome;
    },
    /** @param {Date} at @param {boolean} isExternal */
    appended(at, isExternal) {
      last = at.getTime();
      if (isExternal) external = last;
    },
    state: () => ({
      run,
      log,
      steps: [...steps].map(([id, { status, attempt }]) => [id, status, attempt]).sort(),
      hooks: [...hooks].filter(([, token]) => token).sort(),
    }),
  };
}

/**
 * @param {(below: number) => number} dice
 * @param {string[]} tokens
 */
function randomEvent(dice, tokens) {
  /** @template T @param {T[]} list */
  const pick = (list) => list[dice(list.length)];
  const [step, hook, wait] = [`step_${dice(5)}`, `hook_${dice(4)}`, `wait_${dice(3)}`];
  const { eventData } = runCreated();
  const soonOrNever = new Date(Date.now() + (dice(3) === 0 ? FAR : -FAR));
  return pick([
    () => runCreated(),
    () => event('run_started', undefined, pick([undefined, eventData])),
    () => stepCreated(step),
    () => stepCreated(step),
    () => event('step_started', step),
    () => event('step_started', step),
    () => event('step_completed', step, { result: bytes(step) }),
    () => event('step_failed', step, { error: 'e' }),
    () => event('step_retrying', step, { error: 'e', retryAfter: soonOrNever }),
    () => event('step_retrying', step, { error: 'e' }),
    () => event('hook_created', hook, { token: pick(tokens) }),
    () => event('hook_created', hook, { token: pick(tokens) }),
    () => event('hook_received', hook, { payload: bytes('p') }),
    () => event('hook_disposed', hook),
    () => event('wait_created', wait, { resumeAt: soonOrNever }),
    () => event('wait_completed', wait),
    () =>
      dice(6) > 0
        ? event('run_started')
        : pick([
            event('run_completed', undefined, { output: bytes('o') }),
            event('run_failed', undefined, { error: 'e' }),
            event('run_cancelled'),
          ]),
  ])();
}

test(`events do what the contract says, whatever their order (TEST_SEED=${seed})`, async (t) => {
  const dice = random(seed);
  /** @type {Record<string, number>} */
  const seen = {};
  for (let round = 0; round < 40; round++) {
    const tokenNames = Array.from({ length: 3 }, () => ulid());
    /** @type {Map<string, string>} */
    const tokens = new Map();
    const runs = Array.from({ length: 4 }, () => {
      const runId = `wrun_${ulid()}`;
      return { runId, expected: model(tokens, runId) };
    });
    for (let step = 0; step < 160; step++) {
      const { runId, expected } = runs[dice(runs.length)];
      const what = randomEvent(dice, tokenNames);
      const replayed = /_created$|_disposed$|wait_|run_completed/.test(what.eventType);
      const stateUpdatedAt = replayed && dice(4) === 0 ? Date.now() - dice(40) : undefined;
      const outcome = expected.expect(what, stateUpdatedAt);
      const result = await world.events
        .create(runId, what, { stateUpdatedAt })
        .catch((/** @type {any} */ error) => ({ error, event: undefined }));
      const actual =
        'error' in result ? result.error.name : (result.event?.eventType ?? 'unchanged');
      assert.equal(
        actual,
        outcome,
        `seed ${seed}, round ${round}, ${step}: ${JSON.stringify(what)} of ${runId}`,
      );
      seen[actual] = (seen[actual] ?? 0) + 1;
      if (result.event) {
        const isExternal = EXTERNAL.has(actual) && stateUpdatedAt === undefined;
        expected.appended(result.event.createdAt, isExternal);
      }
    }
    for (const { runId, expected } of runs) {
      const log = await logOf(world, runId);
      const [steps, hooks] = await Promise.all([
        world.steps.list({ runId, pagination: { sortOrder: 'asc' } }),
        world.hooks.list({ runId }),
      ]);
      const state = {
        run: log.length > 0 ? (await world.runs.get(runId)).status : undefined,
        log: log.map(({ eventType }) => eventType),
        steps: steps.data.map(({ stepId, status, attempt }) => [stepId, status, attempt]),
        hooks: hooks.data.map(({ hookId, token }) => [hookId, token]),
      };
      assert.deepEqual(state, expected.state(), `seed ${seed}, round ${round}, ${runId}`);
    }
  }
  t.diagnostic(JSON.stringify(seen));
  await assertLogIsSound(database);
});
