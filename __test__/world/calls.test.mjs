import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createWorld } from '../../index.js';
import { runCreated } from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { printed } from '../support/program.mjs';

test('a process without anything else to do lives until it is answered, and no longer', async (t) => {
  const { schema, url } = await testDatabase(t);
  const runId = await printed(
    `import { createWorld } from '@workflow/world-postgres';
     const world = createWorld();
     const { run } = await world.events.create(null, {
       eventType: 'run_created', specVersion: 3,
       eventData: { deploymentId: 'd', workflowName: 'w', input: new Uint8Array() },
     });
     await world.writeToStream('strm_1', run.runId, 'chunk');
     console.log(JSON.stringify(run.runId));`,
    { env: { WORKFLOW_POSTGRES_URL: url, WORKFLOW_POSTGRES_SCHEMA: schema } },
  );
  assert.match(runId, /^wrun_/);
});

test('of many calls at once, each is given its own answer, or its own error', async (t) => {
  const { schema, url } = await testDatabase(t);
  const world = createWorld({ connectionString: url, schema });
  t.after(() => world.close());
  const { run } = await world.events.create(null, /** @type {any} */ (runCreated()));
  assert.ok(run);
  const missing = (/** @type {number} */ n) => `step_${String(n).padStart(26, '0')}`;
  const settled = await Promise.allSettled(
    Array.from({ length: 100 }, (_, n) =>
      n % 2
        ? world.writeToStream(`strm_${n}`, run.runId, `chunk ${n}`)
        : world.events.create(run.runId, {
            eventType: 'step_started',
            correlationId: missing(n),
            specVersion: 3,
          }),
    ),
  );
  for (const [n, outcome] of settled.entries()) {
    if (outcome.status === 'fulfilled') assert.equal(n % 2, 1);
    else assert.match(outcome.reason.message, new RegExp(missing(n)));
  }
  const reader = (await world.readFromStream('strm_7')).getReader();
  assert.equal(new TextDecoder().decode((await reader.read()).value), 'chunk 7');
  await reader.cancel();
});
