import { invalid } from './errors.js';
import {
  attached,
  epochMs,
  isBytes,
  isDate,
  optionalInt32,
  optionalInteger,
  optionalString,
  ownsMemory,
} from './input.js';
import { checkInput } from './messages.js';

/**
 * The newest spec version that the event log understands. `start()` of the SDK stamps it on runs, and an
 * event without a version is of this one, as in the reference World.
 */
export const SPEC_VERSION = 3;

/** The field of an event's data that carries its payload: stored once, as bytes. */
const PAYLOAD = /** @type {Record<string, string | undefined>} */ ({
  run_created: 'input',
  run_started: 'input',
  run_completed: 'output',
  step_created: 'input',
  step_completed: 'result',
  hook_created: 'metadata',
  hook_received: 'payload',
});

/** What `resolveData: 'none'` leaves out (EVENT_DATA_REF_FIELDS of @workflow/world). */
const LEFT_OUT = /** @type {Record<string, string | undefined>} */ ({
  ...PAYLOAD,
  run_started: undefined,
  run_failed: 'error',
  step_failed: 'error',
  step_retrying: 'error',
});

/** The error of a run or step, as the SDK's StructuredError. */
const ERROR_EVENTS = new Set(['run_failed', 'step_failed', 'step_retrying']);
const DATES = ['resumeAt', 'retryAfter'];

/** @typedef {import('../native/index.cjs').AppendRequest} AppendRequest */
/** @typedef {import('../native/index.cjs').NodeReply} NodeReply */
/** @typedef {{ eventId: string, eventType: string, correlationId?: string, createdAt: number, occurredAt?: number, specVersion?: number, data?: Record<string, any>, payload?: [number, number] }} EventOut */
/** @typedef {{ entity: Record<string, any>, input?: [number, number], inputData?: Record<string, any>, output?: [number, number], outputData?: Record<string, any> }} EntityOut */

/**
 * @param {string | null | undefined} runId
 * @param {Record<string, any>} event
 * @param {{ stateUpdatedAt?: number, occurredAt?: Date }} [params]
 * @returns {AppendRequest}
 */
export function encodeEvent(runId, event, params = {}) {
  if (typeof event !== 'object' || event === null) throw invalid('An event must be an object');
  const { eventType, correlationId, eventData } = event;
  const specVersion = optionalInt32('specVersion', event.specVersion) ?? SPEC_VERSION;
  if (typeof eventType !== 'string') throw invalid('An event needs an eventType');
  if (eventData !== undefined && (typeof eventData !== 'object' || eventData === null)) {
    throw invalid(`eventData of ${eventType} must be an object`);
  }
  const { data, payload } = split(eventType, withValidDates(eventData ?? {}));
  if (eventType === 'run_started' && data.workflowName !== undefined && specVersion < 2) {
    // It would create a run of spec version 1, which cannot be started.
    throw invalid('A run_started that may create its run needs a specVersion of at least 2');
  }
  if (eventType === 'run_created') checkInput(payload?.byteLength ?? 0);
  return {
    runId: optionalString('runId', runId === '' ? undefined : runId),
    eventType,
    correlationId: optionalString('correlationId', correlationId),
    specVersion,
    data: eventData === undefined ? undefined : toJson('eventData', data),
    payload,
    occurredAtMs: epochMs('occurredAt', params.occurredAt),
    snapshotMs: optionalInteger('stateUpdatedAt', params.stateUpdatedAt),
    name: optionalString('a name or token', nameOf(eventType, data)),
    deploymentId: eventType.startsWith('run_')
      ? optionalString('deploymentId', data.deploymentId)
      : undefined,
    detail: detailOf(eventType, data),
    timeMs: epochMs('resumeAt or retryAfter', data.resumeAt ?? data.retryAfter),
    webhook: typeof data.isWebhook === 'boolean' ? data.isWebhook : undefined,
  };
}

/**
 * Arithmetic with an unset value makes an Invalid Date, which JSON writes as null. The reference World
 * reads it as the epoch, so that the run goes on at once.
 * @param {Record<string, any>} eventData
 */
function withValidDates(eventData) {
  const wrong = DATES.filter((name) => isInvalid(eventData[name]));
  if (wrong.length === 0) return eventData;
  return { ...eventData, ...Object.fromEntries(wrong.map((name) => [name, new Date(0)])) };
}

/** @param {unknown} value */
function isInvalid(value) {
  return isDate(value) && Number.isNaN(new Date(value).getTime());
}

/**
 * @param {string} eventType
 * @param {Record<string, any>} eventData
 */
function split(eventType, eventData) {
  const field = PAYLOAD[eventType];
  const payload = field === undefined ? undefined : eventData[field];
  // Runs of spec version 1 carry plain JSON, which stays where it is.
  if (!field || !isBytes(payload)) return { data: eventData, payload: undefined };
  const { [field]: _, ...data } = eventData;
  const bytes = attached(field, payload);
  // The answer has it as a later read gives it.
  const isOrdinary = bytes.constructor === Uint8Array && ownsMemory(bytes);
  return { data, payload: isOrdinary ? bytes : new Uint8Array(bytes) };
}

