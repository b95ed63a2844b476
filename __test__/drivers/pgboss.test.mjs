import { randomUUID } from 'node:crypto';
import { after } from 'node:test';
import { createPgBossFunctionProxyQueue, createPgBossHttpProxyQueue } from '../../index.js';
import { setup } from '../../lib/setup.js';
import { freePort } from '../../scripts/support/postgres.mjs';
import { testQueueDriver } from '../../testing.js';
import { testDatabase } from '../support/database.mjs';

/** @typedef {import('../../testing.js').DriverTarget} DriverTarget */

const { url: connectionString, schema, queueSchema } = await testDatabase({ after });
let instances = 0;

/**
 * Another size of the pool is another core, as if in another process.
 * @param {DriverTarget} target
 */
async function settings({ queue, securityToken }) {
  const jobPrefix = `${queue}_`;
  await setup({ connectionString, schema, queueSchema, jobPrefix });
  return {
    connectionString,
    schema,
    queueSchema,
    jobPrefix,
    securityToken,
    maxPoolSize: 2 + instances++,
    log: () => {},
  };
}

/** @type {Record<string, (target: DriverTarget) => Promise<import('../../index.js').QueueDriver>>} */
const drivers = {
  HTTP: async (target) =>
    createPgBossHttpProxyQueue({ ...(await settings(target)), baseUrl: target.baseUrl }),
  functions: async (target) =>
    createPgBossFunctionProxyQueue({
      ...(await settings(target)),
      stepEntrypoint: target.stepEntrypoint,
      workflowEntrypoint: target.workflowEntrypoint,
    }),
};

for (const [name, createDriver] of Object.entries(drivers)) {
  testQueueDriver(`pg-boss by ${name}`, createDriver, {
    connectionString,
    schema,
    createUnreachableDriver: async ({ securityToken }) =>
      createPgBossHttpProxyQueue({
        connectionString: `postgres://nobody@127.0.0.1:${await freePort()}/${randomUUID()}`,
        securityToken,
        log: () => {},
      }),
  });
}
