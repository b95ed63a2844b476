import { configure } from './configuration.js';
import { createEntrypoints } from './entrypoints.js';
import { call, callSync, worldError } from './errors.js';
import { optionalInt32 } from './input.js';
import { toCore } from './messages.js';
import { native } from './native.js';

/** @typedef {import('../index.js').MessageData} MessageData */
/** @typedef {import('../index.js').WkfProxy} WkfProxy */
/** @typedef {import('../native/index.cjs').Configuration} Configuration */
/** @typedef {ReturnType<typeof toCore> & { kind: 'step' | 'flow', attempt: number }} Delivery */

/**
 * Executes messages by posting them to an app: for a queue of your own.
 * @param {import('../index.js').HttpProxyOptions} [options]
 * @returns {WkfProxy}
 */
export function createHttpProxy({ baseUrl, port, securityToken } = {}) {
  /** @type {import('../native/index.cjs').HttpProxy | undefined} */
  let http;
  return createProxy({ baseUrl, port, securityToken }, async (configuration, delivery) => {
    http ??= callSync(() => new (native().HttpProxy)(configuration));
    const answer = await call(http.send(delivery.request, delivery.body, delivery.attempt));
    // A Response of status 204 may not even have an empty body.
    return new Response(answer.body.length > 0 ? new Uint8Array(answer.body) : null, {
      status: answer.status,
      headers: JSON.parse(answer.headers),
    });
  });
}

/**
 * Executes messages by calling the functions behind the SDK's routes: for a queue of your own.
 * @param {import('../index.js').FunctionProxyOptions} options
 * @returns {WkfProxy}
 */
export function createFunctionProxy(options) {
  const invoke = createEntrypoints(options);
  const { securityToken } = options;
  return createProxy({ securityToken }, (configuration, { kind, request, body, attempt }) => {
    const headers = native().foreignDeliveryHeaders(configuration, request, attempt);
    return invoke(kind, JSON.parse(headers), body);
  });
}

/**
 * Settings are resolved on first use, and each proxy has its own.
 *
 * A consumer that merely awaits its proxy must not acknowledge what failed: hence the rejection of
 * every answer that is not 2xx.
 * @param {object} options
 * @param {(configuration: Configuration, delivery: Delivery) => Promise<Response>} send
 * @returns {WkfProxy}
 */
function createProxy(options, send) {
  /** @type {Configuration | undefined} */
  let configuration;

  function use() {
    if (configuration) return configuration;
    const resolved = configure(options);
    callSync(() => resolved.checkStart());
    configuration = resolved;
    return configuration;
  }

  /** @param {'step' | 'flow'} kind */
  const proxy =
    (kind) =>
    /** @param {MessageData} message */
    async (message) => {
      const attempt = optionalInt32('attempt', message.attempt) || 1;
      const delivery = { kind, attempt, ...toCore(kind, message) };
      const settings = use();
      const response = await send(settings, delivery).catch((cause) => {
        throw failed(cause instanceof Error ? cause.message : String(cause), { cause });
      });
      if (response.ok) return response;
      const text = await response.clone().text();
      throw failed(`${response.status} ${text.slice(0, 500)}`, { response });
    };
  return { proxyStep: proxy('step'), proxyWorkflow: proxy('flow') };
}

/**
 * @param {string} why
 * @param {{ cause?: unknown, response?: Response }} details
 */
function failed(why, { cause, response }) {
  const message = `The delivery failed and must be repeated: ${why}`;
  const error = { name: 'WorkflowWorldError', status: 503, code: 'DELIVERY_FAILED', message };
  return worldError(response ? { ...error, response } : error, cause);
}
