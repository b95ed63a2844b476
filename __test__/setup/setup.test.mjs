import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { getRollbackPlans, PgBoss } from 'pg-boss';
import { createWorld } from '../../index.js';
import { startPostgres } from '../../scripts/support/postgres.mjs';
import { runCreated } from '../storage/fixture.mjs';

const server = process.env.TEST_POSTGRES_URL ? undefined : await startPostgres();
const url = process.env.TEST_POSTGRES_URL ?? /** @type {string} */ (server?.url);
const pool = new pg.Pool({ connectionString: url, max: 4 });
after(async () => {
  await pool.end();
  await server?.stop();
});

const COMMAND = fileURLToPath(new URL('../../bin/workflow-postgres-setup.js', import.meta.url));
const { host, password } = new URL(url);

/**
 * Names of schemas that do not exist, and will not after the test.
 *
 * @param {import('node:test').TestContext} t
 */
function names(t) {
  const schema = `t_${randomBytes(6).toString('hex')}`;
  const queueSchema = `${schema}_queue`;
  t.after(() => pool.query(`DROP SCHEMA IF EXISTS ${schema}, ${queueSchema} CASCADE`));
  const env = {
    WORKFLOW_POSTGRES_URL: url,
    WORKFLOW_POSTGRES_SCHEMA: schema,
    WORKFLOW_POSTGRES_QUEUE_SCHEMA: queueSchema,
  };
  return { schema, queueSchema, env };
}

/**
 * Runs the command.
 *
 * @param {Record<string, string>} env
 * @param {string[]} [args]
 * @param {string} [cwd]
 * @returns {Promise<{ code: number, output: string, errors: string }>}
 */
function setup(env, args = [], cwd = tmpdir()) {
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      [COMMAND, ...args],
      { cwd, env: { PATH: process.env.PATH, ...env }, timeout: 120_000 },
      (error, output, errors) => {
        assert.ok(!`${output}${errors}`.includes(`:${password}@${host}`), 'the password is told');
        resolve({ code: Number(error ? (error.code ?? -1) : 0), output, errors });
      },
    );
  });
}

/** @param {Parameters<typeof setup>} args */
async function setUp(...args) {
  const done = await setup(...args);
  assert.equal(done.code, 0, done.errors + done.output);
  return done.output;
}

/** @param {Parameters<typeof setup>} args */
async function refused(...args) {
  const { code, errors, output } = await setup(...args);
  assert.equal(code, 1, output);
  assert.match(errors, /^Setup failed: /);
  assert.doesNotMatch(errors, /\n\s+at /, 'a stack is no message');
  return errors;
}

/** @param {string} schema */
async function relations(schema) {
  const { rows } = await pool.query(
    `SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
     WHERE nspname = $1 AND relkind IN ('r', 'p') ORDER BY 1`,
    [schema],
  );
  return rows.map(({ relname }) => relname);
}

/** The World of these schemas starts and works. @param {{ schema: string, queueSchema: string }} names */
async function assertWorks({ schema, queueSchema }, connectionString = url) {
  const world = createWorld({
    connectionString,
    schema,
    queueSchema,
    securityToken: 'token-of-the-tests',
  });
  try {
    await world.start();
    const { run } = await world.events.create(null, /** @type {any} */ (runCreated()));
    const { runId } = /** @type {any} */ (run);
    await world.queue('__wkf_workflow_w', { runId });
    await world.writeToStream('strm_x', runId, 'chunk');
    return runId;
  } finally {
    await world.close();
  }
}

