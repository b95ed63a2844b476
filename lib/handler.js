import { describe, invalid, worldError } from './errors.js';
import { decodeBody, parseQueueName } from './messages.js';

const TOKEN_HEADER = 'x-workflow-secret';
/** Set by the proxies that deliver for a queue that is not ours. */
const FOREIGN_HEADER = 'x-workflow-foreign-queue';
/** A step's arguments travel in messages of the storage, not of the queue: this is far above any. */
const MAX_BODY_BYTES = 64 * 1024 * 1024;

/**
 * @typedef {{ attempt: number, queueName: string, messageId: string }} DeliveryMeta
 * @typedef {(message: unknown, meta: DeliveryMeta) => Promise<void | { timeoutSeconds: number }>} Handler
 * @typedef {{ body: Uint8Array, headers: Headers, meta: DeliveryMeta, message: unknown }} Delivery
 * @typedef {{ acceptsToken: (token: string) => boolean, executeForeign: (delivery: Delivery, handler: Handler) => Promise<void> }} Receiver
 */

/**
 * The `createQueueHandler` of a World: receives deliveries of one kind of queue.
 * @param {() => Receiver} receiver
 */
export function createQueueHandlerFactory(receiver) {
  /**
   * @param {string} prefix
   * @param {Handler} handler
   * @returns {(request: Request) => Promise<Response>}
   */
  return function createQueueHandler(prefix, handler) {
    return async (request) => {
      const { acceptsToken, executeForeign } = receiver();
      const { headers } = request;
      // Before anything else is looked at: a stranger learns nothing, and costs nothing.
      if (!acceptsToken(headers.get(TOKEN_HEADER) ?? '')) {
        return json(401, { error: `Missing or wrong ${TOKEN_HEADER} header` });
      }
      /** @type {Delivery} */
      let delivery;
      try {
        const meta = readMeta(headers, prefix);
        const body = await readBody(request);
        delivery = { body, headers, meta, message: decodeBody(body) };
      } catch (error) {
        return json(400, { error: error instanceof Error ? error.message : String(error) });
      }
      try {
        const result = headers.has(FOREIGN_HEADER)
          ? await executeForeign(delivery, handler)
          : await handler(delivery.message, delivery.meta);
        return json(
          200,
          asksForTime(result) ? { timeoutSeconds: result.timeoutSeconds } : { ok: true },
        );
      } catch (error) {
        return json(500, describe(error));
      }
    };
  };
}

/**
 * @param {void | { timeoutSeconds: number }} result
 * @returns {result is { timeoutSeconds: number }}
 */
export function asksForTime(result) {
  const timeoutSeconds = result?.timeoutSeconds;
  return Number.isFinite(timeoutSeconds) && Number(timeoutSeconds) >= 0;
}

/**
 * @param {Headers} headers
 * @param {string} prefix
 * @returns {DeliveryMeta}
 */
function readMeta(headers, prefix) {
  const encoded = headers.get('x-vqs-queue-name');
  const messageId = headers.get('x-vqs-message-id');
  const attempt = Number(headers.get('x-vqs-message-attempt') ?? Number.NaN);
  if (!encoded || !messageId || !(Number.isSafeInteger(attempt) && attempt >= 1)) {
    throw invalid(
      'A delivery needs the headers x-vqs-queue-name, x-vqs-message-id and x-vqs-message-attempt (from 1)',
    );
  }
  const queueName = decodeQueueName(encoded);
  parseQueueName(queueName);
  if (!queueName.startsWith(prefix)) {
    throw invalid(`Unhandled queue ${queueName}: this route is for ${prefix}<name>`);
  }
  return { queueName, messageId, attempt };
}

/** @param {string} encoded */
function decodeQueueName(encoded) {
  try {
    // Step names hold any character; headers hold ASCII.
    return decodeURIComponent(encoded);
  } catch {
    throw invalid('x-vqs-queue-name is not percent-encoded');
  }
}

/** @param {Request} request */
async function readBody(request) {
  if (!request.body) throw invalid('A delivery needs a body');
  const tooLong = worldError({
    name: 'WorkflowWorldError',
    status: 400,
    message: `The body exceeds ${MAX_BODY_BYTES} bytes`,
  });
  if (Number(request.headers.get('content-length') ?? 0) > MAX_BODY_BYTES) throw tooLong;
  const chunks = [];
  let length = 0;
  for await (const chunk of /** @type {AsyncIterable<Uint8Array>} */ (
    /** @type {unknown} */ (request.body)
  )) {
    length += chunk.byteLength;
    if (length > MAX_BODY_BYTES) throw tooLong;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/**
 * @param {number} status
 * @param {unknown} body
 */
function json(status, body) {
  return Response.json(body, { status });
}
