import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { testDatabase } from '../support/database.mjs';
import { relay } from '../support/relay.mjs';
import {
  assertLogIsSound,
  bytes,
  event,
  liveHook,
  openWorld,
  pendingStep,
  refusal,
  runCreated,
  runningRun,
  runningStep,
  typesOf,
  ulid,
} from './fixture.mjs';

/** @typedef {import('./fixture.mjs').World} World */

const database = await testDatabase({ after });
const { pool } = database;
const direct = openWorld(database);
after(() => direct.close());

const sleep = (/** @type {number} */ ms) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * A role of the test's own with the rights of the tests' role, and a World that uses it.
 *
 * @param {import('node:test').TestContext} t
 * @param {string} [settings] of the role
 */
async function worldOfRole(t, settings) {
  const role = `r_${ulid().toLowerCase()}`;
  await pool.query(`CREATE ROLE ${role} LOGIN PASSWORD 'p' IN ROLE CURRENT_USER`);
  if (settings) await pool.query(`ALTER ROLE ${role} SET ${settings}`);
  const url = new URL(database.url);
  url.username = role;
  url.password = 'p';
  const world = openWorld(database, { connectionString: url.href, maxPoolSize: 5 });
  t.after(async () => {
    await world.close();
    await pool.query(`DROP ROLE ${role}`);
  });
  /** @param {'cancel' | 'terminate'} how */
  const disturb = (how) =>
    pool.query(`SELECT pg_${how}_backend(pid) FROM pg_stat_activity WHERE usename = $1`, [role]);
  return { world, role, disturb };
}

/**
 * The calls of a step, and those of others beside it, while `disturbance` lasts: outcomes and chunks are there
 * once, and nobody is told anything but that the call may be repeated.
 *
 * @param {World} world
 * @param {(ids: { runId: string }) => Promise<void>} disturbance
 */
async function assertWaitedOut(world, disturbance) {
  const runId = await runningRun(direct);
  const [completed, failed, retried] = await Promise.all(
    Array.from({ length: 3 }, () => runningStep(direct, runId)),
  );
  const pending = await pendingStep(direct, runId);
  const { hookId } = await liveHook(direct, runId);
  const name = `stream-${ulid()}`;
  await world.writeToStream(name, runId, bytes('0'));
  let lasting = true;
  const over = disturbance({ runId }).finally(() => {
    lasting = false;
  });
  const streaming = async () => {
    let chunks = 1;
    while (lasting) {
      await world.writeToStream(name, runId, bytes(String(chunks)));
      chunks += 1;
    }
    return chunks;
  };
  /** @type {any[]} */
  const told = [];
  const asking = async (/** @type {() => Promise<unknown>} */ call) => {
    while (lasting) {
      await call().catch((error) => told.push(error));
      await sleep(20);
    }
  };
  const [chunks] = await Promise.all([
    streaming(),
    asking(() =>
      world.events.create(runId, event('hook_received', hookId, { payload: bytes('p') })),
    ),
    asking(() => world.runs.get(runId)),
    asking(() => world.events.create(null, runCreated())),
    sleep(50).then(() =>
      world.events.create(runId, event('step_completed', completed, { result: bytes('result') })),
    ),
    sleep(100).then(() =>
      world.events.create(runId, event('step_failed', failed, { error: 'no' })),
    ),
    sleep(150).then(() =>
      world.events.create(runId, event('step_retrying', retried, { error: 'again' })),
    ),
    sleep(200).then(() => world.events.create(runId, event('step_started', pending))),
    over,
  ]);
  for (const error of told) assert.equal(error.status, 503, error.stack);
  const types = await typesOf(direct, runId);
  for (const type of ['step_completed', 'step_failed', 'step_retrying']) {
    assert.equal(types.filter((found) => found === type).length, 1, String(types));
  }
  const stored = await direct.getStreamChunks(name, runId, { limit: 1000 });
  assert.deepEqual(
    stored.data.map(({ data }) => Number(Buffer.from(data).toString())),
    Array.from({ length: chunks }, (_, chunk) => chunk),
  );
  await assertLogIsSound(database);
}

