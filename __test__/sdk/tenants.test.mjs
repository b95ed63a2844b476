import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { after, test } from 'node:test';
import { createPgBossFunctionProxyQueue, createWorld } from '@workflow/world-postgres';
import { setup } from '../../lib/setup.js';
import { startPostgres } from '../../scripts/support/postgres.mjs';
import { wiretap } from '../storage/wiretap.mjs';
import { root } from '../support/app.mjs';
import { testDatabase } from '../support/database.mjs';
import { eventually, fixture, repeated } from './fixture.mjs';

/** @typedef {import('../support/app.mjs').App} App */
/** @typedef {Awaited<ReturnType<typeof fixture>>} Fixture */
/** @typedef {Fixture & { jobPrefix: string }} Tenant */
/** @typedef {{ id: string, state: string, started_on: Date, heartbeat_on: Date, expired: boolean }} Job */

const server = process.env.TEST_POSTGRES_URL ? undefined : await startPostgres();
after(async () => server?.stop());
const url = process.env.TEST_POSTGRES_URL ?? /** @type {string} */ (server?.url);

/** @param {Fixture} place @param {string} jobPrefix @returns {Promise<Tenant>} */
async function tenant(place, jobPrefix) {
  const { schema, queueSchema } = place.database;
  await setup({ connectionString: url, schema, queueSchema, jobPrefix });
  return {
    ...place,
    jobPrefix,
    app: ({ env, ...options } = {}) =>
      place.app({ ...options, env: { WORKFLOW_POSTGRES_JOB_PREFIX: jobPrefix, ...env } }),
  };
}

/** How two tenants share a database. */
const layouts = {
  /** @param {import('../support/database.mjs').Test} t */
  async 'schemas of their own'(t) {
    const places = [await fixture(t, { url }), await fixture(t, { url })];
    return Promise.all(places.map((place) => tenant(place, 'workflow_')));
  },
  /** The name of one begins with that of the other. @param {import('../support/database.mjs').Test} t */
  async 'prefixes of their own in the same schemas'(t) {
    const place = await fixture(t, { url });
    return [await tenant(place, 'shop_'), await tenant(place, 'shop_two_')];
  },
};

/** The runs that a tenant sees. @param {import('../support/database.mjs').Test} t @param {Tenant} tenant */
async function listed(t, { database: { schema, queueSchema }, jobPrefix }) {
  const world = createWorld({ connectionString: url, schema, queueSchema, jobPrefix });
  t.after(() => world.close());
  const { data } = await world.runs.list();
  return data.map(({ runId }) => runId).sort();
}

/** @param {Tenant} tenant @returns {Promise<Job[]>} */
async function jobsOf({ database: { pool, queueSchema }, jobPrefix }) {
  const { rows } = await pool.query(
    `SELECT id, state::text, started_on, heartbeat_on,
       state = 'active' AND heartbeat_on + heartbeat_seconds * interval '1 second' < now() AS expired
     FROM ${queueSchema}.job WHERE name = ANY ($1) ORDER BY id`,
    [[`${jobPrefix}flows`, `${jobPrefix}steps`]],
  );
  return rows;
}

/** @param {App} worker */
const deliveriesOf = async (worker) => (await worker.call('health')).queue.deliveries;

/** @param {App} app @param {number} count @param {string} name @param {unknown[]} args @returns {Promise<string[]>} */
const startRuns = (app, count, name, args) =>
  Promise.all(Array.from({ length: count }, () => app.call('start', name, args)));

/** By which processes the steps of these runs were executed. @param {Tenant} tenant @param {string[]} runIds */
async function executorsOf({ ledger }, runIds) {
  const entries = (await ledger()).filter(({ runId }) => runIds.includes(runId));
  return [...new Set(entries.map(({ pid }) => pid))].sort();
}

