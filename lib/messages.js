import { invalid } from './errors.js';
import { isBytes, optionalString } from './input.js';

/** @typedef {import('../index.js').MessageData} MessageData */

/** The prefix of a queue name, from @workflow/world's ValidQueueName, and what follows it. */
const QUEUE_NAME = /^__(?:[a-z][a-z0-9]*_)?wkf_(workflow|step)_(.+)$/s;

/** Epoch milliseconds: for queues that are not ours, which may deliver a message before its time. */
export const NOT_BEFORE_HEADER = 'x-workflow-not-before';

/**
 * @param {string} queueName
 * @returns {{ kind: 'flow' | 'step', id: string }}
 */
export function parseQueueName(queueName) {
  const match = typeof queueName === 'string' ? QUEUE_NAME.exec(queueName) : null;
  if (!match) {
    throw invalid(
      `${JSON.stringify(queueName)} is not a queue name: expected __wkf_workflow_<name> or __wkf_step_<name>`,
    );
  }
  return { kind: match[1] === 'step' ? 'step' : 'flow', id: match[2] };
}

/** Bytes in memory, base64 in JSON: a message survives any queue that takes JSON or bytes. */
export class MessageBody extends Uint8Array {
  toJSON() {
    return Buffer.from(this.buffer, this.byteOffset, this.byteLength).toString('base64');
  }
}

/** @param {unknown} message */
export function encodeBody(message) {
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
  return new MessageBody(Buffer.from(json));
}

/** @param {Uint8Array} body */
export function decodeBody(body) {
  const json = Buffer.from(body.buffer, body.byteOffset, body.byteLength).toString('utf8');
  return JSON.parse(json, (_key, value) =>
    value?.__type === 'Uint8Array' && typeof value.data === 'string'
      ? new Uint8Array(Buffer.from(value.data, 'base64'))
      : value,
  );
}

/**
 * A message as the core takes it, and its bytes.
 * @param {'step' | 'flow' | undefined} kind where not given, that of the message's queue
 * @param {MessageData} message
 */
export function toCore(kind, message) {
  if (typeof message !== 'object' || message === null) {
    throw invalid('A message must be an object: MessageData');
  }
  const { data, headers, delaySeconds, idempotencyKey, queueName, messageId } = message;
  const { id, kind: queueKind } = parseQueueName(queueName);
  if (typeof messageId !== 'string') throw invalid('MessageData.messageId must be a string');
  const request = {
    kind: kind ?? queueKind,
    id,
    queueName,
    messageId,
    idempotencyKey: optionalString('MessageData.idempotencyKey', idempotencyKey),
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
