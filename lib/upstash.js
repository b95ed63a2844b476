import { optionalString, reading } from './input.js';
import { createQStashQueue } from './qstash.js';
import { makeWorld } from './world.js';

/** A function instance rarely does more at the same time, and many instances share one database. */
const POOL_SIZE = 3;
const IDLE_TIMEOUT_SECONDS = 10;
const DEPLOYMENT_ID = 'postgres-upstash';

/**
 * PostgreSQL for what is stored, QStash for what is to be done: nothing runs between requests.
 * @param {import('../upstash.js').PostgresUpstashWorldConfig} [options]
 */
export function createPostgresUpstashWorld(options) {
  const { databaseUrl, qstash, deploymentId, ...rest } = reading(() => ({ ...options }));
  const settings = {
    maxPoolSize: POOL_SIZE,
    idleTimeoutSeconds: IDLE_TIMEOUT_SECONDS,
    listen: false,
    ...rest,
    ...(databaseUrl !== undefined && { connectionString: databaseUrl }),
    queueFactory: () => createQStashQueue(qstash),
  };
  return makeWorld(settings, {
    anonymous: options === undefined,
    deploymentId: () =>
      optionalString('deploymentId', deploymentId) ?? (process.env.DEPLOYMENT_ID || DEPLOYMENT_ID),
  });
}
