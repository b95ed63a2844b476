import { configure } from './configuration.js';
import { call, callSync, describe, invalid, worldError } from './errors.js';
import { optionalInt32, reading } from './input.js';
import { decodeBody, encodeBody, toCore } from './messages.js';
import { native } from './native.js';

/** A World asks its driver for this: who may deliver, where that is not decided by the token. */
export const AUTHENTICATE = Symbol.for('@workflow/world-postgres//authenticate');

const SIGNATURE_HEADER = 'upstash-signature';
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
     * @param {'flow' | 'step'} kind
     * @param {import('./foreign.js').ForeignDeliveries} foreign
     * @returns {import('./handler.js').Sender}
     */
    [AUTHENTICATE](headers, kind, foreign) {
      checkKeys();
      const signature = headers.get(SIGNATURE_HEADER);
      if (!signature) throw invalid(`it has no ${SIGNATURE_HEADER} header`);
      const signed = qstash.verify(signature, kind);
      return {
        checkBody: (body) => signed.checkBody(body),
        read: readEnvelope,
        async execute(delivery, handler) {
          try {
            await foreign.execute(delivery, handler);
          } catch (error) {
            // QStash repeats what is not answered. It cannot be asked to repeat this, too: its count of
            // repetitions is not signed.
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

/**
 * A delivery by its body alone, for nothing else is signed.
 * @param {Uint8Array} body
 * @returns {import('./handler.js').Delivery}
 */
function readEnvelope(body) {
  const { queueName, messageId, attempt, headers, message } = Object(decodeBody(body));
  return {
    // Made anew: whoever executes the message may have changed this one.
    body: () => encodeBody(Object(decodeBody(body)).message),
    headers: new Headers(headers),
    meta: { queueName, messageId, attempt },
    message,
  };
}

/** @param {number} attempt that has failed */
function pauseAfter(attempt) {
  return Math.min(2 ** (attempt - 1), LONGEST_PAUSE_SECONDS);
}
