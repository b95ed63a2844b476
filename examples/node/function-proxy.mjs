// Pattern 2: jobs in PostgreSQL, executed by functions of this process.
import { createPgBossFunctionProxyQueue, createWorld } from '@workflow/world-postgres';
import { entrypoints, serve } from './app.mjs';

const world = createWorld({
  closeOnSignals: true,
  queueFactory: () => createPgBossFunctionProxyQueue(entrypoints),
});
await world.start();
await serve(world);
