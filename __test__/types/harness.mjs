// Runs a snippet in the project that this file was copied to, and a workflow through what the snippet
// has set up: node harness.mjs <snippet> <compiled workflows>. Prints the result as JSON.
import { once } from 'node:events';
import { createServer } from 'node:http';
import { register } from 'node:module';
import path from 'node:path';
import { Readable } from 'node:stream';
import { pathToFileURL } from 'node:url';
import * as world from '@workflow/world-postgres';
import { getRun, start } from 'workflow/api';

const [snippet, compiled] = process.argv.slice(2);
const { APP_PORT, NO_RUN } = process.env;
/** @param {string} file */
const load = (file) => import(pathToFileURL(path.resolve(file)).href);
const { ids } = await load(path.join(compiled, 'workflows.mjs'));

// As a bundler does it.
const hook = `export const resolve = (name, context, next) =>
  next(name.endsWith('/route') ? name + '.mjs' : name, context);`;
register(`data:text/javascript,${encodeURIComponent(hook)}`);
const [flow, step] = await Promise.all(
  ['flow', 'step'].map((name) => load(`app/.well-known/workflow/v1/${name}/route.mjs`)),
);

// What a snippet uses without importing it.
/** @type {Map<string, (message: object) => Promise<void>>} */
const consumers = new Map();
/** @type {[string, string][]} */
const waiting = [];
const myQueue = {
  /** @param {string} topic @param {object} message */
  async push(topic, message) {
    waiting.push([topic, JSON.stringify(message)]);
    setImmediate(deliver);
  },
  /** @param {string} topic @param {(message: object) => Promise<void>} consumer */
  async consume(topic, consumer) {
    consumers.set(topic, consumer);
  },
};
Object.assign(globalThis, world, {
  myQueue,
  workflowEntrypoint: flow.__wkf_entrypoint,
  stepEntrypoint: step.__wkf_entrypoint,
});

function deliver() {
  const [topic, message] = waiting.shift() ?? [];
  const consume = consumers.get(topic ?? '');
  // A queue that keeps what failed.
  consume?.(JSON.parse(message ?? '')).catch((error) => {
    console.error(error);
    setTimeout(() => myQueue.push(topic ?? '', JSON.parse(message ?? '')), 500);
  });
}

if (APP_PORT) {
  const server = createServer(async (incoming, outgoing) => {
    const route = incoming.url?.endsWith('/step') ? step : flow;
    const response = await route.__wkf_entrypoint(
      new Request(`http://localhost${incoming.url}`, {
        method: 'POST',
        headers: /** @type {any} */ (incoming.headers),
        body: /** @type {any} */ (Readable.toWeb(incoming)),
        // @ts-expect-error a body that is a stream needs it
        duplex: 'half',
      }),
    );
    outgoing.writeHead(response.status, Object.fromEntries(response.headers));
    outgoing.end(await response.text());
  });
  server.listen(Number(APP_PORT));
  await once(server, 'listening');
}

const exports = await load(snippet);
await exports.register?.();
if (exports.handleQueueMessage) {
  await myQueue.consume('messages', exports.handleQueueMessage);
  const push = (/** @type {object} */ message) => myQueue.push('messages', message);
  const driver = { pushStep: push, pushFlow: push, start: async () => {} };
  await world.createWorld({ queueFactory: () => driver }).start();
}
if (NO_RUN) {
  console.log('null');
} else {
  const { runId } = await start({ workflowId: ids.sequential }, [3]);
  console.log(JSON.stringify(await getRun(runId).returnValue));
  process.exit();
}
