// What the platform calls with each message. A rejection means: again, later.
import { createHttpProxy } from '@workflow/world-postgres';

const proxy = createHttpProxy({
  baseUrl: process.env.APP_URL,
  securityToken: process.env.SECURITY_TOKEN,
});

/** @param {import('@workflow/world-postgres').MessageData} message */
export async function handleQueueMessage(message) {
  // Determine if it's a step or workflow
  if (message.queueName.includes('step')) {
    await proxy.proxyStep(message);
  } else {
    await proxy.proxyWorkflow(message);
  }
}
