import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { testDatabase } from '../support/database.mjs';
import {
  assertLogIsSound,
  assertRefused,
  bytes,
  event,
  liveHook,
  logOf,
  openWait,
  openWorld,
  runningRun,
  runningStep,
  stepCreated,
  typesOf,
  ulid,
  ulidTime,
} from './fixture.mjs';
import { wiretap } from './wiretap.mjs';

/** @typedef {import('./fixture.mjs').World} World */

const database = await testDatabase({ after });
const securityToken = 'the-token-of-the-deliveries-of-this-test';
const tap = await wiretap({ after }, database.url);
const world = openWorld(database, { securityToken, connectionString: tap.url });
/** As in another process. */
const other = openWorld(database, { securityToken, maxPoolSize: 5 });
after(() => Promise.all([world.close(), other.close()]));

/**
 * Calls `replay` while a delivery of the run is handled.
 *
 * @template T
 * @param {World} at
 * @param {string} runId
 * @param {(log: { last: { stateUpdatedAt: number }, create: (event: object, stale?: { stateUpdatedAt: number }) => Promise<any> }) => Promise<T>} replay
 * @returns {Promise<T>}
 */
async function delivered(at, runId, replay) {
  /** @type {any} */
  let outcome;
  const handle = /** @type {any} */ (at).createQueueHandler('__wkf_workflow_', async () => {
    const { events } = await at.events.create(runId, event('run_started'));
    const last = snapshotOf(/** @type {any} */ (events.at(-1)));
    outcome = await replay({
      last,
      create: (what, seen = last) => at.events.create(runId, what, seen),
    });
  });
  const response = await handle(
    new Request('http://localhost/.well-known/workflow/v1/flow', {
      method: 'POST',
      body: JSON.stringify({ runId }),
      headers: {
        'x-workflow-secret': securityToken,
        'x-vqs-queue-name': '__wkf_workflow_w',
        'x-vqs-message-id': 'msg_1',
        'x-vqs-message-attempt': '1',
      },
    }),
  );
  assert.equal(response.status, 200, await response.text());
  return outcome;
}

/** @param {{ eventId: string }} event */
const snapshotOf = ({ eventId }) => ({ stateUpdatedAt: ulidTime(eventId) });

const newStep = () => stepCreated(`step_${ulid()}`);
const newWait = () => event('wait_created', `wait_${ulid()}`, { resumeAt: new Date() });
const newHook = () => event('hook_created', `hook_${ulid()}`, { token: ulid() });

/** @param {Promise<unknown>} refused */
const assertStale = (refused) => assertRefused(refused, 'PreconditionFailedError', 412);

/** A run with a hook, a payload for it and a wait. @param {World} [at] */
async function place(at = world) {
  const runId = await runningRun(at);
  const { hookId, token } = await liveHook(at, runId);
  const { waitId, resumeAt } = await openWait(at, runId);
  const payload = () => event('hook_received', hookId, { token, payload: bytes('p') });
  const waited = event('wait_completed', waitId, { resumeAt });
  return { runId, hookId, token, payload, waited };
}

describe('a delivery of which a decision was refused', () => {
  test('decides nothing more, and asks PostgreSQL for nothing more', async () => {
    const { runId, hookId, token, payload, waited } = await place();
    await delivered(world, runId, async ({ create }) => {
      await create(newStep());
      const { event: received } = await other.events.create(runId, payload());
      await assertStale(create(newStep()));

      // As the SDK, which has read the log again.
      const fresh = snapshotOf(received);
      const before = tap.count();
      await assertStale(create(newStep(), fresh));
      await assertStale(create(newWait(), fresh));
      await assertStale(create(newHook(), fresh));
      await assertStale(create(event('hook_disposed', hookId, { token }), fresh));
      await assertStale(create(event('run_completed', undefined, { output: bytes('o') }), fresh));
      assert.equal(tap.count(), before);
      // A wait that is over is over, whatever came between.
      await create(waited, fresh);
    });
    assert.deepEqual((await typesOf(world, runId)).slice(4), [
      'step_created',
      'hook_received',
      'wait_completed',
    ]);
    await delivered(world, runId, ({ create }) => create(newStep()));
  });

  test('is one delivery: the next one decides', async () => {
    const { runId, payload } = await place();
    for (let round = 0; round < 3; round++) {
      await delivered(world, runId, async ({ create }) => {
        await other.events.create(runId, payload());
        await assertStale(create(newStep()));
      });
      await delivered(world, runId, ({ create }) => create(newStep()));
    }
  });

  test('leaves the deliveries of other runs alone', async () => {
    const [one, two] = [await place(), await place()];
    await delivered(world, one.runId, async ({ create }) => {
      await other.events.create(one.runId, one.payload());
      await assertStale(create(newStep()));
      await delivered(world, two.runId, ({ create }) => create(newStep()));
      await assertStale(create(newStep()));
    });
  });
});

