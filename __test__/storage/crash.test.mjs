import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { startPostgres } from '../../scripts/support/postgres.mjs';
import { testDatabase } from '../support/database.mjs';
import { event, openWorld, pendingRun, typesOf, ulid } from './fixture.mjs';

// A server of our own, also where another one is given: it is going to crash.
delete process.env.WORKFLOW_POSTGRES_URL;
const server = await startPostgres();
after(() => server.stop());

test('a delivery that outlives a crash of PostgreSQL appends to the log that it has seen', async (t) => {
  const database = await testDatabase(t, { url: server.url });
  const world = openWorld(database);
  t.after(() => world.close());
  for (let round = 0; round < 5; round++) {
    const runIds = await Promise.all(Array.from({ length: 5 }, () => pendingRun(world)));
    await Promise.all(runIds.map((runId) => world.events.create(runId, event('run_started'))));
    await server.restart({ mode: 'immediate' });
    await Promise.all(
      runIds.map((runId) =>
        world.events.create(runId, event('hook_created', `hook_${ulid()}`, { token: ulid() })),
      ),
    );
    for (const runId of runIds) {
      assert.deepEqual(await typesOf(world, runId), ['run_created', 'run_started', 'hook_created']);
    }
  }
});
