// The app, where messages wait in a queue of the platform: it pushes them there and takes deliveries.
import { createWorld } from '@workflow/world-postgres';
import { serve } from './app.mjs';

const { QUEUE_URL = 'http://localhost:3100' } = process.env;

/** @param {import('@workflow/world-postgres').MessageData} message */
async function send(message) {
  const response = await fetch(QUEUE_URL, { method: 'POST', body: JSON.stringify(message) });
  if (!response.ok) throw new Error(`${QUEUE_URL} answered ${response.status}`);
}

const world = createWorld({
  closeOnSignals: true,
  queueFactory: () => ({ pushStep: send, pushFlow: send, start: async () => {} }),
});
await world.start();
await serve(world);
