import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { testDatabase } from '../support/database.mjs';
import { relay } from '../support/relay.mjs';
import { assertLogIsSound, bytes, openWorld, refusal, runningRun, ulid } from './fixture.mjs';

const database = await testDatabase({ after });
const { pool, schema } = database;
const direct = openWorld(database);
after(() => direct.close());

const sleep = (/** @type {number} */ ms) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * Worlds of a role of the test's own, so that its server processes can be counted.
 *
 * @param {import('node:test').TestContext} t
 */
async function ownRole(t) {
  const role = `r_${ulid().toLowerCase()}`;
  await pool.query(`CREATE ROLE ${role} LOGIN PASSWORD 'p' IN ROLE CURRENT_USER`);
  const url = new URL(database.url);
  url.username = role;
  url.password = 'p';
  t.after(() => pool.query(`DROP ROLE ${role}`));
  const processes = async () => {
    const { rows } = await pool.query(
      'SELECT count(*)::int AS count FROM pg_stat_activity WHERE usename = $1',
      [role],
    );
    return rows[0].count;
  };
  return { url: url.href, processes };
}

/** @param {string} tables */
async function lock(tables) {
  const blocker = await pool.connect();
  await blocker.query(`BEGIN; LOCK TABLE ${tables}`);
  return async () => {
    await blocker.query('ROLLBACK');
    blocker.release();
  };
}

describe('while a table is locked', () => {
  test('a process has no more server processes than connections, and chunks are there once', async (t) => {
    const { url, processes } = await ownRole(t);
    const world = openWorld(database, { connectionString: url, maxPoolSize: 10 });
    const runId = await runningRun(direct);
    const names = Array.from({ length: 8 }, () => `stream-${ulid()}`);
    const unlock = await lock(`${schema}.workflow_streams, ${schema}.workflow_runs`);
    let locked = true;
    const writing = names.map(async (name) => {
      for (let chunk = 0; chunk < 3; chunk += 1) {
        await world.writeToStream(name, runId, bytes(String(chunk)));
      }
    });
    const reading = Array.from({ length: 20 }, async () => {
      while (locked) {
        await world.runs.get(runId).catch(({ status }) => assert.equal(status, 503));
      }
    });
    const counts = [];
    const end = Date.now() + 25_000;
    while (Date.now() < end) {
      counts.push(await processes());
      await sleep(100);
    }
    locked = false;
    await unlock();
    await Promise.all(writing);
    await Promise.all(reading);
    // One connection finds out what happens.
    assert.ok(Math.max(...counts) <= 11, String(counts));
    for (const name of names) {
      const { data } = await direct.getStreamChunks(name, runId);
      assert.deepEqual(
        data.map((chunk) => Buffer.from(chunk.data).toString()),
        ['0', '1', '2'],
      );
    }
    await world.close();
    await assertLogIsSound(database);
  });

  test('the statement of a client that has gone ends in the server', async (t) => {
    const { url, processes } = await ownRole(t);
    const line = await relay(t, url);
    const world = openWorld(database, { connectionString: line.url, maxPoolSize: 1 });
    const runId = await runningRun(direct);
    const unlock = await lock(`${schema}.workflow_runs`);
    const reading = world.runs.get(runId).catch(() => {});
    while ((await processes()) === 0) await sleep(20);
    await sleep(500);
    line.cut('refusing');
    const end = Date.now() + 5000;
    while ((await processes()) > 0) {
      assert.ok(Date.now() < end, 'its server process waits on');
      await sleep(50);
    }
    await unlock();
    line.heal();
    await reading;
    await world.close();
  });

  test('400 reads find out with one connection, and each is told within 10 s', async (t) => {
    const { url, processes } = await ownRole(t);
    const line = await relay(t, url);
    const world = openWorld(database, { connectionString: line.url, maxPoolSize: 4 });
    const runId = await runningRun(direct);
    const unlock = await lock(`${schema}.workflow_runs`);
    const began = Date.now();
    const reads = Array.from({ length: 400 }, () => refusal(world.runs.get(runId)));
    let done = false;
    let most = 0;
    const counting = (async () => {
      while (!done) {
        most = Math.max(most, await processes());
        await sleep(10);
      }
    })();
    const errors = await Promise.all(reads);
    const took = Date.now() - began;
    done = true;
    await counting;
    await unlock();
    await world.close();
    for (const error of errors) assert.equal(error.status, 503, error.stack);
    assert.ok(errors.some(({ message }) => /all 4 connections stayed busy/.test(message)));
    assert.ok(took < 12_000, `${took} ms`);
    assert.ok(most <= 5, `${most} server processes`);
    assert.ok(line.accepted() <= 4 + 4, `${line.accepted()} connections were opened`);
  });
});

test('of a server that does not answer, 400 reads are told within 10 s, and open few connections', async (t) => {
  const line = await relay(t, database.url);
  line.cut('silent');
  const world = openWorld(database, { connectionString: line.url, maxPoolSize: 4 });
  const began = Date.now();
  const errors = await Promise.all(
    Array.from({ length: 400 }, () => refusal(world.runs.get(`wrun_${ulid()}`))),
  );
  const took = Date.now() - began;
  await world.close();
  for (const error of errors) assert.equal(error.status, 503, error.stack);
  assert.match(errors[0].message, /no answer/);
  assert.ok(took < 12_000, `${took} ms`);
  // Each of the pool's is tried anew after 5 s.
  assert.ok(line.accepted() <= 2 * 4 + 1, `${line.accepted()} connections were opened`);
});
