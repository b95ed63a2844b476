// queue-handler.ts
import { createHttpProxy } from "@workflow/world-postgres";
import type { MessageData } from "@workflow/world-postgres/queue-drivers/types";

const proxy = createHttpProxy({
  baseUrl: process.env.APP_URL,
  securityToken: process.env.SECURITY_TOKEN,
});

export async function handleQueueMessage(message: MessageData) {
  // Determine if it's a step or workflow
  if (message.queueName.includes('step')) {
    await proxy.proxyStep(message);
  } else {
    await proxy.proxyWorkflow(message);
  }
}