for (const [layout, share] of Object.entries(layouts)) {
  test(`${layout}: what a killed worker leaves is swept and run by its own tenant alone`, async (t) => {
    const [one, two] = await share(t);
    const [killed, other] = [await one.app(), await two.app()];
    const runs = await startRuns(killed, 3, 'sequential', [2, 3000]);
    const others = await startRuns(other, 3, 'sequential', [2, 3000]);
    const begun = async (/** @type {Tenant} */ { ledger }, /** @type {string[]} */ runIds) =>
      (await ledger()).filter(({ runId }) => runIds.includes(runId)).length === 3;
    await one.until(runs, () => begun(one, runs));
    await two.until(others, () => begun(two, others));
    await killed.kill('SIGKILL');
    const left = (await jobsOf(one)).filter(({ state }) => state === 'active');
    await other.kill('SIGKILL');
    const leftByOther = (await jobsOf(two)).filter(({ state }) => state === 'active');

    const sweeper = await two.app();
    assert.deepEqual(new Set(await two.ended(others)), new Set(['completed']));
    assert.equal((await deliveriesOf(sweeper)).leasesSwept, leftByOther.length);
    assert.ok(left.length >= 3);
    const untouched = (await jobsOf(one)).filter(({ state }) => state === 'active');
    assert.deepEqual(
      untouched,
      left.map((job) => ({ ...job, expired: true })),
      'their leases expired before those that were swept',
    );

    const replacement = await one.app();
    assert.deepEqual(new Set(await one.ended(runs)), new Set(['completed']));
    assert.equal((await deliveriesOf(replacement)).leasesSwept, left.length);
    assert.deepEqual(await executorsOf(one, runs), [killed.pid, replacement.pid].sort());
    assert.deepEqual(await executorsOf(two, others), [other.pid, sweeper.pid].sort());
    for (const runId of runs) assert.equal(await replacement.call('result', runId), 3);
    for (const runId of others) assert.equal(await sweeper.call('result', runId), 3);
    await one.check();
    await two.check();
  });

  test(`${layout}: each worker executes the runs, sleeps and hooks of its own tenant alone`, async (t) => {
    const tenants = await share(t);
    const nodes = await Promise.all(
      tenants.map(async (tenant, n) => ({
        ...tenant,
        token: `invoice-${n}`,
        web: await tenant.app({ start: false }),
        worker: await tenant.app({ env: { TEST_PATTERN: 'function' } }),
      })),
    );
    const works = await Promise.all(
      nodes.map(async ({ web, token, until }) => {
        const waiting = await web.call('start', 'collect', [token]);
        const busy = await Promise.all([
          startRuns(web, 10, 'sequential', [3, 10]),
          startRuns(web, 5, 'naps', [2, 300]),
        ]);
        await until([waiting], async () => (await web.call('hooks', waiting)).length === 1);
        assert.equal(await web.call('resumeHook', token, { value: 21, last: true }), waiting);
        return [waiting, ...busy.flat()];
      }),
    );
    for (const [n, { ended, worker, web }] of nodes.entries()) {
      assert.deepEqual(new Set(await ended(works[n])), new Set(['completed']));
      assert.deepEqual(await executorsOf(nodes[n], works[n]), [worker.pid]);
      assert.deepEqual(await web.call('result', works[n][0]), [42]);
      assert.deepEqual(repeated(await nodes[n].ledger()), []);
    }
    await nodes[0].check();
    await nodes[1].check();
  });

  test(`${layout}: what is due waits for a worker of its own tenant`, async (t) => {
    const [one, two] = await share(t);
    const [web, other] = [await one.app({ start: false }), await two.app()];
    const sleeper = await one.app();
    const run = await web.call('start', 'naps', [1, 1000]);
    await one.until([run], async () => (await web.call('events', run)).length >= 3);
    await sleeper.stop();
    const fresh = await web.call('start', 'stepwise', ['fresh']);
    const due = async () => {
      const { rows } = await one.database.pool.query(
        `SELECT count(*)::int FROM ${one.database.queueSchema}.job
         WHERE group_id = ANY ($1) AND state = 'created' AND start_after <= now()`,
        [[run, fresh]],
      );
      return rows[0].count === 2;
    };
    await one.until([run, fresh], due);
    // Started after theirs were due, and so claimed after them by who would claim both.
    const others = await startRuns(other, 5, 'naps', [1, 500]);
    assert.deepEqual(new Set(await two.ended(others)), new Set(['completed']));
    assert.ok(await due());

    const worker = await one.app();
    assert.deepEqual(await one.ended([run, fresh]), ['completed', 'completed']);
    assert.deepEqual(await executorsOf(one, [run, fresh]), [worker.pid]);
    assert.deepEqual(await executorsOf(two, others), [other.pid]);
    await one.check();
    await two.check();
  });

  test(`${layout}: a worker is not woken by the work of the other tenant`, async (t) => {
    const [one, two] = await share(t);
    const tap = await wiretap(t, url);
    const [web, worker] = [await one.app({ start: false }), await one.app()];
    const bystander = await two.app({ env: { WORKFLOW_POSTGRES_URL: tap.url } });
    await two.until([], async () => (await bystander.call('health')).notifications === 'listening');

    /** @type {string[]} */
    let runIds = [];
    const statements = await tap.during(async () => {
      runIds = await startRuns(web, 100, 'sequential', [2]);
      await one.ended(runIds);
    });
    assert.deepEqual(await executorsOf(one, runIds), [worker.pid]);
    const looks = statements.filter((statement) => statement.includes('queue_settle'));
    // Each of their messages was announced. A look of its own may fall into this time.
    assert.ok(looks.length < 10, `it looked for work ${looks.length} times`);
    assert.equal((await deliveriesOf(bystander)).deliveries, 0);
    await one.check();
  });

  test(`${layout}: a stranded run is rescued by a worker of its own tenant alone`, async (t) => {
    const [one, two] = await share(t);
    const [web, otherWeb] = [await one.app({ start: false }), await two.app({ start: false })];
    const [run, other] = [
      await web.call('start', 'stepwise', ['rescued']),
      await otherWeb.call('start', 'stepwise', ['rescued']),
    ];
    for (const { database } of [one, two]) {
      const { pool, schema, queueSchema } = database;
      await pool.query(`DELETE FROM ${queueSchema}.job WHERE group_id = ANY ($1)`, [[run, other]]);
      // Long enough ago for nobody to be about to send their messages.
      await pool.query(
        `UPDATE ${schema}.workflow_events SET created_at = created_at - interval '1 minute'
         WHERE run_id = ANY ($1) AND created_at > now() - interval '1 minute'`,
        [[run, other]],
      );
    }

    const rescuer = await two.app();
    assert.deepEqual(await two.ended([other]), ['completed']);
    assert.equal((await deliveriesOf(rescuer)).runsRescued, 1);
    assert.deepEqual(await executorsOf(two, [other]), [rescuer.pid]);
    assert.deepEqual(await jobsOf(one), []);
    assert.equal((await web.call('run', run)).status, 'pending');

    const worker = await one.app();
    assert.deepEqual(await one.ended([run]), ['completed']);
    assert.deepEqual(await executorsOf(one, [run]), [worker.pid]);
    await one.check();
    await two.check();
  });

  test(`${layout}: a purge takes the ended jobs of its own tenant alone`, async (t) => {
    const [one, two] = await share(t);
    for (const { database, jobPrefix } of [one, two]) {
      const { pool, queueSchema } = database;
      await pool.query(
        `INSERT INTO ${queueSchema}.job (name, state, completed_on, deletion_seconds)
         VALUES ($1, 'completed', now() - interval '1 hour', 60), ($2, 'failed', now() - interval '1 hour', 60)`,
        [`${jobPrefix}flows`, `${jobPrefix}steps`],
      );
    }
    const purge = await readFile(path.join(root, 'src/queue/sql/purge.sql'), 'utf8');
    const { pool, schema, queueSchema } = two.database;
    const statement = purge
      .replaceAll(':"schema"', schema)
      .replaceAll(':"queue_schema"', queueSchema);
    await pool.query(statement, [`${two.jobPrefix}flows`, `${two.jobPrefix}steps`, 600_000]);
    assert.deepEqual(await jobsOf(two), []);
    assert.equal((await jobsOf(one)).length, 2);
  });
}

