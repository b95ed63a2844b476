import { configure } from './configuration.js';
import { call, callSync, describe, invalid, worldError } from './errors.js';
import { queueNameOf } from './handler.js';
import { optionalInt32, reading } from './input.js';
import { toCore } from './messages.js';
import { native } from './native.js';

/** A World asks its driver for this: who may deliver, where that is not decided by the token. */
export const AUTHENTICATE = Symbol.for('@workflow/world-postgres//authenticate');

const SIGNATURE_HEADER = 'upstash-signature';
/** Counts the repetitions of a delivery, from 0. */
const RETRIED_HEADER = 'upstash-retried';
/** QStash gives up what is answered so. */
const NOT_RETRYABLE = { status: 489, headers: { 'Upstash-NonRetryable-Error': 'true' } };
const LONGEST_PAUSE_SECONDS = 900;

/**
 * QStash as the queue of a World. It posts to the app, so there are no workers to start.
 * @param {import('../upstash.js').QStashOptions} [options]
 * @returns {import('../index.js').QueueDriver}
 */
export function createQStashQueue(options = {}) {
  const { QStash } = native();
  const qstash = callSync(() => new QStash(configure({ qstash: options })));

  /** @param {'step' | 'flow'} kind */
  const push =
    (kind) =>
    /** @param {import('../index.js').MessageData} message */
    async (message) => {
      const { request, body } = toCore(kind, message);
      const attempt = reading(() => optionalInt32('MessageData.attempt', message.attempt)) || 1;
      await call(qstash.publish(request, body, attempt));
    };

  function checkKeys() {
    if (qstash.hasSigningKeys) return;
    throw worldError({
      name: 'WorkflowWorldError',
      status: 500,
      code: 'CONFIGURATION',
      message:
        'QSTASH_CURRENT_SIGNING_KEY (or qstash.currentSigningKey) is not set: without it no delivery of QStash can be told from a forged one, and none is executed',
    });
  }

  const driver = {
    pushStep: push('step'),
    pushFlow: push('flow'),
    async start() {
      checkKeys();
    },
    /**
     * @param {Headers} headers
     * @param {import('./foreign.js').ForeignDeliveries} foreign
     * @returns {import('./handler.js').Sender}
     */
    [AUTHENTICATE](headers, foreign) {
      checkKeys();
      const signature = headers.get(SIGNATURE_HEADER);
      if (!signature) throw invalid(`Missing ${SIGNATURE_HEADER} header`);
      const { kind, queueName } = queueNameOf(headers);
      const signed = qstash.verify(signature, kind, queueName);
      const retried = countOf(headers);
      return {
        checkBody: (body) => signed.checkBody(body),
        attemptOf: ({ attempt }) => attempt + retried,
        async execute(delivery, handler) {
          try {
            await foreign.execute(delivery, handler);
          } catch (error) {
            // Its last repetition: what follows is ours, up to the SDK's own limit.
            if (retried < qstash.retries) throw error;
            await foreign.retry(delivery, pauseAfter(delivery.meta.attempt)).catch((cause) => {
              throw new Error(`${describe(error)}; and it could not be repeated`, { cause });
            });
          }
        },
        malformed: NOT_RETRYABLE,
      };
    },
  };
  return driver;
}

/** @param {Headers} headers */
function countOf(headers) {
  const retried = Number(headers.get(RETRIED_HEADER) ?? 0);
  return Number.isSafeInteger(retried) && retried > 0 ? retried : 0;
}

/** @param {number} attempt that has failed */
function pauseAfter(attempt) {
  return Math.min(2 ** (attempt - 1), LONGEST_PAUSE_SECONDS);
}
