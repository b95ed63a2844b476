import { configure } from './configuration.js';
import { call, callSync, invalid } from './errors.js';
import { isBytes } from './input.js';
import { native } from './native.js';

/**
 * Executes messages by posting them to an app: for a queue of your own.
 * @param {import('../index.js').HttpProxyOptions} options
 * @returns {import('../index.js').WkfProxy}
 */
export function createHttpProxy(options) {
  const { baseUrl, port, securityToken } = options ?? {};
  if (typeof securityToken !== 'string' || securityToken === '') {
    throw invalid('createHttpProxy needs a securityToken: the one that the app was given');
  }
  /** @type {import('../native/index.cjs').HttpProxy | undefined} */
  let proxy;

  /** @param {'step' | 'flow'} kind */
  const send =
    (kind) =>
    /** @param {import('../index.js').MessageData} message */
    async (message) => {
      proxy ??= callSync(
        () => new (native().HttpProxy)(configure({ baseUrl, port, securityToken })),
      );
      const { id, queueName, messageId, idempotencyKey, headers, attempt, data } = message;
      const request = {
        kind,
        id,
        queueName,
        messageId,
        idempotencyKey,
        headers: headers && JSON.stringify(headers),
      };
      const answer = await call(proxy.send(request, bodyOf(data), attempt));
      return new Response(new Uint8Array(answer.body), {
        status: answer.status,
        headers: JSON.parse(answer.headers),
      });
    };

  return { proxyStep: send('step'), proxyWorkflow: send('flow') };
}

/**
 * The bytes of a message: as they are in memory, or base64 where it came through JSON.
 * @param {unknown} data
 * @returns {Uint8Array}
 */
export function bodyOf(data) {
  if (isBytes(data)) return data;
  if (typeof data === 'string') return Buffer.from(data, 'base64');
  throw invalid('MessageData.data must be bytes, or a base64 string');
}
