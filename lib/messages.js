import { invalid } from './errors.js';
import {
  attached,
  isBytes,
  optionalSeconds,
  optionalString,
  optionalStrings,
  ownsMemory,
  reading,
  string,
} from './input.js';

/** @typedef {import('../index.js').MessageData} MessageData */

/** The prefix of a queue name, from @workflow/world's ValidQueueName, and what follows it. */
const QUEUE_NAME = /^__(?:[a-z][a-z0-9]*_)?wkf_(workflow|step)_(.+)$/s;

// A delivery carries them in its headers, of which Node takes 16 KiB, after percent-encoding.
const LONGEST_QUEUE_NAME = 2000;
const LONGEST_MESSAGE_ID = 500;
const LONGEST_HEADERS = 8192;
/**
 * The longest input of a run, in bytes. The first message of a run carries its input too, as base64 in
 * JSON, and must stay below LONGEST_BODY.
 */
const LONGEST_INPUT = 40 * 1024 * 1024;
/** The longest message, in bytes of JSON: the handler of a delivery reads no more. */
export const LONGEST_BODY = 64 * 1024 * 1024;
const ORDINARY = { configurable: true, enumerable: true, writable: true };

/** Epoch milliseconds: for queues that are not ours, which may deliver a message before its time. */
export const NOT_BEFORE_HEADER = 'x-workflow-not-before';

/**
 * @param {string} queueName
 * @returns {{ kind: 'flow' | 'step', id: string }}
 */
export function parseQueueName(queueName) {
  const match = QUEUE_NAME.exec(string('The name of a queue', queueName));
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
  const json = reading(() => JSON.stringify(message, tagBytes));
  if (json === undefined) throw invalid('A message must be a JSON value');
  const body = new MessageBody(Buffer.from(json));
  if (body.byteLength > LONGEST_BODY) {
    throw invalid(
      `A message may have ${LONGEST_BODY} bytes of JSON, this one has ${body.byteLength}. Pass large values by reference, or in a stream`,
    );
  }
  return body;
}

/**
 * @this {Record<string, unknown>}
 * @param {string} key
 * @param {unknown} value
 */
function tagBytes(key, value) {
  // `value` has been through toJSON, which Buffer has; `this[key]` is what was really there.
  const original = this[key];
  if (!isBytes(original)) return value;
  const { buffer, byteOffset, byteLength } = attached('bytes in a message', original);
  checkInput(byteLength);
  return {
    __type: 'Uint8Array',
    data: Buffer.from(buffer, byteOffset, byteLength).toString('base64'),
  };
}

/**
 * The event and the first message of a run carry the same input: both are refused, or none.
 * @param {number} bytes
 */
export function checkInput(bytes) {
  if (bytes <= LONGEST_INPUT) return;
  throw invalid(
    `The input of a run may have ${LONGEST_INPUT} bytes, this one has ${bytes}. Pass large values by reference, or in a stream`,
  );
}

/** @param {Uint8Array} body */
export function decodeBody(body) {
  const json = Buffer.from(body.buffer, body.byteOffset, body.byteLength).toString('utf8');
  const decoded = { message: JSON.parse(json) };
  // Not by a reviver: that one recurs, and fails at depths that a message is sent with.
  /** @type {Record<string, any>[]} */
  const unseen = [decoded];
  for (const object of unseen) {
    for (const [key, value] of Object.entries(object)) {
      if (value?.__type === 'Uint8Array' && typeof value.data === 'string') {
        const bytes = new Uint8Array(Buffer.from(value.data, 'base64'));
        // Not by assignment: the key may be `__proto__`.
        Object.defineProperty(object, key, { ...ORDINARY, value: bytes });
      } else if (typeof value === 'object' && value !== null) {
        unseen.push(value);
      }
    }
  }
  return decoded.message;
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
  return reading(() => {
    const { data, headers, delaySeconds, idempotencyKey, queueName, messageId } = message;
    const { id, kind: queueKind } = parseQueueName(queueName);
    const allHeaders = optionalStrings('MessageData.headers', headers);
    const request = {
      kind: kind ?? queueKind,
      id,
      queueName: short('MessageData.queueName', queueName, LONGEST_QUEUE_NAME),
      messageId: short('MessageData.messageId', messageId, LONGEST_MESSAGE_ID),
      idempotencyKey: optionalString('MessageData.idempotencyKey', idempotencyKey),
      headers:
        allHeaders && short('MessageData.headers', JSON.stringify(allHeaders), LONGEST_HEADERS),
      delayMs: optionalSeconds('MessageData.delaySeconds', delaySeconds),
    };
    return { request, body: bodyOf(data) };
  });
}

/**
 * @param {string} what
 * @param {unknown} value
 * @param {number} limit in bytes
 */
function short(what, value, limit) {
  const text = string(what, value);
  if (Buffer.byteLength(text) <= limit) return text;
  throw invalid(`${what} may have ${limit} bytes, this one has ${Buffer.byteLength(text)}`);
}

/**
 * The bytes of a message: as they are in memory, or base64 where it came through JSON.
 * @param {unknown} data
 * @returns {Uint8Array}
 */
function bodyOf(data) {
  if (isBytes(data)) {
    const bytes = attached('MessageData.data', data);
    return ownsMemory(bytes) ? bytes : new Uint8Array(bytes);
  }
  if (typeof data === 'string') return Buffer.from(data, 'base64');
  throw invalid('MessageData.data must be bytes, or a base64 string');
}
