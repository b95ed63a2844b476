import { worldError } from './errors.js';

/**
 * The steps that deliveries to this process are executing. One World may receive the deliveries and
 * another store the events, in an app where this package is loaded twice: hence on `globalThis`.
 */
const KEY = Symbol.for('@workflow/world-postgres//executions');

/** What ends the execution of a step, for now or for good. */
const OUTCOMES = new Set(['step_completed', 'step_failed', 'step_retrying']);

/**
 * @typedef {{ deliveries: number, release?: () => Promise<void> }} Execution
 * `release`: gives the lease on the step back, where one is held
 */

/** @returns {Map<string, Execution>} */
function executions() {
  const holder = /** @type {Record<symbol, Map<string, Execution> | undefined>} */ (globalThis);
  holder[KEY] ??= new Map();
  return holder[KEY];
}

/** @param {unknown} runId @param {unknown} stepId */
const keyOf = (runId, stepId) => `${runId} ${stepId}`;

/**
 * Runs the handler of a delivery. The lease on its step, if the handler took one and left no outcome,
 * ends with it.
 * @template T
 * @param {unknown} message
 * @param {() => Promise<T>} handle
 * @returns {Promise<T>}
 */
export async function execute(message, handle) {
  const { workflowRunId, stepId } = /** @type {Record<string, unknown>} */ (Object(message));
  if (typeof stepId !== 'string') return handle();
  const key = keyOf(workflowRunId, stepId);
  const execution = executions().get(key) ?? { deliveries: 0 };
  executions().set(key, execution);
  execution.deliveries += 1;
  try {
    return await handle();
  } finally {
    execution.deliveries -= 1;
    // Another delivery of the step waits for the one that runs: the lease is that one's.
    if (execution.deliveries === 0) {
      executions().delete(key);
      await execution.release?.();
    }
  }
}

/**
 * Appends an event: the start of a step that is being executed here takes a lease on it.
 * @param {import('./core.js').Core} core
 * @param {import('../native/index.cjs').AppendRequest} request
 */
export async function appendLeased(core, request) {
  const { eventType, runId = '', correlationId = '' } = request;
  const starts = eventType === 'step_started';
  if (!starts && !OUTCOMES.has(eventType)) return core.append(request);
  const execution = executions().get(keyOf(runId, correlationId));
  if (!execution) return core.append(request);
  let asked = performance.now();
  const reply = await core.append(starts ? { ...request, lease: true } : request);
  // This process was stopped, or cut off: by now another one may execute the step.
  while (starts && performance.now() - asked >= core.stepLeaseMs) {
    asked = performance.now();
    const { attempt } = JSON.parse(reply.json).entity;
    if (await core.confirmStep(runId, correlationId, attempt)) continue;
    core.forgetStep(runId, correlationId);
    throw worldError({
      name: 'TooEarlyError',
      status: 425,
      retryAfter: 1,
      message: `Cannot start step "${correlationId}": the answer took longer than the lease on it, and it was started again`,
    });
  }
  execution.release = starts ? () => core.releaseStep(runId, correlationId) : undefined;
  return reply;
}
