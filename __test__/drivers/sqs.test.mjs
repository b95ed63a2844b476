import { after } from 'node:test';
import { createInMemorySqs, createSqsQueue } from '../../examples/queues/in-memory-sqs.mjs';
import { testQueueDriver } from '../../testing.js';
import { testDatabase } from '../support/database.mjs';

const seed = Number(process.env.TEST_SEED ?? Date.now() % 2 ** 31);
const { url: connectionString, schema } = await testDatabase({ after });

for (const delays of [true, false]) {
  const sqs = createInMemorySqs({ seed, delays });
  testQueueDriver(
    `a queue like SQS, at its worst${delays ? '' : ', that knows no delays'} (TEST_SEED=${seed})`,
    ({ queue, proxy }) =>
      createSqsQueue({
        sqs,
        stepQueueUrl: `memory:${queue}-steps`,
        flowQueueUrl: `memory:${queue}-flows`,
        proxy,
        visibilitySeconds: 1,
      }),
    {
      duplicates: true,
      delays,
      // JSON and base64 take their part of SQS's limit.
      largestBody: 700_000,
      connectionString,
      schema,
      createUnreachableDriver: ({ proxy }) =>
        createSqsQueue({
          sqs: {
            ...sqs,
            sendMessage: async () => {
              throw new Error('no route to host');
            },
          },
          stepQueueUrl: 'memory:steps',
          flowQueueUrl: 'memory:flows',
          proxy,
        }),
    },
  );
}
