import { setTimeout as sleep } from 'node:timers/promises';
import { testDatabase } from '../__test__/support/database.mjs';
import { startPostgres } from '../scripts/support/postgres.mjs';
import { assembleCast } from './cast.mjs';

/** @typedef {Awaited<ReturnType<typeof setStage>>} Stage */

/**
 * A PostgreSQL of our own, the processes on it as a role that owns nothing, and the means to disturb
 * them.
 *
 * @param {{ after: (cleanup: () => Promise<void>) => void }} t
 * @param {{ ledger: string, random: import('./random.mjs').Random, log: (line: string) => void }} options
 */
export async function setStage(t, { ledger, random, log }) {
  delete process.env.WORKFLOW_POSTGRES_URL;
  const server = await startPostgres();
  // Cleanups run in the order of their registration.
  let processesGone = async () => {};
  t.after(() => processesGone());
  const database = await testDatabase(t, { url: server.url });
  t.after(() => server.stop());

  const { pool, schema, queueSchema } = database;
  const role = 'worlds';
  /** Until the server takes it. @param {string} sql */
  const insist = async (sql) => {
    for (;;) {
      try {
        return await pool.query(sql);
      } catch (error) {
        const { code = '' } = /** @type {{ code?: string }} */ (error);
        // Anything but an outage is a mistake of ours; a deadlock with the Worlds is not.
        if (/^[0-9A-Z]{5}$/.test(code) && !/^(57|08|40|53|XX)/.test(code)) throw error;
        await sleep(200);
      }
    }
  };
  const schemas = { world: schema, queue: queueSchema };
  const both = `${schema}, ${queueSchema}`;
  const grant = `
    GRANT USAGE ON SCHEMA ${both} TO ${role};
    GRANT ALL ON ALL TABLES IN SCHEMA ${both} TO ${role};
    GRANT ALL ON ALL SEQUENCES IN SCHEMA ${both} TO ${role};
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA ${both} TO ${role}`;
  await insist(`
    CREATE ROLE ${role} LOGIN PASSWORD '${role}';
    ${grant};
    CREATE FUNCTION public.disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END
    $$`);

  const url = new URL(server.url);
  url.username = role;
  url.password = role;
  const env = { ...database.env, TEST_LEDGER: ledger };
  const cleanups = /** @type {(() => Promise<void>)[]} */ ([]);
  processesGone = async () => {
    for (const cleanup of cleanups) await cleanup();
  };
  const cast = await assembleCast(
    { after: (cleanup) => void cleanups.push(cleanup) },
    { url: url.href, env, log },
  );
  const tables = { events: `${schema}.workflow_events`, jobs: `${queueSchema}.job` };

  return {
    server,
    database,
    cast,
    random,
    role,
    insist,
    /** @param {keyof typeof tables} table */
    diskFull: (table) => `
      CREATE TRIGGER disk_full BEFORE INSERT OR UPDATE ON ${tables[table]}
      FOR EACH ROW EXECUTE FUNCTION public.disk_full()`,
    diskFree: Object.values(tables)
      .map((table) => `DROP TRIGGER IF EXISTS disk_full ON ${table}`)
      .join(';'),
    /** @param {keyof typeof schemas} which */
    revoke: (which) =>
      `REVOKE INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA ${schemas[which]} FROM ${role}`,
    grant,
  };
}
