import { waitOf } from './handler.js';
import { MessageBody, NOT_BEFORE_HEADER } from './messages.js';

/** What came early is held for so long, then sent again. A slot of the user's consumer is taken meanwhile. */
const LONGEST_HOLD_MS = 1_000;
/** A timer serves a wait that ends so much earlier: the SDK asks for whole seconds. */
const TOLERANCE_MS = 1_000;
/** Of so many timers, those whose time has come are forgotten. */
const MANY_TIMERS = 1_000;
/** What a step's message carries from the SDK. */
const TRACE_HEADERS = ['traceparent', 'tracestate'];

/**
 * @typedef {import('./handler.js').Delivery} Delivery
 * @typedef {{ running: Promise<void>, next?: Promise<void> }} Replay
 * @typedef {{ headers: Record<string, string>, delaySeconds: number, attempt?: number, idempotencyKey?: string }} SendOptions
 * @typedef {(queueName: string, data: Uint8Array, options: SendOptions) => Promise<unknown>} Send
 * @typedef {ReturnType<typeof createForeignDeliveries>} ForeignDeliveries
 */

/**
 * Executes what a queue of the user's own delivers. Such a queue keeps no leases and knows no waits:
 *
 * - a wait becomes a fresh delayed message. Fresh, because the one at hand is being delivered, and a
 *   queue that drops repeated keys would drop it;
 * - what arrives before its time, from a queue that ignores or caps delays, is sent again;
 * - simultaneous deliveries of one step, from a queue that duplicates, share one execution;
 * - wakes of a run that come while it is being replayed share the replay after that one. Our own queue
 *   does so across processes: each step of a fan-out sends a wake.
 * @param {Send} send
 */
export function createForeignDeliveries(send) {
  /** @type {Map<string, Promise<void>>} */
  const executions = new Map();
  /** @type {Map<string, Replay>} */
  const replays = new Map();
  /** When runs and steps will be delivered again. @type {Map<string, number>} */
  const timers = new Map();

  /**
   * @param {Delivery} delivery
   * @param {number} dueMs
   * @param {{ attempt?: number, idempotencyKey?: string }} [options]
   */
  const sendAgain = ({ body, headers, meta }, dueMs, options) =>
    send(meta.queueName, new MessageBody(body()), {
      headers: traceOf(headers),
      delaySeconds: Math.max(0, dueMs - Date.now()) / 1000,
      ...options,
    });

  /**
   * @param {Delivery} delivery
   * @param {string} subject
   * @param {number} timeoutSeconds
   */
  async function wait(delivery, subject, timeoutSeconds) {
    const now = Date.now();
    const due = now + timeoutSeconds * 1000;
    const timer = timers.get(subject) ?? 0;
    // Each replay of a sleeping run asks for the same wake: one is enough.
    if (timer > now && timer <= due + TOLERANCE_MS) return;
    await sendAgain(delivery, due);
    timers.set(subject, due);
    if (timers.size < MANY_TIMERS) return;
    for (const [other, otherDue] of timers) if (otherDue < now) timers.delete(other);
  }

  /**
   * @param {Delivery} delivery
   * @param {string} subject
   * @param {import('./handler.js').Handler} handler
   */
  async function run(delivery, subject, handler) {
    const result = await handler(delivery.message, delivery.meta);
    const timeoutSeconds = waitOf(result);
    if (timeoutSeconds !== undefined) await wait(delivery, subject, timeoutSeconds);
  }

  /**
   * @param {string} runId
   * @param {() => Promise<void>} execution
   * @returns {Promise<void>}
   */
  function replay(runId, execution) {
    const current = replays.get(runId);
    if (current) {
      // Not the one that runs: it may have read the log before this wake's event was in it.
      current.next ??= current.running.then(
        () => begin(runId, execution),
        () => begin(runId, execution),
      );
      return current.next;
    }
    return begin(runId, execution);
  }

  /**
   * @param {string} runId
   * @param {() => Promise<void>} execution
   */
  function begin(runId, execution) {
    /** @type {Replay} */
    const current = { running: execution() };
    replays.set(runId, current);
    const end = () => {
      if (!current.next) replays.delete(runId);
    };
    current.running.then(end, end);
    return current.running;
  }

  /**
   * @param {Delivery} delivery
   * @param {import('./handler.js').Handler} handler
   */
  async function execute(delivery, handler) {
    const notBefore = Number(delivery.headers.get(NOT_BEFORE_HEADER) ?? 0);
    const early = notBefore - Date.now();
    // A timer may fire a millisecond before its time.
    if (early > 0) await pause(Math.min(early + 1, LONGEST_HOLD_MS));
    if (early > LONGEST_HOLD_MS) {
      await sendAgain(delivery, notBefore, { attempt: delivery.meta.attempt });
      return;
    }
    const { runId, stepId } = /** @type {Record<string, unknown>} */ (Object(delivery.message));
    const subject = String(stepId ?? runId ?? delivery.meta.messageId);
    // This is that timer: the next wait needs one of its own, also where the clock was set back.
    if (Number(timers.get(subject)) <= notBefore) timers.delete(subject);
    const execution = () => run(delivery, subject, handler);
    if (stepId === undefined) {
      return isWake(delivery.message) ? replay(subject, execution) : execution();
    }
    const running = executions.get(subject) ?? execution();
    executions.set(subject, running);
    try {
      await running;
    } finally {
      if (executions.get(subject) === running) executions.delete(subject);
    }
  }

  /**
   * Repeats a delivery that failed, for a queue that does not count attempts: by a fresh message, one for
   * each attempt, however often the delivery that failed comes again.
   * @param {Delivery} delivery
   * @param {number} delaySeconds
   */
  async function retry(delivery, delaySeconds) {
    const { messageId, attempt } = delivery.meta;
    await sendAgain(delivery, Date.now() + delaySeconds * 1000, {
      attempt: attempt + 1,
      idempotencyKey: `${messageId}.${attempt + 1}`,
    });
  }

  return { execute, retry };
}

/**
 * Nothing but the name of a run: another one of them says as much.
 * @param {unknown} message
 */
function isWake(message) {
  const { runId, runInput, replayDivergence } = /** @type {Record<string, unknown>} */ (
    Object(message)
  );
  return typeof runId === 'string' && runInput === undefined && replayDivergence === undefined;
}

/** @param {number} ms */
function pause(ms) {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
}

/** @param {Headers} headers */
function traceOf(headers) {
  return Object.fromEntries(
    TRACE_HEADERS.flatMap((name) => {
      const value = headers.get(name);
      return value === null ? [] : [[name, value]];
    }),
  );
}