/**
 * @param {string} eventType
 * @param {Record<string, any>} data
 */
function nameOf(eventType, data) {
  if (eventType === 'step_created') return data.stepName;
  if (eventType === 'hook_created') return data.token;
  return eventType.startsWith('run_') ? data.workflowName : undefined;
}

/**
 * @param {string} eventType
 * @param {Record<string, any>} data
 */
function detailOf(eventType, data) {
  if (ERROR_EVENTS.has(eventType)) return toJson('error', structuredError(data));
  const { executionContext } = data;
  return executionContext === undefined ? undefined : toJson('executionContext', executionContext);
}

/** @param {Record<string, any>} data */
function structuredError({ error, stack, errorCode }) {
  const message = typeof error === 'string' ? error : error?.message;
  return {
    message: textOf(message) ?? 'Unknown error',
    stack: textOf(stack ?? error?.stack),
    code: textOf(errorCode),
  };
}

/**
 * The SDK cannot read an error of which these are anything else.
 * @param {unknown} value
 */
function textOf(value) {
  return typeof value === 'string' ? value : undefined;
}

/**
 * @param {string} what
 * @param {object} value
 */
function toJson(what, value) {
  const json = JSON.stringify(value);
  // A list has a JSON of its own, and so has what brings a toJSON.
  if (!json?.startsWith('{')) throw invalid(`${what} must be an object`);
  return json;
}

/**
 * A copy with a buffer of its own: a consumer may transfer it away.
 * @param {Pick<NodeReply, 'bytes'>} reply
 * @param {[number, number] | undefined} span
 */
export function bytesOf({ bytes }, span) {
  if (!span) return undefined;
  const [offset, length] = span;
  return bytes ? new Uint8Array(bytes.subarray(offset, offset + length)) : new Uint8Array();
}

/**
 * @param {string} runId
 * @param {EventOut} out
 * @param {Uint8Array | undefined} payload
 * @param {boolean} withPayloads
 */
export function decodeEvent(runId, out, payload, withPayloads) {
  const { eventId, eventType, correlationId, createdAt, occurredAt, specVersion } = out;
  /** @type {Record<string, any>} */
  const event = { runId, eventId, eventType, createdAt: new Date(createdAt) };
  if (correlationId !== undefined) event.correlationId = correlationId;
  if (occurredAt !== undefined) event.occurredAt = new Date(occurredAt);
  if (specVersion !== undefined) event.specVersion = specVersion;
  const eventData = dataOf(out, payload, withPayloads);
  if (eventData) event.eventData = eventData;
  return event;
}

/**
 * @param {EventOut} out
 * @param {Uint8Array | undefined} payload
 * @param {boolean} withPayloads
 */
function dataOf({ eventType, data }, payload, withPayloads) {
  // Just parsed, for this event alone.
  const eventData = data ?? {};
  for (const name of DATES) {
    if (eventData[name]) eventData[name] = new Date(eventData[name]);
  }
  const field = PAYLOAD[eventType];
  if (field && payload) eventData[field] = payload;
  const leftOut = LEFT_OUT[eventType];
  if (leftOut && !withPayloads) delete eventData[leftOut];
  const given = withPayloads && data !== undefined;
  return given || Object.keys(eventData).length > 0 ? eventData : undefined;
}

const ENTITY_DATES = [
  'createdAt',
  'updatedAt',
  'startedAt',
  'completedAt',
  'expiredAt',
  'retryAfter',
  'resumeAt',
];

/**
 * Times become Dates, and what SQL knows as NULL is absent: the SDK's schemas refuse null.
 * @param {Record<string, any>} entity
 * @returns {Record<string, any>}
 */
export function decodeEntity(entity) {
  const decoded = Object.fromEntries(Object.entries(entity).filter(([, value]) => value !== null));
  for (const name of ENTITY_DATES) {
    if (decoded[name] !== undefined) decoded[name] = new Date(decoded[name]);
  }
  return decoded;
}

/**
 * A run or step with its payloads.
 * @param {EntityOut} out
 * @param {NodeReply} reply
 * @param {'input' | 'metadata'} inputName
 * @param {string} outputField the field of the event that carried the output
 */
export function decodeWithPayloads(out, reply, inputName, outputField) {
  const decoded = decodeEntity(out.entity);
  const input = bytesOf(reply, out.input) ?? out.inputData?.[inputName];
  if (inputName === 'metadata') {
    if (input !== undefined) decoded.metadata = input;
    return decoded;
  }
  decoded.input = input;
  decoded.output = bytesOf(reply, out.output) ?? out.outputData?.[outputField];
  return decoded;
}
