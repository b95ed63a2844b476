// A role that may create in `public`, as every role may in databases of before PostgreSQL 15, puts functions and
// operators there whose argument types fit better than those of PostgreSQL's own. None of them may be called.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import pg from 'pg';
import { createWorld } from '../../index.js';
import { setup } from '../../lib/setup.js';
import { startPostgres } from '../../scripts/support/postgres.mjs';
import { bytes, event, pendingRun, stepCreated } from '../storage/fixture.mjs';

const server = process.env.TEST_POSTGRES_URL ? undefined : await startPostgres();
const url = new URL(process.env.TEST_POSTGRES_URL ?? /** @type {string} */ (server?.url));
const name = `hijack_${randomBytes(6).toString('hex')}`;
const [schema, queueSchema] = ['ours', 'ours_queue'];
const admin = new pg.Pool({ connectionString: url.href, max: 1 });
const own = new URL(url);
own.pathname = `/${name}`;
// The traps must not catch the queries of this test itself.
const options = '-c search_path=pg_catalog';
const pool = new pg.Pool({ connectionString: own.href, max: 1, options });

// Its database is dropped.
for (const each of [admin, pool]) each.on('error', () => {});
after(async () => {
  await pool.end();
  await admin.query(`DROP DATABASE ${name} WITH (FORCE)`);
  await admin.query(`DROP ROLE ${name}`);
  await admin.end();
  await server?.stop();
});

