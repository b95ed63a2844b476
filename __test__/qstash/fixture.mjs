import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { startQStash } from '../../scripts/support/qstash.mjs';
import { createPostgresUpstashWorld } from '../../upstash.js';

/** @typedef {import('../../upstash.js').PostgresUpstashWorldConfig} WorldOptions */
/** @typedef {import('../../upstash.js').QStashOptions} QueueOptions */
/** @typedef {import('../../scripts/support/qstash.mjs').QStash} QStash */
/** @typedef {{ kind: 'flow' | 'step', message: any, queueName: string, messageId: string, attempt: number }} Call */
/** @typedef {(call: Call) => unknown} Handle */
/** @typedef {Parameters<typeof startQStash>[0]} Test */

// Nobody listens there: what needs no storage opens none.
export const NOWHERE = 'postgres://nobody:hunter2@127.0.0.1:1/nothing';
/** Under which QStash knows the app; it never resolves. */
export const APP = 'https://app.example';
export const ROUTES = `${APP}/.well-known/workflow/v1`;

/** Where a real QStash is, for those who have one. */
export const real = {
  url: process.env.QSTASH_DEV_URL ?? process.env.QSTASH_URL,
  token: process.env.QSTASH_TOKEN,
  targetUrl: process.env.QSTASH_TARGET_URL,
  targetPort: Number(process.env.QSTASH_TARGET_PORT ?? 0),
};

// From here on the environment decides nothing.
for (const name of Object.keys(process.env)) {
  if (/^(QSTASH_|DATABASE_URL$|DEPLOYMENT_ID$|WORKFLOW_)/.test(name)) delete process.env[name];
}

/**
 * An HTTP server for a handler of web requests.
 *
 * @param {Test} t
 * @param {(request: Request) => Promise<Response>} handle
 * @param {{ port?: number }} [options]
 */
export async function serve(t, handle, { port = 0 } = {}) {
  const server = createServer(async (incoming, outgoing) => {
    const response = await handle(
      new Request(new URL(incoming.url ?? '/', 'http://127.0.0.1'), {
        method: incoming.method,
        headers: /** @type {any} */ (incoming.headers),
        body: /** @type {any} */ (Readable.toWeb(incoming)),
        // @ts-expect-error a body that is a stream needs it
        duplex: 'half',
      }),
    );
    outgoing.writeHead(response.status, Object.fromEntries(response.headers));
    outgoing.end(Buffer.from(await response.arrayBuffer()));
  });
  server.listen(port, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const address = /** @type {import('node:net').AddressInfo} */ (server.address());
  return `http://127.0.0.1:${address.port}`;
}

/**
 * A World whose queue is a stand-in, and an app that receives its deliveries with handlers of another
 * World, as another instance of a function would.
 *
 * @param {Test} t
 * @param {object} [options]
 * @param {Handle} [options.handle] what the app does with a delivery
 * @param {string} [options.targetUrl]
 * @param {QueueOptions} [options.queue]
 * @param {Partial<WorldOptions>} [options.world]
 * @param {Parameters<typeof startQStash>[1]} [options.standIn]
 */
export async function place(t, { handle = () => {}, targetUrl = APP, queue, world, standIn } = {}) {
  /** @type {Call[]} */
  const calls = [];
  /** @type {Request[]} */
  const requests = [];
  const app = await serve(t, (request) => {
    requests.push(request);
    return receive(request);
  });
  const qstash = await startQStash(t, {
    route: (url) => url.replace(/^https?:\/\/[^/]+/, app),
    ...standIn,
  });
  const options = {
    databaseUrl: NOWHERE,
    ...world,
    qstash: { ...queueOptions(qstash), targetUrl, ...queue },
  };
  const receive = routes(createPostgresUpstashWorld(options), async (call) => {
    calls.push(call);
    return handle(call);
  });
  return { qstash, calls, requests, options, world: createPostgresUpstashWorld(options) };
}

/** @param {QStash} qstash */
export function queueOptions(qstash) {
  const { current, next } = qstash.keys();
  return {
    baseUrl: qstash.url,
    token: qstash.token,
    targetUrl: APP,
    currentSigningKey: current,
    nextSigningKey: next,
  };
}

/**
 * Receives at both kinds of target: the SDK's routes, and `/queue/:queueName`.
 *
 * @param {Pick<ReturnType<typeof createPostgresUpstashWorld>, 'createQueueHandler'>} world
 * @param {Handle} handle
 * @returns {(request: Request) => Promise<Response>}
 */
export function routes({ createQueueHandler }, handle) {
  const of = (/** @type {'flow' | 'step'} */ kind, /** @type {any} */ prefix) =>
    createQueueHandler(prefix, async (message, meta) => {
      const { queueName, messageId, attempt } = meta;
      return /** @type {any} */ (await handle({ kind, message, queueName, messageId, attempt }));
    });
  const handlers = { flow: of('flow', '__wkf_workflow_'), step: of('step', '__wkf_step_') };
  return async (request) => {
    const segments = new URL(request.url).pathname.split('/');
    const last = decodeURIComponent(segments.at(-1) ?? '');
    if (segments.at(-2) === 'queue') {
      return handlers[last.startsWith('__wkf_step_') ? 'step' : 'flow'](request);
    }
    if (last === 'flow' || last === 'step') return handlers[last](request);
    return new Response(null, { status: 404 });
  };
}

/**
 * The body of a delivery: a message, and what is told of it.
 *
 * @param {string} message JSON
 * @param {{ queueName?: unknown, messageId?: unknown, attempt?: unknown, headers?: Record<string, string> }} [about]
 */
export function envelope(message, about) {
  const { queueName, messageId, attempt, headers } = {
    queueName: '__wkf_step_s',
    messageId: 'msg_1',
    attempt: 1,
    headers: {},
    ...about,
  };
  const head = JSON.stringify({ queueName, messageId, attempt, headers });
  return `${head.slice(0, -1)},"message":${message}}`;
}

/**
 * By the clock that tests do not replace.
 *
 * @template T
 * @param {() => T | Promise<T>} look
 * @returns {Promise<NonNullable<T>>}
 */
export async function until(look) {
  for (const deadline = performance.now() + 60_000; ; await sleep(10)) {
    const found = await look();
    if (found) return found;
    assert.ok(performance.now() < deadline, `this did not come true: ${look}`);
  }
}

/** @param {Promise<unknown>} promise @returns {Promise<any>} */
export const errorOf = (promise) =>
  promise.then(
    () => {
      throw new Error('it did not fail');
    },
    (error) => error,
  );
