// Random events, valid and not, at shared runs: in this process, or as one of several.
import { bytes, event, openWorld, runCreated, stepCreated } from './fixture.mjs';

/** @typedef {{ seed: number, runIds: string[], tokens: string[], batches: number }} Race */

/** What a World may answer to an event that does not fit. Anything else is a fault. */
const REFUSALS = new Set([
  'EntityConflictError 409',
  'RunExpiredError 410',
  'WorkflowRunNotFoundError 404',
  'HookNotFoundError 404',
  'WorkflowWorldError 404',
  'TooEarlyError 425',
  'PreconditionFailedError 412',
]);

/** @param {number} seed */
export function random(seed) {
  let state = seed >>> 0;
  /** Mulberry32: 0 up to `below`. @param {number} below */
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

/**
 * @param {(below: number) => number} dice
 * @param {Race} race
 * @returns {[string, Record<string, any>, { stateUpdatedAt?: number }]}
 */
function randomEvent(dice, { runIds, tokens }) {
  /** @param {unknown[]} list */
  const pick = (list) => /** @type {any} */ (list[dice(list.length)]);
  const runId = pick(runIds);
  const stepId = `step_${dice(4)}`;
  const hookId = `hook_${dice(4)}`;
  const waitId = `wait_${dice(3)}`;
  const token = pick(tokens);
  const resumeAt = new Date(0);
  const { eventData } = runCreated();
  const result = bytes('result');
  const make = pick([
    () => runCreated(),
    () => event('run_started'),
    () => event('run_started', undefined, eventData),
    () => event('run_started', undefined, eventData),
    () => stepCreated(stepId),
    () => stepCreated(stepId),
    () => event('step_started', stepId),
    () => event('step_started', stepId),
    () => event('step_started', stepId),
    () => event('step_completed', stepId, { result }),
    () => event('step_failed', stepId, { error: 'e' }),
    () => event('step_retrying', stepId, { error: 'e' }),
    () => event('step_retrying', stepId, { error: 'e', retryAfter: new Date(Date.now() + 5) }),
    () => event('hook_created', hookId, { token }),
    () => event('hook_created', hookId, { token }),
    () => event('hook_created', hookId, { token, metadata: bytes('m') }),
    () => event('hook_received', hookId, { token, payload: bytes('p') }),
    () => event('hook_received', hookId, { token, payload: bytes('p') }),
    () => event('hook_disposed', hookId, { token }),
    () => event('hook_disposed', hookId, { token }),
    () => event('wait_created', waitId, { resumeAt }),
    () => event('wait_created', waitId, { resumeAt }),
    () => event('wait_completed', waitId, { resumeAt }),
    () =>
      pick([
        event('run_completed', undefined, { output: result }),
        event('run_failed', undefined, { error: 'e' }),
        event('run_cancelled'),
        event('run_started'),
        event('run_started'),
      ]),
  ]);
  const stateUpdatedAt = Date.now() - dice(20);
  return [runId, make(), dice(6) === 0 ? { stateUpdatedAt } : {}];
}

/**
 * Fires batches of up to 16 events at once.
 *
 * @param {ReturnType<typeof openWorld>} world
 * @param {Race} race
 * @returns {Promise<Record<string, number>>} how often each outcome came
 */
export async function race(world, { seed, batches, ...shared }) {
  const dice = random(seed);
  /** @type {Record<string, number>} */
  const outcomes = {};
  for (let batch = 0; batch < batches; batch++) {
    const calls = Array.from({ length: 1 + dice(16) }, () => {
      const [runId, what, params] = randomEvent(dice, { seed, batches, ...shared });
      return world.events.create(runId, what, params).then(
        (result) => result.event?.eventType ?? 'unchanged',
        (error) => {
          const outcome = `${error.name} ${error.status}`;
          if (!REFUSALS.has(outcome)) {
            throw new Error(`seed ${seed}, batch ${batch}, ${what.eventType} of ${runId}`, {
              cause: error,
            });
          }
          return outcome;
        },
      );
    });
    for (const outcome of await Promise.all(calls))
      outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  }
  return outcomes;
}

if (process.send) {
  process.once('message', async (/** @type {any} */ { database, ...task }) => {
    const world = openWorld(database);
    const outcomes = await race(world, task);
    await world.close();
    process.send?.(outcomes);
    process.disconnect();
  });
}
