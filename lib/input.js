import { invalid } from './errors.js';

/**
 * A Uint8Array or Buffer, also one of another realm, such as a test runner's.
 * @param {unknown} value
 * @returns {value is Uint8Array}
 */
export function isBytes(value) {
  return ArrayBuffer.isView(value) && Reflect.get(value, Symbol.toStringTag) === 'Uint8Array';
}

/**
 * @param {string} what
 * @param {unknown} value
 */
export function string(what, value) {
  if (typeof value !== 'string') throw invalid(`${what} must be a string, not ${typeof value}`);
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
 * @param {string} what
 * @param {unknown} value
 */
export function epochMs(what, value) {
  if (value === undefined || value === null) return undefined;
  const ms = new Date(/** @type {any} */ (value)).getTime();
  if (Number.isNaN(ms)) throw invalid(`${what} must be a valid date`);
  return ms;
}