describe('after a refused decision, external events', () => {
  for (const [where, fresh] of /** @type {[string, World][]} */ ([
    ['this process', world],
    ['another process', other],
  ])) {
    test(`wait for the end of the next replay, in ${where}`, async () => {
      const { runId, payload } = await place();
      const { waitId, resumeAt } = await openWait(world, runId);
      const stepIds = [await runningStep(world, runId), await runningStep(world, runId)];
      await delivered(world, runId, async ({ create }) => {
        await other.events.create(runId, payload());
        await assertStale(create(newStep()));
      });
      const waiting = Promise.all([
        world.events.create(runId, payload()),
        other.events.create(runId, event('step_completed', stepIds[0], { result: bytes('r') })),
        world.events.create(runId, event('step_failed', stepIds[1], { stepName: 's', error: 'e' })),
        other.events.create(runId, event('wait_completed', waitId, { resumeAt })),
      ]);
      await delivered(fresh, runId, async ({ create }) => {
        for (let n = 0; n < 5; n++) {
          await create(newStep());
          await sleep(40);
        }
      });
      await waiting;
      const types = (await typesOf(world, runId)).slice(-9);
      assert.deepEqual(types.slice(0, 5), Array(5).fill('step_created'));
      assert.deepEqual(types.slice(5).sort(), [
        'hook_received',
        'step_completed',
        'step_failed',
        'wait_completed',
      ]);
    });
  }

  test('wait for nobody where no replay was refused', async () => {
    const { runId, payload } = await place();
    await delivered(world, runId, async ({ create }) => {
      await create(newStep());
      await other.events.create(runId, payload());
    });
    // Nor for whoever is not delivered to: it would tell of no end.
    await assertStale(world.events.create(runId, newStep(), { stateUpdatedAt: 1 }));
    await other.events.create(runId, payload());
  });

  test('wait 5 s at most, where the process of the next replay dies', async () => {
    const { runId, payload } = await place();
    await delivered(world, runId, async ({ create }) => {
      await other.events.create(runId, payload());
      await assertStale(create(newStep()));
    });
    const began = performance.now();
    await other.events.create(runId, payload());
    const waited = performance.now() - began;
    assert.ok(waited > 4000 && waited < 15_000, `${waited} ms`);
  });

  test('do not wait where the run has ended', async () => {
    const { runId, payload } = await place();
    const stepId = await runningStep(world, runId);
    await delivered(world, runId, async ({ create }) => {
      await other.events.create(runId, payload());
      await assertStale(create(newStep()));
    });
    await world.events.create(runId, event('run_cancelled'));
    const began = performance.now();
    await other.events.create(runId, event('step_completed', stepId, { result: bytes('r') }));
    assert.ok(performance.now() - began < 4000);
  });
});

test('a delivery that has seen what the log has lost completes no wait either', async () => {
  const { runId, payload, waited } = await place();
  const { event: received } = await other.events.create(runId, payload());
  await delivered(world, runId, async ({ create }) => {
    const { pool, schema } = database;
    await pool.query(
      `DELETE FROM ${schema}.workflow_events WHERE run_id = $1 AND type = 'hook_received'`,
      [runId],
    );
    await assertStale(create(waited, snapshotOf(received)));
    // The log that the SDK reads then goes on from what it has lost.
    const { event: again } = await other.events.create(runId, payload());
    await assertStale(create(waited, snapshotOf(again)));
    await assertStale(create(newStep(), snapshotOf(again)));
  });
  await delivered(world, runId, async ({ create }) => {
    const { event: completed } = await create(waited);
    await create(newStep(), snapshotOf(completed));
  });
  assert.equal((await logOf(world, runId)).at(-1)?.eventType, 'step_created');
});

test('after all this the log and the entities agree', () => assertLogIsSound(database));