test('tenants with schemas of their own do not see each other', async (t) => {
  const [one, two] = await layouts['schemas of their own'](t);
  const [app, other] = [await one.app(), await two.app()];
  const [run, otherRun] = [
    await app.call('start', 'claim', ['invoice']),
    await other.call('start', 'claim', ['invoice']),
  ];
  await one.until([run], async () => (await app.call('hooks', run)).length === 1);
  await two.until([otherRun], async () => (await other.call('hooks', otherRun)).length === 1);

  assert.deepEqual(await listed(t, one), [run]);
  assert.deepEqual(await listed(t, two), [otherRun]);
  for (const method of ['run', 'cancel', 'result']) {
    await assert.rejects(other.call(method, run), { name: 'WorkflowRunNotFoundError' }, method);
  }
  assert.equal(await other.call('resumeHook', 'invoice', 'theirs'), otherRun);
  assert.deepEqual(await other.call('result', otherRun), { payload: 'theirs' });
  assert.equal((await app.call('run', run)).status, 'running');
  assert.equal(await app.call('resumeHook', 'invoice', 'ours'), run);
  assert.deepEqual(await app.call('result', run), { payload: 'ours' });
});

test('tenants with prefixes of their own in the same schemas share the storage: runs, and hook tokens', async (t) => {
  const [one, two] = await layouts['prefixes of their own in the same schemas'](t);
  const [app, other] = [await one.app(), await two.app()];
  const run = await app.call('start', 'claim', ['invoice']);
  await one.until([run], async () => (await app.call('hooks', run)).length === 1);
  const second = await other.call('start', 'claim', ['invoice']);

  assert.deepEqual(await other.call('result', second), { owner: run });
  assert.deepEqual(await listed(t, two), [run, second].sort());
  assert.equal((await other.call('run', run)).status, 'running');
  assert.equal(await app.call('resumeHook', 'invoice', 'ours'), run);
  assert.deepEqual(await app.call('result', run), { payload: 'ours' });
});

