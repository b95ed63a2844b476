import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { setup } from '../../lib/setup.js';
import { startPostgres } from '../../scripts/support/postgres.mjs';

/**
 * @typedef {object} TestDatabase
 * @property {string} url
 * @property {string} schema
 * @property {string} queueSchema
 * @property {pg.Pool} pool
 * @property {Record<string, string>} env for a process whose World is to use this database
 */

/** @typedef {{ after: (cleanup: () => Promise<void>) => void }} Test a test context, or node:test */

/**
 * Schemas of our own, set up, dropped after the test.
 *
 * @param {Test} t
 * @param {{ url?: string }} [options] `url` of a server that the test itself has started
 * @returns {Promise<TestDatabase>}
 */
export async function testDatabase(t, { url = process.env.TEST_POSTGRES_URL } = {}) {
  const server = url ? undefined : await startPostgres();
  url ??= /** @type {string} */ (server?.url);
  const schema = `t_${randomBytes(6).toString('hex')}`;
  const queueSchema = `${schema}_queue`;
  const pool = new pg.Pool({ connectionString: url, max: 4 });
  // The test may restart the server.
  pool.on('error', () => {});
  t.after(async () => {
    await pool.query(`DROP SCHEMA IF EXISTS ${schema}, ${queueSchema} CASCADE`);
    await pool.end();
    await server?.stop();
  });
  await setup({ connectionString: url, schema, queueSchema });
  const env = {
    WORKFLOW_TARGET_WORLD: '@workflow/world-postgres',
    WORKFLOW_POSTGRES_URL: url,
    WORKFLOW_POSTGRES_SCHEMA: schema,
    WORKFLOW_POSTGRES_QUEUE_SCHEMA: queueSchema,
    WORKFLOW_POSTGRES_SECURITY_TOKEN: 'token-of-the-tests',
  };
  return { url, schema, queueSchema, pool, env };
}
