import assert from 'node:assert/strict';
import { randomInt, randomUUID } from 'node:crypto';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { startPostgres } from '../../scripts/support/postgres.mjs';
import { eventually, fixture } from './fixture.mjs';

// A server of our own, also where another one is given: it is going to be restarted.
delete process.env.WORKFLOW_POSTGRES_URL;
const server = await startPostgres();
after(() => server.stop());

/** mulberry32 @param {number} seed */
function generator(seed) {
  let state = seed;
  return (/** @type {number} */ below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

test('runs of all kinds survive what is killed at random', async (t) => {
  const seed = Number(process.env.TEST_SEED ?? randomInt(2 ** 31));
  t.diagnostic(`TEST_SEED=${seed}`);
  const random = generator(seed);
  const { app: startApp, check, database, ended } = await fixture(t, { url: server.url });
  const workers = [await startApp(), await startApp()];
  // Takes no part in the work and is never killed, so that it can tell what was accepted.
  const client = await startApp({ start: false });

  /** @type {{ runId: string, expected: unknown }[]} */
  const runs = [];
  /** Until it is accepted. @template T @param {string} method @param {...unknown} args @returns {Promise<T>} */
  const insist = (method, ...args) =>
    eventually(() => client.call(method, ...args).catch(() => undefined));
  /** @param {unknown} expected @param {string} workflow @param {...unknown} args */
  const begin = async (expected, workflow, ...args) => {
    const runId = /** @type {string} */ (await insist('start', workflow, args));
    runs.push({ runId, expected });
    return runId;
  };

  /** @returns {Promise<unknown>} */
  const beginOne = () => {
    const token = randomUUID();
    const kinds = [
      () => begin(55, 'sequential', 10, 20),
      () => begin(285, 'fanOut', 10, 50),
      () => begin(3, 'naps', 2, 1000),
      () => begin({ fatal: true, message: 'no' }, 'fatal', 'no'),
      () => begin('too late', 'approvalWithin', token, 2000),
      async () => {
        const runId = await begin(token, 'approval', token);
        await eventually(() =>
          client.call('hooks', runId).then(
            ({ length }) => length > 0,
            () => false,
          ),
        );
        // Not found any more: an attempt that seemed to fail was accepted.
        await eventually(() =>
          client.call('resumeHook', token, token).catch(({ name }) => name === 'HookNotFoundError'),
        );
      },
    ];
    return kinds[random(kinds.length)]();
  };

  const beginning = Array.from({ length: 60 }, async () => {
    await sleep(random(15_000));
    await beginOne();
  });

  for (let n = 0; n < 10; n++) {
    await sleep(random(2000));
    const disturbance = random(4);
    t.diagnostic(['kill -9', 'stop', 'terminate backends', 'restart'][disturbance]);
    if (disturbance < 2) {
      const victim = random(workers.length);
      if (disturbance === 0) await workers[victim].kill('SIGKILL');
      else await workers[victim].stop();
      workers[victim] = await startApp();
    } else if (disturbance === 2) {
      await database.pool
        .query(
          'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()',
        )
        .catch(() => {});
    } else {
      await server.restart({ mode: 'immediate' });
    }
  }
  const last = Date.now();
  await Promise.all(beginning);

  await ended(runs.map(({ runId }) => runId));
  t.diagnostic(`all have ended ${Date.now() - last} ms after the last of it`);
  for (const { runId, expected } of runs) {
    assert.deepEqual(await client.call('result', runId), expected, runId);
  }
  for (const app of [...workers, client]) assert.ok(app.running(), app.logs());
  await check();
});