test('namespaces of their own in the same schemas: each takes its own messages alone', async (t) => {
  const { schema, queueSchema } = await testDatabase(t, { url });
  const nodes = await Promise.all(
    ['shop', 'office'].map(async (namespace) => {
      const options = { connectionString: url, schema, queueSchema, namespace };
      await setup(options);
      /** @type {string[]} */
      const executed = [];
      /** @type {ReturnType<typeof createWorld>} */
      const world = createWorld({
        ...options,
        securityToken: 'token',
        queueFactory: () => createPgBossFunctionProxyQueue({ workflowEntrypoint: entrypoint }),
      });
      const prefix = /** @type {any} */ (`__${namespace}_wkf_step_`);
      const entrypoint = world.createQueueHandler(prefix, async (_, { queueName }) => {
        executed.push(queueName);
      });
      t.after(() => world.close());
      await world.start();
      return { namespace, world, executed };
    }),
  );
  const names = Array.from({ length: 20 }, (_, n) => `n${n}`);
  await Promise.all(
    // As the SDK does it: without the namespace.
    nodes.flatMap(({ namespace, world }) =>
      names.map((name) => world.queue(`__wkf_step_of_${namespace}_${name}`, { runId: 'none' })),
    ),
  );
  const executed = () => nodes.flatMap((node) => node.executed);
  await eventually(() => executed().length >= 2 * names.length, {
    report: () => JSON.stringify(executed()),
  });
  for (const { namespace, executed } of nodes) {
    assert.deepEqual(
      executed.sort(),
      names.map((name) => `__${namespace}_wkf_step_of_${namespace}_${name}`).sort(),
    );
  }
});
