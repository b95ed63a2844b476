import { describe, invalid, messageOf, worldError } from './errors.js';
import { execute } from './executions.js';
import { string } from './input.js';
import { decodeBody, LONGEST_BODY, parseQueueName } from './messages.js';
import { native } from './native.js';
import { replay } from './replays.js';

const TOKEN_HEADER = 'x-workflow-secret';
/** Set by the proxies that deliver for a queue that is not ours. */
const FOREIGN_HEADER = 'x-workflow-foreign-queue';
/** Marks each answer of this handler. A worker settles a message by no other answer. */
export const WORLD_HEADER = 'x-workflow-world';
const WORLD = 'postgres';
/** A worker asks whether deliveries would be taken, and sends no message. */
const PROBE_HEADER = 'x-workflow-probe';
const REFUSALS_LOGGED_EVERY_MS = 60_000;

/** Ten years. */
const LONGEST_WAIT_SECONDS = 10 * 365 * 24 * 60 * 60;

/** Names a delivery to the worker that has sent it, which may be one of this process. */
const TICKET_HEADER = 'x-workflow-ticket';

/**
 * @typedef {{ attempt: number, queueName: string, messageId: string }} DeliveryMeta
 * @typedef {(message: unknown, meta: DeliveryMeta) => Promise<void | { timeoutSeconds: number }>} Handler
 * `headers`: those that the message was pushed with, among others. `body`: the bytes of the message.
 * @typedef {{ body: () => Uint8Array, headers: Headers, meta: DeliveryMeta, message: unknown }} Delivery
 */

/**
 * Somebody whose deliveries are executed, and how.
 * @typedef {object} Sender
 * @property {(body: Uint8Array) => void} checkBody throws where the body is not the one that was sent
 * @property {(body: Uint8Array) => Delivery} read by what the sender vouches for, and nothing else
 * @property {(delivery: Delivery, handler: Handler) => ReturnType<Handler>} execute
 * @property {ResponseInit} malformed the answer to what will never be a delivery
 */

/**
 * Throws for strangers. Never looks at the body.
 * @typedef {(headers: Headers, kind: 'flow' | 'step') => Sender} Authenticate
 */

/**
 * The `createQueueHandler` of a World: receives deliveries of one kind of queue.
 * @param {() => Authenticate} authenticate
 * @param {(line: import('../index.js').LogLine) => void} log
 */
export function createQueueHandlerFactory(authenticate, log) {
  const refuse = createRefusal(log);

  /**
   * @param {string} prefix
   * @param {Handler} handler
   * @returns {(request: Request) => Promise<Response>}
   */
  return function createQueueHandler(prefix, handler) {
    const kind = prefix.endsWith('wkf_step_') ? 'step' : 'flow';
    return async (request) => {
      const { headers } = request;
      /** @type {Sender} */
      let sender;
      // Before anything else is looked at: a stranger learns nothing, and costs nothing.
      try {
        sender = authenticate()(headers, kind);
      } catch (error) {
        return refuse(error);
      }
      const ticket = headers.get(TICKET_HEADER);
      const begin = () => ticket === null || native().beginDelivery(ticket);
      if (headers.has(PROBE_HEADER)) {
        begin();
        return answer({ ok: true });
      }
      /** @type {Delivery} */
      let delivery;
      try {
        const body = await readBody(request);
        try {
          sender.checkBody(body);
        } catch (error) {
          return refuse(error);
        }
        delivery = sender.read(body);
        checkMeta(delivery.meta, prefix);
      } catch (error) {
        return refusal(error, sender.malformed);
      }
      // The event loop did not turn for seconds, and the worker has given the delivery back.
      if (!begin()) return answer({ error: 'The delivery was withdrawn' }, { status: 503 });
      try {
        const result = await sender.execute(delivery, (message, meta) =>
          execute(message, () => replay(() => handler(message, meta))),
        );
        const timeoutSeconds = waitOf(result);
        return answer(timeoutSeconds === undefined ? { ok: true } : { timeoutSeconds });
      } catch (error) {
        return answer(describe(error), { status: 500 });
      }
    };
  };
}

/**
 * Lets in who knows the token: our own queue, and the proxies of queues that are not ours.
 * @param {(token: string) => boolean} acceptsToken
 * @param {Sender['execute']} executeForeign
 * @returns {Authenticate}
 */
