// A plain node:http host of the compiled workflows in the directory given as argument, and of an
// RPC by which tests call the SDK inside this process. TEST_PATTERN names one of the `queues`,
// TEST_METHODS a module with more methods, TEST_HOST the address to listen on.
import { once } from 'node:events';
import { createServer } from 'node:http';
import path from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { pathToFileURL } from 'node:url';
import { deserialize, serialize } from 'node:v8';
import { getWorld, healthCheck, recreateRunFromExisting } from '@workflow/core/runtime';
import {
  createFunctionProxy,
  createHttpProxy,
  createPgBossFunctionProxyQueue,
  createPgBossHttpProxyQueue,
  createWorld,
} from '@workflow/world-postgres';
import { getRun, resumeHook, start } from 'workflow/api';

/** @typedef {import('@workflow/world-postgres').QueueDriver} QueueDriver */
/** @typedef {(request: Request) => Promise<Response>} Handler */

const directory = process.argv[2];
/** @param {string} file */
const load = (file) => import(pathToFileURL(path.join(directory, file)).href);
const { ids } = await load('workflows.mjs');
/** @param {string} file @returns {Handler} */
const handler = (file) => {
  /** @type {Promise<{ POST: Handler }> | undefined} */
  let route;
  return async (request) => {
    route ??= load(file);
    const delivery = route.then(({ POST }) => POST(request));
    deliveries.add(delivery);
    return delivery.finally(() => deliveries.delete(delivery));
  };
};
/** @type {Set<Promise<Response>>} */
const deliveries = new Set();
const routes = {
  flow: handler('flow.cjs'),
  step: handler('step.cjs'),
  webhook: handler('webhook.mjs'),
};
// Next loads them when they are needed; others before all else.
if (!process.env.TEST_LATE_ROUTES) await Promise.all([load('flow.cjs'), load('step.cjs')]);
const entrypoints = { workflowEntrypoint: routes.flow, stepEntrypoint: routes.step };
const { TEST_PATTERN = 'http', TEST_METHODS, TEST_REDIS_URL, TEST_QUEUE_URL = '' } = process.env;

/**
 * Where the messages of this process go, and who executes them.
 * @type {Record<string, undefined | (() => QueueDriver | Promise<QueueDriver>)>}
 */
const queues = {
  function: () => createPgBossFunctionProxyQueue(entrypoints),
  worker: () => createPgBossHttpProxyQueue({ baseUrl: process.env.TEST_APP_URL }),
  async bullmq() {
    const { createBullMQQueue } = await import('../../../examples/queues/bullmq.mjs');
    return createBullMQQueue({
      proxy: createHttpProxy({ port: Number(process.env.PORT) }),
      url: TEST_REDIS_URL,
      prefix: process.env.WORKFLOW_POSTGRES_SCHEMA,
    });
  },
  async sqs() {
    const { createInMemorySqs, createSqsQueue } = await import(
      '../../../examples/queues/in-memory-sqs.mjs'
    );
    return createSqsQueue({
      sqs: createInMemorySqs({ seed: Number(process.env.TEST_SEED) }),
      proxy: createFunctionProxy(entrypoints),
      stepQueueUrl: 'memory:steps',
      flowQueueUrl: 'memory:flows',
      visibilitySeconds: 2,
    });
  },
  serverless: () => {
    const send = async (/** @type {object} */ message) => {
      const response = await fetch(TEST_QUEUE_URL, {
        method: 'POST',
        body: JSON.stringify(message),
      });
      if (!response.ok) throw new Error(`the queue answered ${response.status}`);
    };
    return { pushStep: send, pushFlow: send, start: async () => {} };
  },
};

/** @type {Record<string, (...args: any[]) => unknown>} */
const methods = {
  start: async (name, args, options) =>
    (await start({ workflowId: ids[name] }, args, options)).runId,
  rerun: (runId) => recreateRunFromExisting(getWorld(), runId),
  result: (runId) => getRun(runId).returnValue,
  cancel: (runId) => getRun(runId).cancel(),
  wakeUp: (runId) => getRun(runId).wakeUp(),
  resumeHook: async (token, payload) => (await resumeHook(token, payload)).runId,
  readStream: (runId, options) => collect(getRun(runId).getReadable(options)),
  // What came before the reader failed, if it did.
  followStream: async (runId, startIndex) => {
    /** @type {unknown[]} */
    const values = [];
    try {
      for await (const value of getRun(runId).getReadable({ startIndex })) values.push(value);
    } catch (error) {
      return { values, error: String(error) };
    }
    return { values };
  },
  run: (runId) => getWorld().runs.get(runId),
  events: async (runId) => (await getWorld().events.list({ runId })).data,
  healthCheck: (endpoint) => healthCheck(getWorld(), endpoint, { timeout: 60_000 }),
  health: () => world.health(),
  hooks: async (runId) => (await getWorld().hooks.list({ runId })).data,
};

if (TEST_METHODS) {
  const { createMethods } = await import(pathToFileURL(TEST_METHODS).href);
  Object.assign(methods, createMethods({ ids }));
}

/** @param {AsyncIterable<unknown>} values */
async function collect(values) {
  const all = [];
  for await (const value of values) all.push(value);
  return all;
}

/** @type {Handler} */
async function rpc(request) {
  const { method, args } = deserialize(new Uint8Array(await request.arrayBuffer()));
  const answer = await Promise.resolve(methods[method](...args)).then(
    (value) => ({ value }),
    (error) => ({ error: { ...error, name: error.name, message: error.message } }),
  );
  return new Response(serialize(answer));
}

/** @param {string} pathname @returns {Handler | undefined} */
function route(pathname) {
  if (pathname === '/rpc') return rpc;
  const [endpoint] = pathname.split('/.well-known/workflow/v1/')[1]?.split('/') ?? [];
  return routes[/** @type {keyof typeof routes} */ (endpoint)];
}

const server = createServer(async (incoming, outgoing) => {
  try {
    const url = new URL(incoming.url ?? '/', `http://${incoming.headers.host}`);
    const handler = route(url.pathname) ?? (async () => new Response(null, { status: 404 }));
    const response = await handler(
      new Request(url, {
        method: incoming.method,
        headers: /** @type {any} */ (incoming.headers),
        ...(!['GET', 'HEAD'].includes(incoming.method ?? '') && {
          body: /** @type {any} */ (Readable.toWeb(incoming)),
          duplex: 'half',
        }),
      }),
    );
    outgoing.writeHead(response.status, Object.fromEntries(response.headers));
    if (response.body) await pipeline(response.body, outgoing);
    else outgoing.end();
  } catch (error) {
    console.error(error);
    if (!outgoing.headersSent) outgoing.writeHead(500);
    outgoing.end();
  }
});
server.listen(Number(process.env.PORT ?? 0), process.env.TEST_HOST ?? '127.0.0.1');
await once(server, 'listening');
const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
process.env.PORT = String(port);

// The default is what the SDK makes of WORKFLOW_TARGET_WORLD.
const driver = await queues[TEST_PATTERN]?.();
const world = /** @type {import('@workflow/world-postgres').PostgresWorld} */ (
  driver ? createWorld({ queueFactory: () => driver }) : getWorld()
);

const works = process.env.TEST_START !== 'false';
process.once('SIGTERM', async () => {
  if (!works) {
    // Others deliver to it: what they have sent is answered first.
    server.close();
    while (deliveries.size > 0) await Promise.allSettled(deliveries);
  }
  await world.close();
  process.exit();
});
// The test has gone.
process.once('disconnect', () => process.exit());

if (works) await world.start();
process.send?.({ port });