describe('what PostgreSQL refuses for a moment', () => {
  test('by a statement_timeout is waited out', async (t) => {
    const { world } = await worldOfRole(t, `statement_timeout = '200ms'`);
    await assertWaitedOut(world, async () => {
      const blocker = await pool.connect();
      await blocker.query(
        `BEGIN; LOCK TABLE ${database.schema}.workflow_steps, ${database.schema}.workflow_streams`,
      );
      await sleep(3000);
      await blocker.query('ROLLBACK');
      blocker.release();
    });
  });

  test('by cancelling statements is waited out', async (t) => {
    const { world, disturb } = await worldOfRole(t);
    await assertWaitedOut(world, async ({ runId }) => {
      // So that statements are under way whenever they are cancelled.
      const blocker = await pool.connect();
      const end = Date.now() + 3000;
      while (Date.now() < end) {
        await blocker.query('BEGIN');
        await blocker.query('SELECT pg_advisory_xact_lock(hashtextextended($1, 0))', [runId]);
        await blocker.query(
          `LOCK TABLE ${database.schema}.workflow_streams, ${database.schema}.workflow_runs`,
        );
        await sleep(50);
        await disturb('cancel');
        await blocker.query('COMMIT');
      }
      blocker.release();
    });
  });

  test('by a server that is read-only is waited out', async (t) => {
    const { world, role, disturb } = await worldOfRole(t);
    await assertWaitedOut(world, async () => {
      await pool.query(`ALTER ROLE ${role} SET default_transaction_read_only = on`);
      await disturb('terminate');
      await sleep(3000);
      await pool.query(`ALTER ROLE ${role} RESET default_transaction_read_only`);
    });
  });

  test('by a pooler that is full is waited out', async (t) => {
    const pooler = await relay(t, database.url);
    const world = openWorld(database, { connectionString: pooler.url, maxPoolSize: 5 });
    t.after(() => world.close());
    await assertWaitedOut(world, async () => {
      pooler.cut('full');
      await sleep(3000);
      pooler.heal();
    });
  });

  test('and does so for long, is told as 503 within 10 s, with the words of PostgreSQL', async (t) => {
    const { world, role } = await worldOfRole(t, 'default_transaction_read_only = on');
    const pooler = await relay(t, database.url);
    pooler.cut('full');
    const turnedAway = openWorld(database, {
      connectionString: pooler.url,
      maxPoolSize: 5,
      securityToken: 'token-of-the-tests',
    });
    t.after(() => turnedAway.close());
    const { world: slow } = await worldOfRole(t, `statement_timeout = '100ms'`);
    const runId = await runningRun(direct);
    const blocker = await pool.connect();
    await blocker.query('BEGIN');
    await blocker.query('SELECT pg_advisory_xact_lock(hashtextextended($1, 0))', [runId]);
    const began = Date.now();
    const [readOnly, full, timedOut, start] = await Promise.all([
      refusal(world.events.create(null, runCreated())),
      refusal(turnedAway.runs.get(runId)),
      refusal(slow.events.create(runId, event('run_cancelled'))),
      refusal(turnedAway.start()),
    ]);
    assert.ok(Date.now() - began < 11_000, `${Date.now() - began} ms`);
    await blocker.query('ROLLBACK');
    blocker.release();
    assert.deepEqual([readOnly.status, readOnly.code], [503, 'TRANSPORT'], role);
    assert.match(readOnly.message, /read-only transaction/);
    for (const error of [full, start]) {
      assert.deepEqual([error.status, error.code], [503, 'TRANSPORT']);
      assert.match(error.message, /MaxClientsInSessionMode/);
    }
    assert.deepEqual([timedOut.status, timedOut.code], [503, 'REFUSED']);
    assert.match(timedOut.message, /statement timeout/);
  });
});
