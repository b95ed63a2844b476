// Pattern 1, the default: jobs in PostgreSQL, delivered over HTTP to this same process.
import { createWorld } from '@workflow/world-postgres';
import { serve } from './app.mjs';

const world = createWorld({ closeOnSignals: true });
await serve(world);
await world.start();
