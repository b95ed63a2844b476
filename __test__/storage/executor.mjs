import { parentPort } from 'node:worker_threads';
import { createWorld } from '../../index.js';

/**
 * Executes steps, in a thread or a process of its own, whose code never ends: to be ended from outside. Says the
 * attempt that it has begun; asked to, it lets another one begin beside it.
 */
const { url, schema, queueSchema, token } = JSON.parse(String(process.env.TEST_EXECUTOR));
const world = createWorld({ connectionString: url, schema, queueSchema, securityToken: token });
const say = (/** @type {unknown} */ message) =>
  parentPort?.postMessage(message) ?? process.send?.(message);

const handler = world.createQueueHandler('__wkf_step_', async (message) => {
  const { workflowRunId, stepId } = /** @type {{ workflowRunId: string, stepId: string }} */ (
    message
  );
  const { step } = await world.events.create(workflowRunId, {
    eventType: 'step_started',
    specVersion: 3,
    correlationId: stepId,
    eventData: { stepName: 's' },
  });
  say({ stepId, attempt: step?.attempt });
  await new Promise(() => {});
});

/** @param {{ workflowRunId: string, stepId: string }} message */
async function execute(message) {
  const response = await handler(
    new Request('http://localhost/.well-known/workflow/v1/step', {
      method: 'POST',
      headers: {
        'x-workflow-secret': token,
        'x-vqs-queue-name': '__wkf_step_s',
        'x-vqs-message-id': 'msg_1',
        'x-vqs-message-attempt': '1',
      },
      body: JSON.stringify(message),
    }),
  );
  say({ stepId: message.stepId, refused: await response.json() });
}

(parentPort ?? process).on('message', async (message) => {
  if (message !== 'close') return execute(message);
  await world.close();
  say({ stepId: 'close' });
});
