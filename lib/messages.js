import { invalid } from './errors.js';
import { isBytes } from './input.js';

/**
 * A message as the core takes it, and its bytes.
 * @param {'step' | 'flow'} kind
 * @param {import('../index.js').MessageData} message
 */
export function toCore(kind, message) {
  const { data, headers, delaySeconds, idempotencyKey, id, queueName, messageId } = message;
  const request = {
    kind,
    id,
    queueName,
    messageId,
    idempotencyKey,
    headers: headers && JSON.stringify(headers),
    delayMs: delaySeconds && Math.ceil(delaySeconds * 1000),
  };
  return { request, body: bodyOf(data) };
}

/**
 * The bytes of a message: as they are in memory, or base64 where it came through JSON.
 * @param {unknown} data
 * @returns {Uint8Array}
 */
function bodyOf(data) {
  if (isBytes(data)) return data;
  if (typeof data === 'string') return Buffer.from(data, 'base64');
  throw invalid('MessageData.data must be bytes, or a base64 string');
}
