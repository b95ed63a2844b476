import { messageOf, worldError } from './errors.js';
import { optionalSeconds, optionalString, optionalStrings, reading } from './input.js';
import { encodeBody, NOT_BEFORE_HEADER, parseQueueName } from './messages.js';
import { native } from './native.js';
import { BIND } from './pgboss.js';

/**
 * @typedef {import('../index.js').MessageData} MessageData
 * @typedef {import('../index.js').QueueDriver} QueueDriver
 * @typedef {{ deploymentId?: string, idempotencyKey?: string, headers?: Record<string, string>, delaySeconds?: number, specVersion?: number }} QueueOptions
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
  return async function queue(queueName, message, options) {
    const checked = reading(() => {
      parseQueueName(queueName);
      return checkOptions(options ?? {});
    });
    return push(driver(), queueName, encodeBody(message), checked);
  };
}

/** @param {QueueOptions} options */
function checkOptions({ idempotencyKey, headers, delaySeconds }) {
  optionalSeconds('delaySeconds', delaySeconds);
  return {
    idempotencyKey: optionalString('idempotencyKey', idempotencyKey),
    headers: optionalStrings('headers', headers),
    delaySeconds,
  };
}

/**
 * @param {QueueDriver} driver
 * @param {string} queueName
 * @param {Uint8Array} data
 * @param {QueueOptions & { attempt?: number }} options `attempt`: of the first delivery
 */
export async function push(driver, queueName, data, options) {
  const { idempotencyKey, headers, delaySeconds, attempt = 1 } = options;
  const { kind, id } = parseQueueName(queueName);
  const ours = BIND in driver;
  const allHeaders = { ...headers, ...(!ours && delaySeconds && notBefore(delaySeconds)) };
  /** @type {MessageData} */
  const message = {
    id,
    queueName,
    messageId: native().newMessageId(),
    attempt,
    data,
    ...(idempotencyKey !== undefined && { idempotencyKey }),
    ...(Object.keys(allHeaders).length > 0 && { headers: allHeaders }),
    ...(delaySeconds && { delaySeconds }),
  };
  const pushing = async () =>
    kind === 'step' ? driver.pushStep(message) : driver.pushFlow(message);
  const pushed = await (ours ? pushing() : retryable(pushing()));
  return { messageId: typeof pushed === 'string' ? pushed : message.messageId };
}

/** @param {number} delaySeconds */
function notBefore(delaySeconds) {
  return { [NOT_BEFORE_HEADER]: String(Date.now() + Math.ceil(delaySeconds * 1000)) };
}

/**
 * Whatever a driver of the user's own throws: the SDK hands its work back for a status of 500 or more.
 * @param {Promise<unknown>} pushing
 */
async function retryable(pushing) {
  try {
    return await pushing;
  } catch (cause) {
    // The SDK knows this one, and when to come back.
    if (Object(cause).name === 'ThrottleError') throw cause;
    const message = `The queue driver did not take a message: ${messageOf(cause)}`;
    throw worldError({ name: 'WorkflowWorldError', status: 503, code: 'QUEUE', message }, cause);
  }
}
