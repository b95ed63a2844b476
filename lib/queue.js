import { invalid, worldError } from './errors.js';
import { isBytes } from './input.js';
import { native } from './native.js';

/** The prefix of a queue name, from @workflow/world's ValidQueueName, and what follows it. */
const QUEUE_NAME = /^__(?:[a-z][a-z0-9]*_)?wkf_(workflow|step)_(.+)$/s;
const TOKEN_HEADER = 'x-workflow-secret';
/** A step's arguments travel in messages of the storage, not of the queue: this is far above any. */
const MAX_BODY_BYTES = 64 * 1024 * 1024;

/**
 * @typedef {import('../index.js').MessageData} MessageData
 * @typedef {import('../index.js').QueueDriver} QueueDriver
 * @typedef {{ deploymentId?: string, idempotencyKey?: string, headers?: Record<string, string>, delaySeconds?: number, specVersion?: number }} QueueOptions
 * @typedef {{ attempt: number, queueName: string, messageId: string }} DeliveryMeta
 */

/**
 * The `queue()` of a World: makes a message and hands it to the driver. Never starts a worker.
 * @param {() => QueueDriver} driver
 */
export function createQueue(driver) {
  /**
   * @param {string} queueName
   * @param {unknown} message
   * @param {QueueOptions} [options]
   * @returns {Promise<{ messageId: string }>}
   */
  return async function queue(queueName, message, options = {}) {
    const { kind, id } = parseQueueName(queueName);
    const data = new MessageBody(encodeBody(message));
    const { idempotencyKey, headers, delaySeconds } = options;
    if (delaySeconds !== undefined && !(Number.isFinite(delaySeconds) && delaySeconds >= 0)) {
      throw invalid('delaySeconds must be a number of at least 0');
    }
    /** @type {MessageData} */
    const envelope = {
      id,
      queueName,
      messageId: native().newMessageId(),
      attempt: 1,
      data,
      ...(idempotencyKey !== undefined && { idempotencyKey }),
      ...(headers && Object.keys(headers).length > 0 && { headers }),
      ...(delaySeconds && { delaySeconds }),
    };
    const target = driver();
    const pushed = await (kind === 'step' ? target.pushStep(envelope) : target.pushFlow(envelope));
    return { messageId: typeof pushed === 'string' ? pushed : envelope.messageId };
  };
}

/** Bytes in memory, base64 in JSON: a message survives any queue that takes JSON or bytes. */
class MessageBody extends Uint8Array {
  toJSON() {
    return Buffer.from(this.buffer, this.byteOffset, this.byteLength).toString('base64');
  }
}

/**
 * @param {string} queueName
 * @returns {{ kind: 'workflow' | 'step', id: string }}
 */
export function parseQueueName(queueName) {
  const match = typeof queueName === 'string' ? QUEUE_NAME.exec(queueName) : null;
  if (!match) {
    throw invalid(
      `${JSON.stringify(queueName)} is not a queue name: expected __wkf_workflow_<name> or __wkf_step_<name>`,
    );
  }
  return { kind: /** @type {'workflow' | 'step'} */ (match[1]), id: match[2] };
}

/** @param {unknown} message */
function encodeBody(message) {
  const json = JSON.stringify(
    message,
    /** @this {Record<string, unknown>} */
    function tagBytes(key, value) {
      // `value` has been through toJSON, which Buffer has; `this[key]` is what was really there.
      const original = this[key];
      if (!isBytes(original)) return value;
      const bytes = Buffer.from(original.buffer, original.byteOffset, original.byteLength);
      return { __type: 'Uint8Array', data: bytes.toString('base64') };
    },
  );
  if (json === undefined) throw invalid('A message must be a JSON value');
  return Buffer.from(json);
}

/** @param {string} json */
function decodeBody(json) {
  return JSON.parse(json, (_key, value) =>
    value?.__type === 'Uint8Array' && typeof value.data === 'string'
      ? new Uint8Array(Buffer.from(value.data, 'base64'))
      : value,
  );
}

/**
 * The `createQueueHandler` of a World: receives deliveries of one kind of queue.
 * @param {(token: string) => boolean} acceptsToken
 */
export function createQueueHandlerFactory(acceptsToken) {
  /**
   * @param {string} prefix
   * @param {(message: unknown, meta: DeliveryMeta) => Promise<void | { timeoutSeconds: number }>} handler
   * @returns {(request: Request) => Promise<Response>}
   */
  return function createQueueHandler(prefix, handler) {
    return async (request) => {
      // Before anything else is looked at: a stranger learns nothing, and costs nothing.
      if (!acceptsToken(request.headers.get(TOKEN_HEADER) ?? '')) {
        return json(401, { error: `Missing or wrong ${TOKEN_HEADER} header` });
      }
      let message;
      let meta;
      try {
        meta = readMeta(request.headers, prefix);
        message = decodeBody(await readBody(request));
      } catch (error) {
        return json(400, { error: error instanceof Error ? error.message : String(error) });
      }
      try {
        const result = await handler(message, meta);
        const timeoutSeconds = result?.timeoutSeconds;
        return Number.isFinite(timeoutSeconds) && Number(timeoutSeconds) >= 0
          ? json(200, { timeoutSeconds })
          : json(200, { ok: true });
      } catch (error) {
        return json(500, String(error));
      }
    };
  };
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
  if (!queueName.startsWith(prefix)) throw invalid('Unhandled queue');
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
  return Buffer.concat(chunks).toString('utf8');
}

/**
 * @param {number} status
 * @param {unknown} body
 */
function json(status, body) {
  return Response.json(body, { status });
}
