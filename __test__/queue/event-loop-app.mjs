// A process that works, and whose event loop a step named `block` stops for as long as it is told.
import { writeSync } from 'node:fs';
import { createServer } from 'node:http';
import { Readable } from 'node:stream';
import {
  createPgBossFunctionProxyQueue,
  createPgBossHttpProxyQueue,
  createWorld,
} from '../../index.js';
import { routes } from './fixture.mjs';

const { TEST_PROXY, TEST_BLOCK_MS, ...env } = process.env;
/** @param {object} line */
const tell = (line) => writeSync(1, `${JSON.stringify(line)}\n`);

const served = routes({
  step: async ({ stepId }) => {
    tell({ executed: stepId });
    if (stepId !== 'block') return;
    for (const end = Date.now() + Number(TEST_BLOCK_MS); Date.now() < end; );
    tell({ turns: true });
  },
});

async function overHttp() {
  const server = createServer(async (incoming, outgoing) => {
    const request = new Request(`http://localhost${incoming.url}`, {
      method: incoming.method,
      headers: /** @type {any} */ (incoming.headers),
      body: /** @type {any} */ (Readable.toWeb(incoming)),
      // @ts-expect-error a body that is a stream needs it
      duplex: 'half',
    });
    const response = await served[incoming.url?.endsWith('/step') ? 'step' : 'flow'](request);
    outgoing.writeHead(response.status, Object.fromEntries(response.headers));
    outgoing.end(Buffer.from(await response.arrayBuffer()));
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(undefined)));
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  return () => createPgBossHttpProxyQueue({ port });
}

const world = createWorld({
  jobPrefix: env.TEST_JOB_PREFIX,
  queueFactory:
    TEST_PROXY === 'http'
      ? await overHttp()
      : () =>
          createPgBossFunctionProxyQueue({
            stepEntrypoint: served.step,
            workflowEntrypoint: served.flow,
          }),
});
await world.start();
tell({ ready: true });
process.stdin.on('data', async () => tell(await world.health()));
process.stdin.on('end', async () => {
  await world.close();
  process.exit();
});
