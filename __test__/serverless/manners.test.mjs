// A World of a function instance: what it holds of PostgreSQL, and what it does with it.
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createPostgresUpstashWorld, createWorld } from '../../index.js';
import { startQStash } from '../../scripts/support/qstash.mjs';
import { eventually } from '../sdk/fixture.mjs';
import { bytes, openWorld, runningRun, ulid } from '../storage/fixture.mjs';
import { wiretap } from '../storage/wiretap.mjs';
import { startApp } from '../support/app.mjs';
import { testDatabase } from '../support/database.mjs';
import { runProgram } from '../support/program.mjs';
import { relay } from '../support/relay.mjs';

/** @typedef {import('node:test').TestContext} TestContext */

const database = await testDatabase({ after });
const { pool, schema, queueSchema } = database;
const writer = openWorld(database);
after(() => writer.close());

const APP = 'https://app.example';
const qstash = {
  token: 'a-token',
  targetUrl: APP,
  currentSigningKey: 'sig_1',
  baseUrl: 'http://127.0.0.1:9',
};

/** @param {string} url */
const serverlessEnv = (url) => ({
  ...database.env,
  WORKFLOW_TARGET_WORLD: '@workflow/world-postgres/upstash',
  WORKFLOW_POSTGRES_URL: url,
});

/**
 * @param {TestContext} t
 * @param {string} databaseUrl
 * @param {import('../../index.js').PostgresUpstashWorldConfig} [options]
 */
function serverlessWorld(t, databaseUrl, options) {
  const world = createPostgresUpstashWorld({
    databaseUrl,
    schema,
    queueSchema,
    qstash,
    ...options,
  });
  t.after(() => world.close());
  return world;
}

/** The last statements of connections. @param {(number | undefined)[]} ports @returns {Promise<string[]>} */
async function statementsOf(ports) {
  const query = 'SELECT query FROM pg_stat_activity WHERE client_port = ANY ($1)';
  return (await pool.query(query, [ports])).rows.map((row) => row.query);
}

/** @param {string[]} statements */
const listens = (statements) => statements.some((statement) => /listen/i.test(statement));

/** @param {string} name @param {string} runId @param {number} count */
async function writeNumbers(name, runId, count) {
  for (let n = 0; n < count; n++) await writer.writeToStream(name, runId, bytes(`${n} `));
}

const numbers = (/** @type {number} */ count) =>
  Array.from({ length: count }, (_, n) => `${n} `).join('');

test('connects when it first has to, not when it is made or refuses a stranger', async (t) => {
  const tap = await relay(t, database.url);
  const world = serverlessWorld(t, tap.url);
  await world.getDeploymentId();
  const handler = world.createQueueHandler('__wkf_step_', async () => {});
  const forged = new Request(APP, { method: 'POST', body: '{}' });
  assert.equal((await handler(forged)).status, 401);
  assert.equal(tap.ports().length, 0);
  await world.runs.list();
  assert.equal(tap.open(), 1);
});

test('listens with no connection, and has three at most, whatever is asked at once', async (t) => {
  const tap = await relay(t, database.url);
  const world = serverlessWorld(t, tap.url);
  const runId = await runningRun(writer);
  const names = Array.from({ length: 10 }, () => `strm_${ulid()}_user`);
  const reading = names.map(async (name) => new Response(await world.readFromStream(name)).text());
  await eventually(async () => (await world.health()).notifications === 'polling');
  /** @type {Set<string>} */
  const seen = new Set();
  let most = 0;
  await Promise.all([
    ...names.map(async (name) => {
      await writeNumbers(name, runId, 10);
      await writer.closeStream(name, runId);
    }),
    ...Array.from({ length: 100 }, async () => {
      await world.runs.list();
      most = Math.max(most, tap.open());
      for (const statement of await statementsOf(tap.ports())) seen.add(statement);
    }),
  ]);
  assert.deepEqual(
    await Promise.all(reading),
    names.map(() => numbers(10)),
  );
  assert.ok(most <= 3, `${most} connections`);
  assert.ok(seen.size > 0);
  assert.ok(!listens([...seen]), [...seen].join('\n'));
});

test('where another World would listen', async (t) => {
  const tap = await relay(t, database.url);
  const world = createWorld({ connectionString: tap.url, schema, queueSchema });
  t.after(() => world.close());
  const reader = (await world.readFromStream(`strm_${ulid()}_user`)).getReader();
  const reading = reader.read();
  await eventually(async () => listens(await statementsOf(tap.ports())));
  await reader.cancel();
  await reading;
});

test('closes the connections that rest, and connects again', async (t) => {
  const tap = await relay(t, database.url);
  const world = serverlessWorld(t, tap.url, { idleTimeoutSeconds: 1 });
  await Promise.all(Array.from({ length: 20 }, () => world.runs.list()));
  assert.ok(tap.open() > 0);
  await eventually(() => tap.open() === 0);
  assert.ok(Array.isArray((await world.runs.list()).data));
});

test('polls a stream, ten times a second at most, until the reader goes', async (t) => {
  const tap = await wiretap(t, database.url);
  const world = serverlessWorld(t, tap.url);
  const name = `strm_${ulid()}_user`;
  const runId = await runningRun(writer);
  const reader = (await world.readFromStream(name)).getReader();

  const begin = performance.now();
  const first = reader.read();
  await eventually(() => tap.count() >= 10);
  const [polls, ms] = [tap.count(), performance.now() - begin];
  assert.ok(polls <= ms / 100 + 2, `${polls} in ${ms} ms`);

  await writeNumbers(name, runId, 1);
  assert.equal(new TextDecoder().decode((await first).value), '0 ');

  const second = reader.read();
  await reader.cancel();
  await second;
  for (let quiet = -1; quiet !== tap.count(); await sleep(300)) quiet = tap.count();
});

test('gives a reader that comes in the middle the rest', async (t) => {
  const world = serverlessWorld(t, database.url);
  const name = `strm_${ulid()}_user`;
  const runId = await runningRun(writer);
  await writeNumbers(name, runId, 5);
  const reading = new Response(await world.readFromStream(name, 3)).text();
  await writer.writeToStream(name, runId, bytes('and more'));
  await writer.closeStream(name, runId);
  assert.equal(await reading, '3 4 and more');
});

test('goes on after a freeze in which its connections were cut', async (t) => {
  const tap = await relay(t, database.url);
  let url = '';
  const qstash = await startQStash(t, { route: (target) => target.replace(APP, url) });
  const app = await startApp({
    env: { ...serverlessEnv(tap.url), ...qstash.env(APP) },
    start: false,
  });
  t.after(() => app.kill());
  url = app.url;
  const run = async () => {
    const runId = await app.call('start', 'sequential', [2]);
    return app.call('result', runId);
  };
  assert.equal(await run(), 3);
  process.kill(app.pid, 'SIGSTOP');
  // Longer than a connection may rest unasked.
  await sleep(1500);
  tap.heal();
  process.kill(app.pid, 'SIGCONT');
  assert.equal(await run(), 3, app.logs());
});

test('holds no process that has nothing else to do', async () => {
  const program = `
    import { getWorld } from 'workflow/runtime';
    const { data } = await getWorld().runs.list();
    console.log(Array.isArray(data));`;
  const { code, output, errors } = await runProgram(program, {
    env: {
      ...serverlessEnv(database.url),
      QSTASH_TOKEN: qstash.token,
      QSTASH_TARGET_URL: qstash.targetUrl,
    },
  });
  assert.deepEqual([code, output], [0, 'true\n'], errors);
});
