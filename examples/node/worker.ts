// Executes what web.mjs enqueues. Any number of these, on any number of hosts.
import { createPgBossHttpProxyQueue, createWorld } from '@workflow/world-postgres';

const world = createWorld({
  // SIGTERM: what runs may end, the rest goes to other workers at once.
  closeOnSignals: true,
  queueFactory: () =>
    createPgBossHttpProxyQueue({
      baseUrl: process.env.WORKFLOW_POSTGRES_APP_URL ?? 'http://localhost:3000',
    }),
});

await world.start();
