import { invalid } from './errors.js';
import { reading } from './input.js';

/** @typedef {import('../index.js').Entrypoint} Entrypoint */
/** @typedef {(request: Request) => Promise<Response>} Handler */

/** Only its path means something; nothing is ever connected to. */
const BASE = 'http://localhost/.well-known/workflow/v1';

/**
 * The functions behind the SDK's generated routes. An SDK with a single route takes steps there too.
 * @param {{ stepEntrypoint?: Entrypoint, workflowEntrypoint: Entrypoint }} options
 */
export function createEntrypoints(options) {
  const { flow, step } = reading(() => {
    const { stepEntrypoint, workflowEntrypoint } = Object(options);
    const flow = handlerOf('workflowEntrypoint', workflowEntrypoint);
    const step = stepEntrypoint === undefined ? flow : handlerOf('stepEntrypoint', stepEntrypoint);
    return { flow, step };
  });

  /**
   * @param {'step' | 'flow'} kind
   * @param {[string, string][]} headers
   * @param {Uint8Array} body
   * @returns {Promise<Response>}
   */
  return async function deliver(kind, headers, body) {
    const init = { method: 'POST', headers, body: /** @type {BodyInit} */ (body) };
    const handler = kind === 'step' ? step : flow;
    const response = await handler(new Request(`${BASE}/${kind}`, init));
    if (isResponse(response)) return response;
    throw new TypeError(`The ${kind} entrypoint returned ${typeof response} instead of a Response`);
  };
}

/**
 * @param {string} option
 * @param {unknown} entrypoint
 * @returns {Handler}
 */
function handlerOf(option, entrypoint) {
  if (typeof entrypoint === 'function') return /** @type {Handler} */ (entrypoint);
  const route = /** @type {Record<string, unknown>} */ (Object(entrypoint));
  for (const name of ['__wkf_entrypoint', 'POST']) {
    if (typeof route[name] === 'function') return /** @type {Handler} */ (route[name]);
  }
  throw invalid(
    `${option} must be the handler of the SDK's generated route, or that route's module, not ` +
      `${entrypoint === null ? 'null' : typeof entrypoint}. workflow 4.8 exports it as POST: ` +
      `const { POST: ${option} } = await import('./app/.well-known/workflow/v1/` +
      `${option === 'stepEntrypoint' ? 'step' : 'flow'}/route')`,
  );
}

/**
 * Not `instanceof`: frameworks bring Response classes of their own.
 * @param {unknown} value
 * @returns {value is Response}
 */
function isResponse(value) {
  const { status, body, clone } = /** @type {Record<string, any>} */ (Object(value));
  return (
    Number.isInteger(status) &&
    typeof clone === 'function' &&
    (body === null || typeof body?.[Symbol.asyncIterator] === 'function')
  );
}

/**
 * The beginning of an answer, of which only a few bytes mean anything. Fails where its body does.
 * @param {Response} response
 * @param {number} limit in bytes
 */
export async function readStart(response, limit) {
  if (!response.body) return '';
  const chunks = [];
  let length = 0;
  // Leaving the loop cancels the rest.
  for await (const chunk of /** @type {AsyncIterable<Uint8Array>} */ (
    /** @type {unknown} */ (response.body)
  )) {
    chunks.push(chunk);
    length += chunk.byteLength;
    if (length >= limit) break;
  }
  return Buffer.concat(chunks).toString('utf8', 0, limit);
}
