import { AsyncLocalStorage } from 'node:async_hooks';
import { call, worldError } from './errors.js';

/**
 * The execution that a call is made in: the delivery of a step to this process. One World may receive the
 * deliveries and another store the events, in an app where this package is loaded twice: hence on
 * `globalThis`.
 */
const KEY = Symbol.for('@workflow/world-postgres//execution');

/** What ends the execution of a step, for now or for good. */
const OUTCOMES = new Set(['step_completed', 'step_failed', 'step_retrying']);

/**
 * @typedef {object} Execution
 * @property {unknown} runId
 * @property {string} stepId
 * @property {number} [attemptRequest] the request of the `step_started` that began the attempt
 * @property {() => Promise<void>} [release] gives the lease on the step back, where one is held
 * @property {number} [retrySeconds] when to look at the step again, for the attempt was not this execution's
 *   any more
 */

/** @returns {AsyncLocalStorage<Execution>} */
function executions() {
  const holder = /** @type {Record<symbol, AsyncLocalStorage<Execution> | undefined>} */ (
    globalThis
  );
  holder[KEY] ??= new AsyncLocalStorage();
  return holder[KEY];
}

/**
 * Runs the handler of a delivery. The lease on its step, if the handler took one and left no outcome,
 * ends with it.
 * @param {unknown} message
 * @param {() => ReturnType<import('./handler.js').Handler>} handle
 * @returns {ReturnType<import('./handler.js').Handler>}
 */
export async function execute(message, handle) {
  const { workflowRunId, stepId } = /** @type {Record<string, unknown>} */ (Object(message));
  if (typeof stepId !== 'string') return handle();
  /** @type {Execution} */
  const execution = { runId: workflowRunId, stepId };
  try {
    const result = await executions().run(execution, handle);
    const { retrySeconds } = execution;
    // The message must outlive the attempt that took over: its process may die too.
    return result ?? (retrySeconds === undefined ? result : { timeoutSeconds: retrySeconds });
  } finally {
    await execution.release?.();
  }
}

/**
 * Appends an event: the start of a step that is being executed here takes a lease on it, and its outcome
 * counts only for the attempt that it began.
 * @param {import('./core.js').Core} core
 * @param {import('../native/index.cjs').AppendRequest} request
 */
export async function appendLeased(core, request) {
  const { eventType, runId = '', correlationId: stepId = '' } = request;
  const execution = executions().getStore();
  if (execution?.runId !== runId || execution.stepId !== stepId) return core.append(request);
  if (eventType === 'step_started') return start(core, request, execution);
  if (!OUTCOMES.has(eventType)) return core.append(request);
  const { attemptRequest } = execution;
  try {
    const reply = await call(core.append({ ...request, attemptRequest }));
    execution.release = undefined;
    return reply;
  } catch (error) {
    if (attemptRequest !== undefined && Object(error).name === 'EntityConflictError') {
      execution.release = undefined;
      execution.retrySeconds = core.stepLeaseMs / 1000;
    }
    throw error;
  }
}

/**
 * @param {import('./core.js').Core} core
 * @param {import('../native/index.cjs').AppendRequest} request
 * @param {Execution} execution
 */
async function start(core, request, execution) {
  const { runId = '', correlationId: stepId = '' } = request;
  let asked = performance.now();
  const reply = await core.append({ ...request, lease: true });
  const { attemptRequest } = JSON.parse(reply.json);
  // This process was stopped, or cut off: by now another one may execute the step.
  while (performance.now() - asked >= core.stepLeaseMs) {
    asked = performance.now();
    if (await core.confirmStep(runId, stepId, attemptRequest)) continue;
    core.forgetStep(runId, stepId, attemptRequest);
    throw worldError({
      name: 'TooEarlyError',
      status: 425,
      retryAfter: 1,
      message: `Cannot start step "${stepId}": the answer took longer than the lease on it, and it was started again`,
    });
  }
  execution.attemptRequest = attemptRequest;
  execution.release = () => core.releaseStep(runId, stepId, attemptRequest);
  return reply;
}
