// Enqueues, and serves the routes to which workers (worker.ts) deliver: starts no worker of its own.
import { getWorld } from 'workflow/runtime';
import { serve } from './app.mjs';

const server = await serve(
  /** @type {import('@workflow/world-postgres').PostgresWorld} */ (getWorld()),
);

// Steps that run here may end.
process.once('SIGTERM', () => server.close(() => process.exit()));
