import { invalid } from './errors.js';

/** @typedef {import('../index.js').Entrypoint} Entrypoint */
/** @typedef {(request: Request) => Promise<Response>} Handler */

/** Only its path means something; nothing is ever connected to. */
const BASE = 'http://localhost/.well-known/workflow/v1';

/**
 * The functions behind the SDK's generated routes. An SDK with a single route takes steps there too.
 * @param {{ stepEntrypoint?: Entrypoint, workflowEntrypoint: Entrypoint }} options
 */
export function createEntrypoints({ stepEntrypoint, workflowEntrypoint }) {
  const flow = handlerOf('workflowEntrypoint', workflowEntrypoint);
  const step = stepEntrypoint === undefined ? flow : handlerOf('stepEntrypoint', stepEntrypoint);

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
 */
function isResponse(value) {
  const { status, text } = /** @type {Record<string, unknown>} */ (Object(value));
  return Number.isInteger(status) && typeof text === 'function';
}