/** Our SQL, for the names that are called in it. */
const folders = [
  'migrations',
  'migrations/functions',
  'src/queue/sql',
  'src/storage/sql',
  'src/streams/sql',
];
const files = folders.flatMap((folder) =>
  readdirSync(folder)
    .filter((file) => file.endsWith('.sql'))
    .map((file) => ({ file: `${folder}/${file}`, sql: readFileSync(`${folder}/${file}`, 'utf8') })),
);
const called = [...new Set(files.flatMap(({ sql }) => sql.match(/\b[a-z_]+(?=\()/g) ?? []))];

/** Those of the arguments in our SQL. */
const TYPES = `ARRAY['text','integer','bigint','smallint','numeric','double precision','boolean','timestamptz',
  'interval','bytea','jsonb','json','uuid','name','regclass','text[]','uuid[]','bigint[]','integer[]','bytea[]',
  'boolean[]','information_schema.sql_identifier']`;

/** Traps for functions of one and two arguments, or more of a few types, and for all operators. */
const TRAPS = `
  DO $do$
  DECLARE types text[] := ${TYPES} || $1; few text[] := ARRAY['text','integer','bigint','boolean']; f text; l text; r text; x text; o text; n text;
  BEGIN
    FOREACH f IN ARRAY string_to_array($2, ',') LOOP
      FOREACH l IN ARRAY types LOOP
        PERFORM public.trap(f, l);
        FOREACH r IN ARRAY types LOOP
          PERFORM public.trap(f, l || ',' || r);
          IF l = ANY (few) AND r = ANY (few) THEN
            FOREACH x IN ARRAY few LOOP PERFORM public.trap(f, l || ',' || r || ',' || x); END LOOP;
          END IF;
        END LOOP;
      END LOOP;
    END LOOP;
    FOREACH l IN ARRAY types LOOP
      FOREACH r IN ARRAY types LOOP
        n := md5(l || r);
        EXECUTE format('CREATE OR REPLACE FUNCTION public.trap_%s(%s, %s) RETURNS boolean LANGUAGE plpgsql AS $f$ BEGIN RAISE ''hijacked by an operator''; END $f$', n, l, r);
        FOREACH o IN ARRAY ARRAY['=','<>','<','>','<=','>=','+','-','*','/','%','||','->','->>','~~'] LOOP
          IF COALESCE(to_regoperator(format('pg_catalog.%s(%s,%s)', o, l, r)), to_regoperator(format('public.%s(%s,%s)', o, l, r))) IS NULL THEN
            EXECUTE format('CREATE OPERATOR public.%s (FUNCTION = public.trap_%s, LEFTARG = %s, RIGHTARG = %s)', o, n, l, r);
          END IF;
        END LOOP;
      END LOOP;
    END LOOP;
  END $do$`;

/** @param {string[]} types in addition */
async function setTraps(types) {
  const { rows } = await pool.query(
    'SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = $1::regnamespace AND proname = ANY ($2)',
    ['pg_catalog', called],
  );
  const functions = rows.map(({ proname }) => proname).join();
  await pool.query(`SET ROLE ${name}`);
  await pool.query(`
    CREATE OR REPLACE FUNCTION public.trap(f text, arguments text) RETURNS void LANGUAGE plpgsql AS $f$
    BEGIN
      IF to_regprocedure(format('pg_catalog.%I(%s)', f, arguments)) IS NULL THEN
        EXECUTE format('CREATE OR REPLACE FUNCTION public.%I(%s) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE ''hijacked by a function''; END $$', f, arguments);
      END IF;
    END $f$`);
  const text = `ARRAY[${types.map((type) => pg.escapeLiteral(type))}]::text[]`;
  await pool.query(
    TRAPS.replace('$1', () => text).replace('$2', () => pg.escapeLiteral(functions)),
  );
  await pool.query('RESET ROLE');
}

/** The objects of ours that depend on something in `public`. */
async function hijacked() {
  const { rows } = await pool.query(`
    SELECT pg_describe_object(d.classid, d.objid, 0) AS ours, pg_describe_object(d.refclassid, d.refobjid, 0) AS theirs
    FROM pg_depend d
    WHERE (d.refclassid, d.refobjid) IN (
        SELECT 'pg_proc'::regclass, oid FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_operator WHERE oprnamespace = 'public'::regnamespace)
      AND NOT (d.classid = 'pg_operator'::regclass
               AND d.objid IN (SELECT oid FROM pg_operator WHERE oprnamespace = 'public'::regnamespace))`);
  return rows;
}

before(async () => {
  await admin.query(`CREATE ROLE ${name}`);
  await admin.query(`CREATE DATABASE ${name}`);
  await pool.query(`GRANT CREATE ON SCHEMA public TO ${name}`);
  await setTraps([]);
  await setup({ connectionString: own.href, schema, queueSchema });
  // A dashboard's role, say: it may read our tables.
  await pool.query(`GRANT USAGE ON SCHEMA ${schema}, ${queueSchema} TO ${name}`);
});

test('the setup makes nothing that calls what is in public', async () => {
  assert.deepEqual(await hijacked(), []);
});

test('each function sets search_path, or was read when it was made', async () => {
  const { rows } = await pool.query(
    `SELECT p.oid::regprocedure::text AS f FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
     WHERE p.pronamespace = '${schema}'::regnamespace AND p.prosqlbody IS NULL
       AND NOT 'search_path=pg_catalog, pg_temp' = ANY (COALESCE(p.proconfig, '{}'))`,
  );
  assert.deepEqual(rows, []);
});

describe('no statement of the core calls what is in public', () => {
  /** The types of its parameters, where it does not just call a function of ours. @type {Record<string, string>} */
  const parameters = {
    'announce.sql': 'text, text, text',
    'columns.sql': 'text',
    'create_queues.sql': 'text, text, jsonb, jsonb',
    'depth.sql': 'text, text',
    'oldest.sql': 'text, text',
    'purge.sql': 'text, text, bigint',
    'queues.sql': 'text, text',
    'rescued.sql': 'text[], integer[]',
    'confirm_lease.sql': 'text, text, bigint, bigint',
    'release_leases.sql': 'text[], text[], bigint[], boolean',
    'renew_leases.sql': 'text[], text[], bigint[], bigint, boolean',
    'events_list.sql': 'text, text, integer, boolean',
    'hooks_list.sql': 'text, text, text, text, boolean',
    'run_get.sql': 'text, boolean',
    'run_of_correlation.sql': 'text, bigint',
    'runs_list.sql': 'text, text, text, boolean',
    'step_get.sql': 'text, text, boolean',
    'steps_list.sql': 'text, text, boolean',
    'info.sql': 'text',
    'list.sql': 'text',
    'read.sql': 'text, bigint, bigint',
  };
  before(() => setTraps([`${queueSchema}.job_state`]));

  for (const { file, sql } of files.filter(({ file }) => file.startsWith('src/'))) {
    const types = parameters[file.slice(file.lastIndexOf('/') + 1)];
    if (types === undefined) continue;
    test(file, async () => {
      const text = sql
        .replaceAll(':"schema"', schema)
        .replaceAll(':"queue_schema"', queueSchema)
        .replaceAll(':filters', '')
        .replaceAll(':direction', 'DESC')
        .replaceAll(/:(rows|chunks)\b/g, '10');
      // Its body is read now, and what it calls is noted.
      await pool.query(`SET search_path = "$user", public`);
      try {
        await pool.query(
          `CREATE OR REPLACE FUNCTION pg_temp.statement(${types}) RETURNS void LANGUAGE sql BEGIN ATOMIC ${text}; END`,
        );
      } finally {
        await pool.query('SET search_path = pg_catalog');
      }
      const found = await hijacked();
      await pool.query(`DROP FUNCTION pg_temp.statement`);
      assert.deepEqual(found, []);
    });
  }
});

test('a World works', async () => {
  const world = /** @type {import('../storage/fixture.mjs').World} */ (
    /** @type {any} */ (
      createWorld({ connectionString: own.href, schema, queueSchema, securityToken: name })
    )
  );
  try {
    const runId = await pendingRun(world);
    await world.events.create(runId, event('run_started'));
    const stepId = 'step_1';
    await world.events.create(runId, stepCreated(stepId));
    await world.events.create(runId, event('step_started', stepId));
    await world.events.create(runId, event('step_completed', stepId, { result: bytes('"r"') }));
    await world.queue('__wkf_workflow_w', { runId }, { delaySeconds: 5 });
    await world.writeToStream('stream', runId, bytes('chunk'));
    assert.equal((await world.runs.get(runId)).status, 'running');
    assert.equal((await world.steps.list({ runId })).data.length, 1);
    assert.equal((await world.events.list({ runId })).data.length, 5);
  } finally {
    await world.close();
  }
});