export function tokenAuthentication(acceptsToken, executeForeign) {
  return (headers) => {
    if (!acceptsToken(headers.get(TOKEN_HEADER) ?? '')) {
      throw invalid(
        `it has no ${TOKEN_HEADER} header, or a token that is not one of this World's. If a worker of yours sent it, give both the same WORKFLOW_POSTGRES_SECURITY_TOKEN`,
      );
    }
    return {
      checkBody() {},
      read: (body) => ({
        body: () => body,
        headers,
        meta: metaOf(headers),
        message: decodeBody(body),
      }),
      execute: headers.has(FOREIGN_HEADER) ? executeForeign : executeOwn,
      malformed: { status: 400 },
    };
  };
}

/** @type {Sender['execute']} */
function executeOwn({ message, meta }, handler) {
  return handler(message, meta);
}

/**
 * After how many seconds the message is to come again, if it is. The SDK asks for NaN seconds where a sleep or
 * a retry was given an Invalid Date: it is to come at once. Longer waits than the core takes
 * (`LONGEST_DELAY`) are shortened: the replay that comes early asks for the rest.
 * @param {void | { timeoutSeconds: number }} result
 * @returns {number | undefined}
 */
export function waitOf(result) {
  const timeoutSeconds = result?.timeoutSeconds;
  if (typeof timeoutSeconds !== 'number' || timeoutSeconds < 0) return undefined;
  return Math.min(timeoutSeconds || 0, LONGEST_WAIT_SECONDS);
}

/**
 * @param {Headers} headers
 * @returns {DeliveryMeta}
 */
function metaOf(headers) {
  const queueName = headers.get('x-vqs-queue-name');
  const messageId = headers.get('x-vqs-message-id');
  const attempt = headers.get('x-vqs-message-attempt');
  if (!queueName || !messageId || !attempt) {
    throw invalid(
      'A delivery needs the headers x-vqs-queue-name, x-vqs-message-id and x-vqs-message-attempt',
    );
  }
  return { queueName: decodeQueueName(queueName), messageId, attempt: Number(attempt) };
}

/**
 * @param {DeliveryMeta} meta
 * @param {string} prefix
 */
function checkMeta({ queueName, messageId, attempt }, prefix) {
  parseQueueName(queueName);
  string('The message id of a delivery', messageId);
  if (!(Number.isSafeInteger(attempt) && attempt >= 1)) {
    throw invalid('The attempt of a delivery must be a whole number from 1');
  }
  if (!queueName.startsWith(prefix)) {
    throw invalid(`Unhandled queue ${queueName}: this route is for ${prefix}<name>`);
  }
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
  if (Number(request.headers.get('content-length') ?? 0) > LONGEST_BODY) throw tooLong();
  const chunks = [];
  let length = 0;
  for await (const chunk of /** @type {AsyncIterable<Uint8Array>} */ (
    /** @type {unknown} */ (request.body)
  )) {
    length += chunk.byteLength;
    if (length > LONGEST_BODY) throw tooLong();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function tooLong() {
  return worldError({
    name: 'WorkflowWorldError',
    status: 400,
    message: `The body exceeds ${LONGEST_BODY} bytes`,
  });
}

/**
 * The answer to strangers, who learn nothing from it. The log of this process has the reason, once a
 * minute at most: anybody can send such requests.
 * @param {(line: import('../index.js').LogLine) => void} log
 */
function createRefusal(log) {
  let quietUntil = 0;
  let unlogged = 0;
  /** @param {unknown} error */
  return (error) => {
    unlogged += 1;
    if (performance.now() >= quietUntil) {
      const message = `A delivery was refused: ${messageOf(error)}`;
      log({ level: 'warn', message, ...(unlogged > 1 && { refusedSinceLastLine: unlogged }) });
      quietUntil = performance.now() + REFUSALS_LOGGED_EVERY_MS;
      unlogged = 0;
    }
    return answer({ error: 'This delivery is not authenticated' }, { status: 401 });
  };
}

/**
 * @param {unknown} error
 * @param {ResponseInit} init
 */
function refusal(error, init) {
  return answer({ error: messageOf(error) }, init);
}

/**
 * @param {unknown} body
 * @param {ResponseInit} [init]
 */
function answer(body, init) {
  const response = Response.json(body, init);
  response.headers.set(WORLD_HEADER, WORLD);
  return response;
}

/**
 * Whether an answer is one of this handler, in whatever process.
 * @param {Response} response
 */
export function isOfWorld(response) {
  // A framework's or a user's own Response may lack headers.
  return response.headers?.get?.(WORLD_HEADER) === WORLD;
}
