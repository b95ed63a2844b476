// The largest input of a run: what is accepted is executed, and what cannot be is refused before it is written.
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { createPgBossFunctionProxyQueue } from '../../index.js';
import { runCreated, ulid } from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { isGone, place, routes, until } from './fixture.mjs';

const database = await testDatabase({ after });
const LIMIT = 40 * 1024 * 1024;

test('an input at the limit is delivered, and one above it is refused with the limit', async (t) => {
  /** @type {any[]} */
  const inputs = [];
  const { step, flow } = routes({ flow: ({ runInput }) => void inputs.push(runInput.input) });
  const world = await place(
    t,
    database,
  )({
    queueFactory: () =>
      createPgBossFunctionProxyQueue({ stepEntrypoint: step, workflowEntrypoint: flow }),
  });
  await world.start();
  /** As the SDK's `start()` does: both at once. @param {number} size */
  const start = (size) => {
    const input = new Uint8Array(size).fill(7);
    const event = /** @type {any} */ (runCreated());
    event.eventData.input = input;
    const runInput = event.eventData;
    return Promise.allSettled([
      world.events.create(null, event),
      world.queue('__wkf_workflow_w', /** @type {any} */ ({ runId: `wrun_${ulid()}`, runInput })),
    ]);
  };
  const [created, queued] = await start(LIMIT);
  assert.equal(created.status, 'fulfilled');
  assert.ok(queued.status === 'fulfilled');
  await until(() => isGone(database, queued.value.messageId));
  assert.equal(inputs[0].byteLength, LIMIT);

  const runs = async () =>
    (await database.pool.query(`SELECT FROM ${database.schema}.workflow_runs`)).rowCount;
  const before = await runs();
  for (const refused of await start(50 * 1024 * 1024)) {
    assert.ok(refused.status === 'rejected');
    const { name, status, message } = refused.reason;
    assert.deepEqual([name, status], ['WorkflowWorldError', 400]);
    assert.match(message, /may have \d+ bytes/);
  }
  assert.equal(await runs(), before);
  const above = await start(LIMIT + 1);
  assert.equal(above[0].status, 'rejected');
});
