import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import pg from 'pg';
import { startPostgres } from '../../scripts/support/postgres.mjs';
import { fixture } from './fixture.mjs';

// A server of our own, also where another one is given: it is going to be restarted.
delete process.env.WORKFLOW_POSTGRES_URL;
const server = await startPostgres();
after(() => server.stop());

async function terminateBackends() {
  const client = new pg.Client(server.url);
  await client.connect();
  await client.query(
    'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()',
  );
  await client.end();
}

/** @type {[string, () => Promise<void>][]} */
const outages = [
  ['all backends are terminated', terminateBackends],
  ['PostgreSQL restarts', () => server.restart({ mode: 'fast' })],
  ['PostgreSQL crashes and restarts', () => server.restart({ mode: 'immediate' })],
];

for (const [what, outage] of outages) {
  test(`${what} in the middle of runs: the process lives and all runs complete`, async (t) => {
    const { app: startApp, check, ended, ledger, until } = await fixture(t, { url: server.url });
    const app = await startApp();
    const adding = await Promise.all(
      Array.from({ length: 30 }, () => app.call('start', 'sequential', [10, 20])),
    );
    const sleeping = await Promise.all(
      Array.from({ length: 5 }, () => app.call('start', 'naps', [3, 1000])),
    );
    for (const entries of [100, 250, 400]) {
      await until(adding, async () => (await ledger()).length >= entries);
      const starting = Promise.allSettled(
        Array.from({ length: 5 }, () => app.call('start', 'sequential', [10, 20])),
      );
      await outage();
      // Those that were refused may run or not; those that were accepted must.
      for (const start of await starting) {
        if (start.status === 'fulfilled') adding.push(start.value);
      }
    }
    await ended([...adding, ...sleeping]);
    assert.ok(app.running(), app.logs());
    for (const runId of adding) assert.equal(await app.call('result', runId), 55, runId);
    for (const runId of sleeping) assert.equal(await app.call('result', runId), 6, runId);
    await check();
  });
}

test('a reader of a stream goes on after an outage', async (t) => {
  const { app: startApp, check, ended, ledger, until } = await fixture(t, { url: server.url });
  const app = await startApp();
  const runId = await app.call('start', 'ticking', [40]);
  const reading = app.call('readStream', runId);
  await until([runId], async () => (await ledger(runId)).length >= 10);
  await terminateBackends();
  await ended([runId]);
  const read = await reading;
  // A step that the outage interrupted may have written its chunk twice.
  assert.deepEqual(
    [...new Set(read)],
    Array.from({ length: 40 }, (_, n) => n),
  );
  assert.deepEqual(read, await app.call('readStream', runId));
  await check();
});