describe('the setup command', () => {
  test('sets up a database that has nothing of ours', async (t) => {
    const { schema, queueSchema, env } = names(t);
    const output = await setUp(env);
    assert.match(output, new RegExp(`Schema "${schema}": created`));
    assert.match(output, new RegExp(`Schema "${queueSchema}": (created|filled)`));
    assert.match(output, /Ready\.\n$/);
    assert.ok((await relations(schema)).includes('workflow_events'));
    assert.ok((await relations(queueSchema)).includes('job'));
    await assertWorks({ schema, queueSchema });
  });

  test('may be repeated, and loses nothing', async (t) => {
    const { schema, queueSchema, env } = names(t);
    await setUp(env);
    const runId = await assertWorks({ schema, queueSchema });
    const output = await setUp(env);
    assert.match(output, new RegExp(`Schema "${schema}": up to date`));
    assert.match(output, new RegExp(`Schema "${queueSchema}": up to date`));
    const world = createWorld({ connectionString: url, schema, queueSchema });
    assert.equal((await world.runs.get(runId)).status, 'pending');
    await world.close();
  });

  test('may be run by several processes at once', async (t) => {
    const { schema, queueSchema, env } = names(t);
    await Promise.all([1, 2, 3, 4].map(() => setUp(env)));
    await assertWorks({ schema, queueSchema });
  });

  test('may be repeated under a working World', async (t) => {
    const { schema, queueSchema, env } = names(t);
    await setUp(env);
    const world = createWorld({ connectionString: url, schema, queueSchema });
    const settingUp = Promise.all([setUp(env), setUp(env)]);
    let done = false;
    settingUp.finally(() => {
      done = true;
    });
    while (!done) {
      const { run } = await world.events.create(null, /** @type {any} */ (runCreated()));
      await world.queue('__wkf_workflow_w', { runId: /** @type {any} */ (run).runId });
    }
    await settingUp;
    await world.close();
  });

  test('takes its settings from options, the environment and .env, in this order', async (t) => {
    const [option, environment, file] = [names(t), names(t), names(t)];
    const folder = await mkdtemp(path.join(tmpdir(), 'setup-'));
    t.after(() => rm(folder, { recursive: true }));
    await writeFile(
      path.join(folder, '.env'),
      Object.entries(file.env)
        .map(([name, value]) => `${name}="${value}"\n`)
        .join(''),
    );
    await setUp({}, [], folder);
    assert.ok((await relations(file.schema)).length > 0);
    assert.equal((await relations(environment.schema)).length, 0);
    await setUp(environment.env, [], folder);
    assert.ok((await relations(environment.schema)).length > 0);
    const args = ['--schema', option.schema, '--queue-schema', option.queueSchema];
    await setUp(environment.env, args, folder);
    assert.ok((await relations(option.schema)).length > 0);
    assert.ok((await relations(option.queueSchema)).length > 0);
  });

  test('prefers WORKFLOW_POSTGRES_URL to DATABASE_URL, and takes either', async (t) => {
    const { env } = names(t);
    const nowhere = 'mysql://nowhere';
    await setUp({ ...env, DATABASE_URL: nowhere });
    const { WORKFLOW_POSTGRES_URL: _, ...rest } = env;
    await setUp({ ...rest, DATABASE_URL: url });
    assert.match(
      await refused({ ...env, WORKFLOW_POSTGRES_URL: nowhere, DATABASE_URL: url }),
      /WORKFLOW_POSTGRES_URL/,
    );
  });

  test('makes the queues of a prefix', async (t) => {
    const { queueSchema, env } = names(t);
    await setUp(env, ['--job-prefix', 'shop_']);
    const { rows } = await pool.query(`SELECT name FROM ${queueSchema}.queue ORDER BY name`);
    assert.ok(
      rows.length > 0 && rows.every(({ name }) => name.startsWith('shop_')),
      JSON.stringify(rows),
    );
  });

  test('explains itself without a database', async () => {
    const output = await setUp({ WORKFLOW_POSTGRES_URL: 'nonsense' }, ['--help']);
    assert.match(output, /Usage: workflow-postgres-setup/);
  });
});

describe('the setup command refuses, and changes nothing,', () => {
  test('a wrong option', async (t) => {
    const { env } = names(t);
    await refused(env, ['--no-such-option']);
    await refused(env, ['positional']);
    assert.match(await refused(env, ['--schema', 'a"b']), /schema/);
    assert.match(await refused(env, ['--schema', 'public']), /public/);
  });

  test('a wrong password, an unknown database, a server that is not there', async (t) => {
    const { env } = names(t);
    /** @param {(url: URL) => void} change */
    const changed = (change) => {
      const other = new URL(url);
      change(other);
      return { ...env, WORKFLOW_POSTGRES_URL: other.href };
    };
    const errors = await Promise.all([
      refused(
        changed((other) => {
          other.pathname = '/no_such_database';
        }),
      ),
      refused(
        changed((other) => {
          other.port = '1';
        }),
      ),
      refused(
        changed((other) => {
          other.password = 'hunter2';
        }),
      ),
    ]);
    assert.match(errors[0], /no_such_database/);
    for (const error of errors) {
      assert.match(error, /WORKFLOW_POSTGRES_URL/);
      assert.doesNotMatch(error, /hunter2/);
    }
  });

  test('a schema of somebody else', async (t) => {
    const { schema, queueSchema, env } = names(t);
    await pool.query(`CREATE SCHEMA ${schema} CREATE TABLE workflow_runs (id text)`);
    const error = await refused(env);
    assert.match(error, new RegExp(`"${schema}".*WORKFLOW_POSTGRES_SCHEMA`, 's'));
    assert.deepEqual(await relations(schema), ['workflow_runs']);
    assert.deepEqual(await relations(queueSchema), []);
  });

  test('a schema of somebody else who has a table named as our ledger', async (t) => {
    const { schema, env } = names(t);
    await pool.query(`CREATE SCHEMA ${schema} CREATE TABLE workflow_migrations (id text)`);
    await refused(env);
    assert.deepEqual(await relations(schema), ['workflow_migrations']);
  });

  test('a queue schema of somebody else', async (t) => {
    const { queueSchema, env } = names(t);
    await pool.query(`CREATE SCHEMA ${queueSchema} CREATE TABLE job (id text)`);
    const error = await refused(env);
    assert.match(error, new RegExp(`"${queueSchema}".*WORKFLOW_POSTGRES_QUEUE_SCHEMA`, 's'));
    assert.deepEqual(await relations(queueSchema), ['job']);
  });

  test('tables of a newer version', async (t) => {
    const { schema, queueSchema, env } = names(t);
    await setUp(env);
    await pool.query(
      `INSERT INTO ${schema}.workflow_migrations (version, name) VALUES (999, 'future')`,
    );
    const error = await refused(env);
    assert.match(error, /999/);
    const securityToken = 'token-of-the-tests';
    const world = createWorld({ connectionString: url, schema, queueSchema, securityToken });
    await assert.rejects(world.start(), { code: 'NOT_SET_UP', message: /999/ });
    await world.close();
  });

  test('a role that may not create', async (t) => {
    const { schema, queueSchema, env } = names(t);
    const reader = await role(t);
    assert.match(await refused({ ...env, WORKFLOW_POSTGRES_URL: reader.url }), /permission/i);
    assert.deepEqual([await relations(schema), await relations(queueSchema)], [[], []]);
  });
});

