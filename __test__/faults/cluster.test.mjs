import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import pg from 'pg';
import { startCluster } from '../../faults/cluster.mjs';
import { injections } from '../../faults/injections.mjs';
import { sabotage } from '../../faults/sabotage.mjs';
import { eventually } from '../sdk/fixture.mjs';
import { testDatabase } from '../support/database.mjs';

delete process.env.WORKFLOW_POSTGRES_URL;
const cleanups = /** @type {(() => Promise<void>)[]} */ ([]);
const scope = { after: (/** @type {() => Promise<void>} */ it) => void cleanups.push(it) };
after(async () => {
  for (const cleanup of cleanups) await cleanup();
});
const cluster = await startCluster();
const database = await testDatabase(scope, { url: cluster.url });
const means = await sabotage(database);
/** As the Worlds connect. */
const line = await cluster.line(scope);
const worlds = new URL(line.url);
worlds.username = means.role;
worlds.password = means.role;
const pool = new pg.Pool({ connectionString: worlds.href, max: 4 });
pool.on('error', () => {});
scope.after(() => pool.end());
scope.after(() => cluster.stop());

await means.insist(`
  CREATE TABLE public.numbers (n integer);
  GRANT ALL ON public.numbers TO ${means.role}`);
const count = async () => (await pool.query('SELECT n FROM numbers')).rows.length;

/** Writes until it is told to end. @returns {() => Promise<number[]>} ends it; gives what was confirmed */
function writing() {
  let over = false;
  const confirmed = /** @type {number[]} */ ([]);
  const write = async () => {
    for (let n = 0; !over; n++) {
      await pool.query('INSERT INTO numbers VALUES ($1)', [n]).then(
        () => confirmed.push(n),
        () => new Promise((resolve) => setTimeout(resolve, 20)),
      );
    }
    return confirmed;
  };
  const ended = write();
  return () => {
    over = true;
    return ended;
  };
}

/** Which of the confirmed numbers are not there. @param {number[]} confirmed */
async function missing(confirmed) {
  const { rows } = await pool.query('SELECT n FROM numbers');
  const stored = new Set(rows.map(({ n }) => n));
  return confirmed.filter((n) => !stored.has(n));
}

for (const mode of /** @type {const} */ (['fast', 'immediate'])) {
  test(`a failover without loss keeps all that was confirmed: ${mode}`, async () => {
    await pool.query('TRUNCATE numbers');
    const end = writing();
    await cluster.failOver({ mode, outageMs: 200, early: mode === 'fast' });
    const confirmed = await end();
    assert.ok(confirmed.length > 10);
    assert.deepEqual(await missing(confirmed), []);
    // It can be done again, and the server can be restarted as before.
    await cluster.restart();
    assert.ok((await eventually(() => count().catch(() => 0))) > 0);
  });
}

test('a failover with loss forgets the last that was confirmed, and tells when that was', async () => {
  await pool.query('TRUNCATE numbers');
  const end = writing();
  /** @type {import('../../faults/cluster.mjs').Loss[]} */
  const losses = [];
  await cluster.failOver({
    mode: 'immediate',
    lagMs: 300,
    outageMs: 200,
    early: false,
    lost: (loss) => void losses.push(loss),
  });
  const lost = await missing(await end());
  assert.ok(lost.length > 0);
  assert.deepEqual(
    lost,
    lost.map((_, n) => lost[0] + n),
    'only the end of the log is lost',
  );
  assert.equal(losses.length, 1);
  assert.ok(losses[0].to - losses[0].from >= 500);
});

/** Some faults hit only some of the sessions that there are. @param {string} sql */
async function inNewSession(sql) {
  const client = new pg.Client({ connectionString: worlds.href });
  client.on('error', () => {});
  await client.connect();
  try {
    await client.query(sql);
  } finally {
    await client.end().catch(() => {});
  }
}

/** @param {string} kind @param {Record<string, unknown>} drawn */
const inject = (kind, drawn) =>
  injections[kind].inject(/** @type {any} */ (means), 'http', drawn, () => {});

for (const [kind, code, drawn] of /** @type {const} */ ([
  ['read-only', '25006', {}],
  ['statement-timeout', '57014', { timeoutMs: 2 }],
  ['cancel-statements', '57014', { everyMs: 20 }],
])) {
  test(`a statement of a World fails with ${code} while there is the fault ${kind}, and not after it`, async () => {
    const injected = inject(kind, { ms: 1500, ...drawn });
    await eventually(() =>
      inNewSession('INSERT INTO numbers VALUES (1); SELECT pg_sleep(0.05)').then(
        () => false,
        (error) => error.code === code,
      ),
    );
    await injected;
    await inNewSession('INSERT INTO numbers VALUES (1); SELECT pg_sleep(0.05)');
  });
}

test('a locked table lets nobody read it until the lock is over', async () => {
  const events = `${database.schema}.workflow_events`;
  const locked = `SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted
    AND relation = '${events}'::regclass`;
  const injected = inject('lock-table', { ms: 1000, table: 'events' });
  await eventually(async () => (await database.pool.query(locked)).rowCount);
  const begin = performance.now();
  await pool.query(`SELECT count(*) FROM ${events}`);
  assert.ok(performance.now() - begin > 500);
  await injected;
});

test('a request that a partition held up reaches the server after its client has gone', async () => {
  await pool.query('TRUNCATE numbers');
  const client = new pg.Client({ connectionString: worlds.href });
  client.on('error', () => {});
  await client.connect();
  line.stall();
  const gaveUp = assert.rejects(client.query('INSERT INTO numbers VALUES (1)'));
  await new Promise((resolve) => setTimeout(resolve, 50));
  /** @type {any} */ (client).connection.stream.destroy();
  await gaveUp;
  const again = new pg.Client({ connectionString: worlds.href });
  await again.connect();
  await again.query('INSERT INTO numbers VALUES (1)');
  const { rows } = await again.query('SELECT FROM numbers');
  assert.equal(rows.length, 1);
  line.release();
  await eventually(async () => (await count()) === 2);
  await again.end();
});
