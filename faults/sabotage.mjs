import { setTimeout as sleep } from 'node:timers/promises';

/** The role of the Worlds, which owns nothing. */
const role = 'worlds';

/**
 * The means to disturb a database by SQL, and the role that suffers.
 *
 * @param {import('../__test__/support/database.mjs').TestDatabase} database
 */
export async function sabotage({ pool, schema, queueSchema }) {
  /** Until the server takes it. @param {string} sql */
  const insist = async (sql) => {
    for (;;) {
      try {
        return await pool.query(sql);
      } catch (error) {
        const { code = '' } = /** @type {{ code?: string }} */ (error);
        // Anything but an outage is a mistake of ours; a deadlock with the Worlds is not.
        if (/^[0-9A-Z]{5}$/.test(code) && !/^(08|25|40|53|57|XX)/.test(code)) throw error;
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
  // Faults make the server read-only for everybody else.
  await insist('ALTER ROLE world SET default_transaction_read_only = off');
  await insist(`
    CREATE ROLE ${role} LOGIN PASSWORD '${role}';
    ${grant};
    CREATE FUNCTION public.disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END
    $$`);

  /** @type {Record<string, string>} */
  const tables = {
    ...Object.fromEntries(
      ['events', 'runs', 'steps', 'hooks', 'waits', 'streams', 'stream_chunks'].map((name) => [
        name,
        `${schema}.workflow_${name}`,
      ]),
    ),
    jobs: `${queueSchema}.job`,
  };

  return {
    role,
    insist,
    /** Only the session of this test can use the table meanwhile. @param {string} table @param {number} ms */
    async lock(table, ms) {
      const client = await pool.connect().catch(() => undefined);
      client?.on('error', () => {});
      try {
        await client?.query('BEGIN');
        await client?.query(`LOCK TABLE ${tables[table]} IN ACCESS EXCLUSIVE MODE`);
        await sleep(ms);
        await client?.query('COMMIT');
      } catch {
        // The server went away, and the lock with it; or PostgreSQL ended a deadlock.
      } finally {
        client?.release(true);
      }
    },
    /** @param {string} table */
    diskFull: (table) => `
      CREATE TRIGGER disk_full BEFORE INSERT OR UPDATE ON ${tables[table]}
      FOR EACH ROW EXECUTE FUNCTION public.disk_full()`,
    diskFree: [tables.events, tables.jobs]
      .map((table) => `DROP TRIGGER IF EXISTS disk_full ON ${table}`)
      .join(';'),
    /** @param {keyof typeof schemas} which */
    revoke: (which) =>
      `REVOKE INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA ${schemas[which]} FROM ${role}`,
    grant,
  };
}
