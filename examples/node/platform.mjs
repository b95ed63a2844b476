// Stands for your cloud: takes messages over HTTP and calls the handler with each, until it resolves.
// They are kept in memory only, so this is no queue for anything but a look.
import { createServer } from 'node:http';
import { json } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { handleQueueMessage } from './queue-handler.mjs';

const LONGEST_DELAY_SECONDS = 900;
const { QUEUE_PORT = '3100', HOST = 'localhost' } = process.env;

/** @param {import('@workflow/world-postgres').MessageData} message */
async function deliver(message) {
  await sleep(Math.min(message.delaySeconds ?? 0, LONGEST_DELAY_SECONDS) * 1000);
  for (let attempt = 1; ; attempt++) {
    try {
      await handleQueueMessage({ ...message, attempt });
      return;
    } catch (error) {
      console.error(error);
      await sleep(Math.min(2 ** attempt, LONGEST_DELAY_SECONDS) * 1000);
    }
  }
}

createServer(async (request, response) => {
  const message = /** @type {import('@workflow/world-postgres').MessageData} */ (
    await json(request)
  );
  response.writeHead(202).end();
  deliver(message);
}).listen(Number(QUEUE_PORT), HOST);
