import { call, invalid, messageOf } from './errors.js';

/** @typedef {import('./core.js').Core} Core */

const TYPED_ARRAY_TAG = Reflect.getOwnPropertyDescriptor(
  Object.getPrototypeOf(Uint8Array.prototype),
  Symbol.toStringTag,
);

/** The first millisecond of PostgreSQL's calendar. JavaScript's begins earlier and ends earlier. */
const FIRST_MS = Date.UTC(-4713, 10, 24);
const LONGEST_SECONDS = 8.64e12;
const LONE_SURROGATE = /\p{Surrogate}/u;

/**
 * Reads arguments: behind each of them there may be a getter, a Proxy or a `toJSON` that throws.
 * @template T
 * @param {() => T} read
 * @returns {T}
 */
export function reading(read) {
  try {
    return read();
  } catch (error) {
    if (Object(error).status === 400) throw error;
    throw invalid(`An argument cannot be read: ${messageOf(error)}`, error);
  }
}

/**
 * Makes calls of a core, the arguments of which are read first.
 * @param {() => Core} core
 */
export function asking(core) {
  /**
   * @template T
   * @param {(core: Core) => Promise<T>} start
   */
  return async function ask(start) {
    const opened = core();
    return call(reading(() => start(opened)));
  };
}

/**
 * A Uint8Array or Buffer, also one of another realm, such as a test runner's.
 * @param {unknown} value
 * @returns {value is Uint8Array}
 */
export function isBytes(value) {
  // Not the tag that an object says it has.
  return TYPED_ARRAY_TAG?.get?.call(value) === 'Uint8Array';
}

/**
 * Of a buffer that was transferred away, nothing is left: it must not be taken for an empty one.
 * @param {string} what
 * @param {Uint8Array} bytes
 */
export function attached(what, bytes) {
  if (bytes.byteLength > 0) return bytes;
  try {
    new Uint8Array(bytes.buffer);
  } catch (error) {
    throw invalid(`The buffer of ${what} is detached`, error);
  }
  return bytes;
}

/**
 * Whether nobody else can write into it or resize it: some of the platform takes no other.
 * @param {Uint8Array} bytes
 */
export function ownsMemory({ buffer }) {
  const isShared = Object.prototype.toString.call(buffer) === '[object SharedArrayBuffer]';
  return !isShared && !Reflect.get(buffer, 'resizable');
}

/**
 * @param {string} what
 * @param {unknown} value
 */
export function string(what, value) {
  if (typeof value !== 'string') throw invalid(`${what} must be a string, not ${typeof value}`);
  // In UTF-8 it would become another string, and equal to others.
  if (LONE_SURROGATE.test(value))
    throw invalid(`${what} must be well-formed: it has a lone surrogate`);
  return value;
}

/**
 * @param {string} what
 * @param {unknown} value
 * @returns {string | undefined}
 */
export function optionalString(what, value) {
  return value === undefined || value === null ? undefined : string(what, value);
}

/**
 * @param {string} what
 * @param {unknown} value
 * @returns {number | undefined}
 */
export function optionalInteger(what, value) {
  if (value === undefined || value === null) return undefined;
  if (!Number.isSafeInteger(value)) throw invalid(`${what} must be a whole number`);
  return /** @type {number} */ (value);
}

/**
 * A larger number would wrap around on its way into the core.
 * @param {string} what
 * @param {unknown} value
 */
export function optionalInt32(what, value) {
  const integer = optionalInteger(what, value);
  if (integer !== undefined && (integer < 0 || integer > 0x7fffffff)) {
    throw invalid(`${what} must be from 0 to ${0x7fffffff}`);
  }
  return integer;
}

/**
 * A date before PostgreSQL's calendar becomes the first one in it: both are long past.
 * @param {string} what
 * @param {unknown} value
 */
export function epochMs(what, value) {
  if (value === undefined || value === null) return undefined;
  const ms = isTime(value) ? new Date(value).getTime() : Number.NaN;
  if (Number.isNaN(ms)) throw invalid(`${what} must be a valid date`);
  return Math.max(ms, FIRST_MS);
}

/**
 * @param {unknown} value
 * @returns {value is Date | number | string}
 */
function isTime(value) {
  return isDate(value) || typeof value === 'number' || typeof value === 'string';
}

/**
 * A Date, also one of another realm, such as a workflow's.
 * @param {unknown} value
 * @returns {value is Date}
 */
export function isDate(value) {
  return Object.prototype.toString.call(value) === '[object Date]';
}

/**
 * @param {string} what
 * @param {unknown} value
 * @returns {Record<string, string> | undefined}
 */
export function optionalStrings(what, value) {
  if (value === undefined || value === null) return undefined;
  const wrong = () => invalid(`${what} must be an object of strings`);
  if (typeof value !== 'object' || Array.isArray(value)) throw wrong();
  const entries = Object.entries(value);
  if (entries.some(([, text]) => typeof text !== 'string')) throw wrong();
  for (const text of entries.flat()) string(what, text);
  return Object.fromEntries(entries);
}

/**
 * What JavaScript's calendar spans, any delay fits.
 * @param {string} what
 * @param {unknown} value
 * @returns {number | undefined} milliseconds
 */
export function optionalSeconds(what, value) {
  if (value === undefined || value === null) return undefined;
  if (typeof value === 'number' && value >= 0 && value <= LONGEST_SECONDS) {
    return Math.ceil(value * 1000);
  }
  throw invalid(`${what} must be a number from 0 to ${LONGEST_SECONDS}`);
}
