import { configure } from './configuration.js';
import { createEntrypoints, readStart } from './entrypoints.js';
import { call, callSync, messageOf, worldError } from './errors.js';
import { isOfWorld } from './handler.js';
import { optionalInt32, reading } from './input.js';
import { toCore } from './messages.js';
import { native } from './native.js';

/** @typedef {import('../index.js').MessageData} MessageData */
/** @typedef {import('../index.js').WkfProxy} WkfProxy */
/** @typedef {import('../native/index.cjs').Configuration} Configuration */
/** @typedef {ReturnType<typeof toCore> & { attempt: number }} Delivery */

/** The code of a rejection where no handler of a World took the message: no attempt was made. */
const NOT_TAKEN = 'NOT_TAKEN';
/** Of an answer that is no success, this much is told. */
const LONGEST_EXCERPT = 500;
/** An answer counts when it is complete; one that is longer than this is taken as it is. */
const LONGEST_ANSWER = 65_536;

/**
 * Executes messages by posting them to an app: for a queue of your own.
 * @param {import('../index.js').HttpProxyOptions} [options]
 * @returns {WkfProxy}
 */
export function createHttpProxy(options) {
  const { baseUrl, httpProxy, port, securityToken } = reading(() => ({ ...options }));
  /** @type {import('../native/index.cjs').HttpProxy | undefined} */
  let http;
  return createProxy({ baseUrl, httpProxy, port, securityToken }, (configuration, delivery) => {
    http ??= callSync(() => new (native().HttpProxy)(configuration));
    return post(http, delivery);
  });
}

/**
 * @param {import('../native/index.cjs').HttpProxy} http
 * @param {Delivery} delivery
 */
async function post(http, { request, body, attempt }) {
  const { status, headers, body: answer } = await call(http.send(request, body, attempt));
  // A Response of status 204 may not even have an empty body.
  return new Response(answer.length > 0 ? new Uint8Array(answer) : null, {
    status,
    headers: JSON.parse(headers),
  });
}

/**
 * Executes messages by calling the functions behind the SDK's routes: for a queue of your own.
 * @param {import('../index.js').FunctionProxyOptions} options
 * @returns {WkfProxy}
 */
export function createFunctionProxy(options) {
  const invoke = createEntrypoints(options);
  const { securityToken } = reading(() => ({ ...options }));
  return createProxy({ securityToken }, (configuration, { request, body, attempt }) => {
    const headers = callSync(() =>
      native().foreignDeliveryHeaders(configuration, request, attempt),
    );
    return invoke(request.kind, JSON.parse(headers), body);
  });
}

/**
 * Settings are resolved on first use, and each proxy has its own.
 *
 * A consumer that merely awaits its proxy must not acknowledge what failed: hence the rejection of
 * every answer that is not a World's, not 2xx, or not complete.
 * @param {object} options
 * @param {(configuration: Configuration, delivery: Delivery) => Promise<Response>} send
 *   throws at once what is the caller's fault
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

  /** @param {MessageData} message */
  async function proxy(message) {
    const core = toCore(undefined, message);
    const attempt = reading(() => optionalInt32('MessageData.attempt', message.attempt)) || 1;
    const settings = use();
    const sending = send(settings, { attempt, ...core });
    /** @type {Response | undefined} */
    let response;
    try {
      response = await sending;
      const answer = await readStart(response.clone(), LONGEST_ANSWER);
      const ofWorld = isOfWorld(response);
      const reason = native().whyNotTaken({ status: response.status, body: answer, ofWorld });
      if (reason) throw worldError({ name: 'Error', code: NOT_TAKEN, message: reason });
      if (response.status < 200 || response.status >= 300) {
        throw new Error(`${response.status} ${answer.slice(0, LONGEST_EXCERPT)}`);
      }
      if (/"timeoutSeconds"/.test(answer)) {
        throw new Error(
          'the app asks for a later delivery, which a World of this package sends by itself: is it the one of WORKFLOW_TARGET_WORLD there?',
        );
      }
      return response;
    } catch (cause) {
      throw failed(cause, settings.hideTokens(messageOf(cause)), response);
    }
  }
  // The queue's name decides: consumers take all sorts of things for a step's, such as any name that has
  // `step` in it.
  return { proxyStep: proxy, proxyWorkflow: proxy };
}

/**
 * @param {unknown} cause
 * @param {string} reason
 * @param {Response} [response]
 */
function failed(cause, reason, response) {
  const message = `The delivery failed and must be repeated: ${reason}`;
  const code = Object(cause).code === NOT_TAKEN ? NOT_TAKEN : 'DELIVERY_FAILED';
  const error = { name: 'WorkflowWorldError', status: 503, code, message };
  return worldError(response ? { ...error, response } : error, response ? undefined : cause);
}
