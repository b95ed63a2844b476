import { configure } from './configuration.js';
import { call, callSync, invalid } from './errors.js';
import { toCore } from './messages.js';
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
      const { request, body } = toCore(kind, message);
      const answer = await call(proxy.send(request, body, message.attempt ?? 1));
      return new Response(new Uint8Array(answer.body), {
        status: answer.status,
        headers: JSON.parse(answer.headers),
      });
    };

  return { proxyStep: send('step'), proxyWorkflow: send('flow') };
}
