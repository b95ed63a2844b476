import { AsyncLocalStorage } from 'node:async_hooks';
import { call } from './errors.js';
import { encodeEvent } from './events.js';
import { appendLeased } from './executions.js';

/**
 * The replay that a delivery to this process makes. One World may receive the deliveries and another
 * store the events, in an app where this package is loaded twice: hence on `globalThis`.
 */
const KEY = Symbol.for('@workflow/world-postgres//replays');

/**
 * The events by which a replay decides. The SDK (`withPreconditionRetry`) answers the refusal of a stale one by reading the
 * log again, and then asks for the same event, which the longer log may not lead to: once it is in the
 * log, no replay can read it. wait_completed is not among them, because it is made before the replay.
 */
const DECISIONS = new Set([
  'step_created',
  'wait_created',
  'hook_created',
  'hook_disposed',
  'run_completed',
]);

/**
 * @typedef {import('./core.js').Core} Core
 * @typedef {Error & { status?: number, lost?: boolean }} Refusal
 * @typedef {object} Replay
 * @property {string} [runId] once its run has been started
 * @property {Refusal} [refusal] of a decision, or of anything where the log has lost its end
 * @property {() => Promise<void>} [letIn] where external events of the run wait for its end
 */

/** @returns {AsyncLocalStorage<Replay>} */
function replays() {
  const holder = /** @type {Record<symbol, AsyncLocalStorage<Replay> | undefined>} */ (globalThis);
  holder[KEY] ??= new AsyncLocalStorage();
  return holder[KEY];
}

/**
 * Runs the handler of a delivery. External events that wait for its replay may come when it has ended;
 * not if it was refused: they wait for the next one.
 * @template T
 * @param {() => Promise<T>} handle
 * @returns {Promise<T>}
 */
export async function replay(handle) {
  /** @type {Replay} */
  const current = {};
  try {
    return await replays().run(current, handle);
  } finally {
    if (!current.refusal) await current.letIn?.();
  }
}

/**
 * Appends an event. Once a decision of a replay was refused as stale, so are all others of its delivery:
 * the SDK then asks for a fresh replay.
 * @param {Core} core
 * @param {import('../native/index.cjs').AppendRequest} request
 */
export async function appendReplayed(core, request) {
  const current = replays().getStore();
  const { eventType, runId = '', snapshotMs } = request;
  const byReplay = snapshotMs !== undefined || eventType === 'run_started';
  if (!current || !byReplay) return appendLeased(core, request);
  const decides = DECISIONS.has(eventType);
  if (current.refusal && (decides || current.refusal.lost)) throw current.refusal;
  if (eventType === 'run_started') current.runId = runId;
  try {
    return await call(appendLeased(core, { ...request, replay: true }));
  } catch (error) {
    const refusal = /** @type {Refusal} */ (error);
    if (refusal.status === 412) {
      if (decides || refusal.lost) current.refusal = refusal;
      endsHold(core, runId);
    }
    throw error;
  }
}

/**
 * External events of the run wait until the delivery that is handled here has ended.
 * @param {Core} core
 * @param {string} runId
 */
export function endsHold(core, runId) {
  const current = replays().getStore();
  if (current) current.letIn = () => core.letIn(runId);
}

/**
 * Appends an event by `append`. What cannot be stored never will be, and each replay would ask for it again,
 * for hours: where a replay did, its run fails, and says why.
 * @template T
 * @param {() => Core} core
 * @param {string | null} runId
 * @param {unknown} eventType
 * @param {() => Promise<T>} append
 * @returns {Promise<T>}
 */
export async function appendOrFail(core, runId, eventType, append) {
  try {
    return await append();
  } catch (error) {
    const { status, message, stack } = /** @type {Refusal} */ (Object(error));
    const isDecision =
      runId &&
      replays().getStore()?.runId === runId &&
      DECISIONS.has(/** @type {string} */ (eventType));
    if (status !== 400 || !isDecision) throw error;
    const eventData = { error: { message, stack }, errorCode: 'USER_ERROR' };
    // It may have ended meanwhile.
    await core()
      .append(encodeEvent(runId, { eventType: 'run_failed', eventData }))
      .catch(() => {});
    throw error;
  }
}
