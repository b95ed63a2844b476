// What all entries here share: an HTTP server with the compiled workflows and the app's own API.
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { buffer } from 'node:stream/consumers';
import { getRun, resumeHook, start } from 'workflow/api';
import { POST as workflowEntrypoint } from './.well-known/workflow/v1/flow.js';
import { POST as stepEntrypoint } from './.well-known/workflow/v1/step.js';

/** @typedef {import('@workflow/world-postgres').PostgresWorld} PostgresWorld */

export const entrypoints = { workflowEntrypoint, stepEntrypoint };

const manifest = new URL('.well-known/workflow/v1/manifest.json', import.meta.url);
const { workflows } = JSON.parse(await readFile(manifest, 'utf8'));
const { processOrder } = workflows['workflows/order.ts'];

/**
 * Method and path, and what answers. The app's own routes ask nobody who they are: put your own
 * authentication before them. Those of the workflows ask for the token.
 * @type {[string, RegExp, (context: { request: Request, id: string, world: PostgresWorld }) => Promise<Response>][]}
 */
const routes = [
  ['POST', /^\/\.well-known\/workflow\/v1\/flow$/, ({ request }) => workflowEntrypoint(request)],
  ['POST', /^\/\.well-known\/workflow\/v1\/step$/, ({ request }) => stepEntrypoint(request)],
  [
    'POST',
    /^\/orders$/,
    async ({ request }) => {
      const { cents } = await request.json();
      const id = randomUUID();
      const { runId } = await start(processOrder, [{ id, cents }]);
      return Response.json({ id, runId }, { status: 202 });
    },
  ],
  [
    'POST',
    /^\/orders\/([^/]+)\/approval$/,
    async ({ request, id }) => {
      await resumeHook(`approve:${id}`, await request.json());
      return new Response(null, { status: 204 });
    },
  ],
  [
    'GET',
    /^\/runs\/([^/]+)$/,
    async ({ id }) => {
      const run = getRun(id);
      const status = await run.status;
      return Response.json({ status, result: status === 'completed' && (await run.returnValue) });
    },
  ],
  [
    // For the probe of a load balancer.
    'GET',
    /^\/healthz$/,
    async ({ world }) => {
      const { healthy } = await world.health();
      return Response.json({ healthy }, { status: healthy ? 200 : 503 });
    },
  ],
];

/**
 * Resolves when requests are taken.
 * @param {PostgresWorld} world
 */
export async function serve(world) {
  const { PORT = '3000', HOST = 'localhost' } = process.env;
  const server = createServer(async (incoming, outgoing) => {
    const response = await answer(incoming, world).catch((error) => {
      // What the SDK and the World throw has a status: 404 for a hook that does not exist (yet).
      if (error.status < 500)
        return Response.json({ error: error.message }, { status: error.status });
      console.error(error);
      return new Response(null, { status: 500 });
    });
    outgoing.writeHead(response.status, Object.fromEntries(response.headers));
    outgoing.end(Buffer.from(await response.arrayBuffer()));
  });
  server.listen(Number(PORT), HOST);
  await once(server, 'listening');
  console.log(`http://${HOST}:${PORT}`);
  return server;
}

/**
 * @param {import('node:http').IncomingMessage} incoming
 * @param {PostgresWorld} world
 */
async function answer(incoming, world) {
  const { method = 'GET', headers } = incoming;
  const url = new URL(incoming.url ?? '/', `http://${headers.host}`);
  for (const [routeMethod, path, handle] of routes) {
    const match = path.exec(url.pathname);
    if (method !== routeMethod || !match) continue;
    const body = method === 'GET' ? undefined : await buffer(incoming);
    const request = new Request(url, { method, headers: /** @type {any} */ (headers), body });
    return handle({ request, id: decodeURIComponent(match[1] ?? ''), world });
  }
  return new Response(null, { status: 404 });
}
