import type { PostgresUpstashWorldConfig, QStashOptions } from '@workflow/world-postgres';
import {
  createPostgresUpstashWorld,
  createQStashQueue,
  createWorld,
} from '@workflow/world-postgres';
import * as upstash from '@workflow/world-postgres/upstash';

declare const ulid: () => string;

const world = createPostgresUpstashWorld({
  databaseUrl: process.env.DATABASE_URL!,
  qstash: {
    token: process.env.QSTASH_TOKEN!,
    targetUrl: process.env.QSTASH_TARGET_URL!, // Your API endpoint
  },
  deploymentId: 'production',
});

// As the second README prints it.
const run = await world.runs.create({
  runId: ulid(),
  workflowName: 'my-workflow',
  status: 'pending',
  input: ['arg1', 'arg2'],
  deploymentId: 'production',
  executionContext: {},
  createdAt: new Date(),
  updatedAt: new Date(),
});

export const runId: string = run.runId;
export const settings: PostgresUpstashWorldConfig = { qstash: {} satisfies QStashOptions };
export const sameMakers: [typeof createPostgresUpstashWorld, typeof createQStashQueue] = [
  upstash.createWorld,
  upstash.createQStashQueue,
];
export const alone = createWorld({ queueFactory: () => createQStashQueue() });
