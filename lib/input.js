import { invalid } from './errors.js';

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
 * @param {string} what
 * @param {unknown} value
 */
export function epochMs(what, value) {
  if (value === undefined || value === null) return undefined;
  const ms = new Date(/** @type {any} */ (value)).getTime();
  if (Number.isNaN(ms)) throw invalid(`${what} must be a valid date`);
  return ms;
}
