/**
 * The SDK recognises errors by `name` alone, so these need not be instances of its classes, of which
 * a process may hold several copies.
 * @param {{ name: string, message: string } & Record<string, unknown>} description
 * @param {unknown} [cause]
 * @returns {Error}
 */
export function worldError({ name, message, ...fields }, cause) {
  const error = new Error(message, cause === undefined ? undefined : { cause });
  Object.defineProperty(error, 'name', { value: name, configurable: true, writable: true });
  return Object.assign(error, fields);
}

/**
 * The caller's input is wrong.
 * @param {string} message
 * @param {unknown} [cause]
 */
export function invalid(message, cause) {
  return worldError({ name: 'WorkflowWorldError', status: 400, message }, cause);
}

/**
 * Rethrows what the core reports, as the SDK's error.
 * @template T
 * @param {Promise<T>} promise
 * @returns {Promise<T>}
 */
export async function call(promise) {
  try {
    return await promise;
  } catch (error) {
    throw fromCore(error);
  }
}

/**
 * The same for calls that answer at once.
 * @template T
 * @param {() => T} operation
 * @returns {T}
 */
export function callSync(operation) {
  try {
    return operation();
  } catch (error) {
    throw fromCore(error);
  }
}

/**
 * Whatever was thrown: not everything can be turned into a string.
 * @param {unknown} thrown
 */
export function describe(thrown) {
  try {
    return String(thrown);
  } catch {
    return `a thrown ${typeof thrown}`;
  }
}

/**
 * The same without the name of the error.
 * @param {unknown} thrown
 */
export function messageOf(thrown) {
  try {
    return thrown instanceof Error ? String(thrown.message) : describe(thrown);
  } catch {
    return describe(thrown);
  }
}

/** @param {unknown} error */
function fromCore(error) {
  const text = error instanceof Error ? error.message : String(error);
  if (!text.startsWith('{')) return error;
  try {
    return worldError(JSON.parse(text));
  } catch {
    return error;
  }
}