/**
 * A role that may connect and nothing else.
 *
 * @param {import('node:test').TestContext} t
 */
async function role(t) {
  const name = `r_${randomBytes(6).toString('hex')}`;
  await pool.query(`CREATE ROLE ${name} LOGIN PASSWORD 'reader'`);
  t.after(async () => {
    await pool.query(`DROP OWNED BY ${name} CASCADE; DROP ROLE ${name}`);
  });
  const own = new URL(url);
  own.username = name;
  own.password = 'reader';
  return { name, url: own.href };
}

test('schemas that an administrator made for a role without rights of its own are set up', async (t) => {
  const { schema, queueSchema, env } = names(t);
  const app = await role(t);
  await pool.query(
    `CREATE SCHEMA ${schema} AUTHORIZATION ${app.name}; CREATE SCHEMA ${queueSchema} AUTHORIZATION ${app.name}`,
  );
  await setUp({ ...env, WORKFLOW_POSTGRES_URL: app.url });
  await assertWorks({ schema, queueSchema }, app.url);
});

test('a schema that belongs to a role of which the setup’s is no member is refused', async (t) => {
  const { schema, queueSchema, env } = names(t);
  const [app, stranger] = [await role(t), await role(t)];
  const owner = new URL(stranger.url).username;
  for (const [theirs, variable] of [
    [schema, 'WORKFLOW_POSTGRES_SCHEMA'],
    [queueSchema, 'WORKFLOW_POSTGRES_QUEUE_SCHEMA'],
  ]) {
    await pool.query(`DROP SCHEMA IF EXISTS ${schema}, ${queueSchema} CASCADE`);
    for (const name of [schema, queueSchema]) {
      const authority = name === theirs ? owner : new URL(app.url).username;
      await pool.query(`CREATE SCHEMA ${name} AUTHORIZATION ${authority}`);
    }
    await pool.query(`GRANT ALL ON SCHEMA ${theirs} TO ${new URL(app.url).username}`);
    const error = await refused({ ...env, WORKFLOW_POSTGRES_URL: app.url });
    assert.match(error, new RegExp(`belongs to the role "${owner}"[^]*OWNER TO[^]*${variable}`));
    assert.deepEqual(await relations(theirs), []);
  }
});

test('a role that may only use the tables is enough to work', async (t) => {
  const { schema, queueSchema, env } = names(t);
  await setUp(env);
  const app = await role(t);
  await pool.query(`
    GRANT USAGE ON SCHEMA ${schema}, ${queueSchema} TO ${app.name};
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA ${schema}, ${queueSchema} TO ${app.name}`);
  await assertWorks({ schema, queueSchema }, app.url);
});

test('a pg-boss of the user’s own is left as it is, and shared', async (t) => {
  const { schema, queueSchema, env } = names(t);
  const boss = new PgBoss({ connectionString: url, schema: queueSchema });
  boss.on('error', () => {});
  await boss.start();
  t.after(() => boss.stop({ graceful: false }));
  await boss.createQueue('mine');
  const id = await boss.send('mine', { a: 1 });
  const comment = () =>
    pool.query(`SELECT obj_description('${queueSchema}.version'::regclass, 'pg_class') AS text`);
  const before = (await comment()).rows[0].text;

  await setUp(env);
  await assertWorks({ schema, queueSchema });
  assert.equal((await comment()).rows[0].text, before);
  assert.deepEqual(
    (await boss.fetch('mine')).map((job) => [job.id, job.data]),
    [[id, { a: 1 }]],
  );
});

test('older pg-boss tables of ours are brought up to date, those of the user’s are not', async (t) => {
  const { schema, queueSchema, env } = names(t);
  await setUp(env);
  const version = async () =>
    (await pool.query(`SELECT version FROM ${queueSchema}.version`)).rows[0].version;
  const newest = await version();
  const older = async () => pool.query(getRollbackPlans(queueSchema, newest));
  await older();
  assert.equal(await version(), newest - 1);
  await Promise.all([setUp(env), setUp(env), setUp(env)]);
  assert.equal(await version(), newest);
  await assertWorks({ schema, queueSchema });

  await older();
  await pool.query(`COMMENT ON TABLE ${queueSchema}.version IS NULL`);
  assert.match(await setUp(env), /of your own/);
  assert.equal(await version(), newest - 1);
});
