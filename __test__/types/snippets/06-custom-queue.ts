import { createWorld } from "@workflow/world-postgres";
import type { QueueDriver, MessageData } from "@workflow/world-postgres/queue-drivers/types";

const myCustomQueue: QueueDriver = {
  pushStep: async (message: MessageData) => {
    // Push step execution message to your queue
    await myQueue.push('steps', message);
  },

  pushFlow: async (message: MessageData) => {
    // Push workflow execution message to your queue
    await myQueue.push('workflows', message);
  },

  start: async () => {
    // Start consuming from your queue and execute via proxy
    const proxy = createHttpProxy({
      baseUrl: 'http://localhost:3000',
      securityToken: process.env.WORKFLOW_POSTGRES_SECURITY_TOKEN!,
    });

    await myQueue.consume('steps', async (message) => {
      await proxy.proxyStep(message);
    });

    await myQueue.consume('workflows', async (message) => {
      await proxy.proxyWorkflow(message);
    });
  },
};

const world = createWorld({
  queueFactory: () => myCustomQueue,
});

await world.start();
