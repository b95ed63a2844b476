import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { testDatabase } from '../support/database.mjs';
import {
  assertLogIsSound,
  bytes,
  event,
  liveHook,
  logOf,
  openWait,
  openWorld,
  pendingRun,
  pendingStep,
  runCreated,
  runningRun,
  runningStep,
  stepCreated,
  typesOf,
  ulid,
} from './fixture.mjs';
import { race } from './racer.mjs';

const database = await testDatabase({ after });
// Different pool sizes: two cores that share nothing, as in two processes.
const one = openWorld(database, { maxPoolSize: 4 });
const two = openWorld(database, { maxPoolSize: 5 });
after(() => Promise.all([one.close(), two.close()]));

const ROUNDS = 200;
const AT_ONCE = 10;

/** Each race is run often, several rounds of it at the same time. @param {(round: number) => Promise<void>} attempt */
async function repeat(attempt) {
  for (let round = 0; round < ROUNDS; round += AT_ONCE) {
    await Promise.all(Array.from({ length: AT_ONCE }, (_, i) => attempt(round + i)));
  }
}

/**
 * Settles calls made at the same moment, and says how.
 *
 * @param {Promise<any>[]} calls
 * @returns {Promise<any[]>} results, or `{ refused: name }`
 */
const outcomes = (calls) =>
  Promise.all(calls.map((call) => call.catch((error) => ({ refused: error.name, error }))));

/** @param {any[]} results */
const names = (results) => results.map(({ refused }) => refused ?? 'done').sort();

/** For the report of a failure. @param {any[]} results */
const described = (results) =>
  results
    .map(({ error, run, event: stored }) => error ?? stored?.eventType ?? run?.status)
    .join('; ');

describe('two callers at once', () => {
  test('start a run once, and see one start (W1)', async () => {
    await repeat(async () => {
      const runId = await pendingRun(one);
      const starts = await outcomes(
        [one, two, one, two].map((world) => world.events.create(runId, event('run_started'))),
      );
      const times = new Set(starts.map(({ run }) => run?.startedAt.getTime()));
      assert.equal(times.size, 1, described(starts));
      assert.equal(starts.filter((start) => start.event).length, 1);
      assert.deepEqual(await typesOf(two, runId), ['run_created', 'run_started']);
      assert.ok(times.has((await two.runs.get(runId)).startedAt?.getTime()));
    });
  });

  test('create and start a run at once: it is there once, whoever came first', async () => {
    await repeat(async () => {
      const runId = `wrun_${ulid()}`;
      const { eventData } = runCreated();
      const results = await outcomes([
        one.events.create(runId, runCreated()),
        two.events.create(runId, event('run_started', undefined, eventData)),
        one.events.create(runId, event('run_started', undefined, eventData)),
        two.events.create(runId, runCreated()),
      ]);
      assert.ok(
        results.slice(1, 3).every(({ run }) => run?.status === 'running'),
        described(results),
      );
      assert.ok(
        [results[0], results[3]].every(
          ({ refused, run }) => run || refused === 'EntityConflictError',
        ),
        described(results),
      );
      assert.deepEqual(await typesOf(one, runId), ['run_created', 'run_started']);
    });
  });

  test('start and cancel: a cancelled run stays cancelled (W2)', async () => {
    await repeat(async (round) => {
      const runId = await pendingRun(one);
      const calls = [
        () => one.events.create(runId, event('run_started')),
        () => two.events.create(runId, event('run_cancelled')),
      ];
      if (round % 2) calls.reverse();
      const results = await outcomes(calls.map((call) => call()));
      const [start, cancel] = round % 2 ? results.toReversed() : results;
      assert.equal(cancel.run?.status, 'cancelled');
      assert.ok(start.run?.status === 'running' || start.refused === 'RunExpiredError');
      const run = await one.runs.get(runId);
      assert.equal(run.status, 'cancelled');
      assert.equal((await typesOf(one, runId)).at(-1), 'run_cancelled');
    });
  });

  test('take a token: one gets the hook, the others are told who (W3)', async () => {
    await repeat(async () => {
      const runIds = await Promise.all([one, two, one].map((world) => runningRun(world)));
      const token = ulid();
      const results = await outcomes(
        runIds.map((runId, i) =>
          [one, two, two][i].events.create(
            runId,
            event('hook_created', `hook_${ulid()}`, { token }),
          ),
        ),
      );
      const winners = results.filter(({ hook }) => hook);
      assert.equal(winners.length, 1, described(results));
      const [{ hook }] = winners;
      for (const { event: stored } of results.filter((result) => !result.hook)) {
        assert.equal(stored.eventType, 'hook_conflict');
        assert.deepEqual(stored.eventData, { token, conflictingRunId: hook.runId });
      }
      assert.equal((await two.hooks.getByToken(token)).hookId, hook.hookId);
    });
  });

  test('make a hook and end its run: no token survives its run (W4)', async () => {
    await repeat(async (round) => {
      const runId = await runningRun(one);
      const token = ulid();
      const calls = [
        () => one.events.create(runId, event('hook_created', `hook_${ulid()}`, { token })),
        () => two.events.create(runId, event('run_completed', undefined, { output: bytes('o') })),
      ];
      if (round % 2) calls.reverse();
      await outcomes(calls.map((call) => call()));
      assert.equal((await one.runs.get(runId)).status, 'completed');
      assert.deepEqual((await one.hooks.list({ runId })).data, []);
      const heir = await runningRun(two);
      const { hook } = await two.events.create(
        heir,
        event('hook_created', `hook_${ulid()}`, { token }),
      );
      assert.equal(hook.token, token);
    });
  });

  test('hand a token from run to run: it is never lost and never had twice', async () => {
    await repeat(async () => {
      const [owner, heir] = [await runningRun(one), await runningRun(two)];
      const { hookId, token } = await liveHook(one, owner);
      const [freed, taken] = await outcomes([
        one.events.create(owner, event('hook_disposed', hookId, { token })),
        two.events.create(heir, event('hook_created', `hook_${ulid()}`, { token })),
      ]);
      assert.equal(freed.event?.eventType, 'hook_disposed');
      if (taken.hook) {
        assert.equal((await one.hooks.getByToken(token)).runId, heir);
      } else {
        assert.deepEqual(taken.event.eventData, { token, conflictingRunId: owner });
        await assert.rejects(one.hooks.getByToken(token), { name: 'HookNotFoundError' });
      }
    });
  });

  test('two runs swap their tokens without a deadlock', async () => {
    await repeat(async () => {
      const [first, second] = [await runningRun(one), await runningRun(two)];
      const [a, b] = [await liveHook(one, first), await liveHook(two, second)];
      const results = await outcomes([
        one.events.create(first, event('hook_disposed', a.hookId)),
        two.events.create(second, event('hook_disposed', b.hookId)),
        two.events.create(first, event('hook_created', `hook_${ulid()}`, { token: b.token })),
        one.events.create(second, event('hook_created', `hook_${ulid()}`, { token: a.token })),
        one.events.create(second, event('run_cancelled')),
        two.events.create(first, stepCreated(`step_${ulid()}`)),
      ]);
      for (const { refused, error } of results) {
        assert.ok(
          [undefined, 'EntityConflictError', 'HookNotFoundError'].includes(refused),
          error?.stack,
        );
      }
    });
  });

  test('end a run: it ends once, and so does each of its entities', async () => {
    await repeat(async () => {
      const runId = await runningRun(one);
      const stepId = await runningStep(one, runId);
      const { waitId, resumeAt } = await openWait(two, runId);
      const { hookId } = await liveHook(two, runId);
      const waits = await outcomes(
        [one, two].map((world) =>
          world.events.create(runId, event('wait_completed', waitId, { resumeAt })),
        ),
      );
      assert.deepEqual(names(waits), ['EntityConflictError', 'done']);
      const disposals = await outcomes(
        [one, two].map((world) => world.events.create(runId, event('hook_disposed', hookId))),
      );
      assert.deepEqual(names(disposals), ['HookNotFoundError', 'done']);
      const reports = await outcomes([
        one.events.create(runId, event('step_completed', stepId, { result: bytes('r') })),
        two.events.create(runId, event('step_failed', stepId, { error: 'e' })),
      ]);
      assert.deepEqual(names(reports), ['EntityConflictError', 'done']);
      const ends = await outcomes([
        one.events.create(runId, event('run_completed', undefined, {})),
        two.events.create(runId, event('run_failed', undefined, { error: 'e' })),
      ]);
      assert.deepEqual(names(ends), ['EntityConflictError', 'done']);
    });
  });

  test('create an entity: it is there once', async () => {
    await repeat(async () => {
      const runId = await runningRun(one);
      const [stepId, hookId, waitId] = ['step', 'hook', 'wait'].map((kind) => `${kind}_${ulid()}`);
      for (const created of [
        stepCreated(stepId),
        event('hook_created', hookId, { token: hookId }),
        event('wait_created', waitId, { resumeAt: new Date() }),
      ]) {
        const results = await outcomes(
          [one, two].map((world) => world.events.create(runId, created)),
        );
        assert.deepEqual(names(results), ['EntityConflictError', 'done']);
      }
      assert.equal((await logOf(one, runId)).length, 5);
    });
  });

  test('report about a step: nothing follows its end (W6)', async () => {
    await repeat(async () => {
      const runId = await runningRun(one);
      const stepId = await pendingStep(one, runId);
      await outcomes([
        one.events.create(runId, event('step_started', stepId)),
        two.events.create(runId, event('step_started', stepId)),
        one.events.create(runId, event('step_retrying', stepId, { error: 'e' })),
        two.events.create(runId, event('step_completed', stepId, { result: bytes('r') })),
        one.events.create(runId, event('step_started', stepId)),
        two.events.create(runId, event('step_retrying', stepId, { error: 'e' })),
      ]);
      const types = await typesOf(two, runId);
      assert.equal(types.at(-1), 'step_completed', types.join());
      assert.equal((await one.steps.get(runId, stepId)).status, 'completed');
    });
  });

  test('a reader of what is new misses nothing (W6)', async () => {
    const runId = await runningRun(one);
    const { hookId } = await liveHook(one, runId);
    let writing = true;
    /** @param {typeof one} world */
    const write = async (world) => {
      for (let batch = 0; batch < 25; batch++) {
        const payload = bytes(`${batch}`);
        await Promise.all(
          Array.from({ length: 8 }, (_, i) =>
            i % 2 === 0
              ? world.events.create(runId, event('hook_received', hookId, { payload }))
              : pendingStep(world, runId),
          ),
        );
      }
    };
    /** @param {typeof one} world */
    const read = async (world) => {
      /** @type {string[]} */
      const seen = [];
      /** @type {string | undefined} */
      let cursor;
      for (let more = true; more; ) {
        more = writing;
        const page = await world.events.list({ runId, pagination: { sortOrder: 'asc', cursor } });
        seen.push(...page.data.map(({ eventId }) => eventId));
        cursor = page.cursor ?? cursor;
      }
      return seen;
    };
    const readers = [read(one), read(two)];
    await Promise.all([write(one), write(two)]);
    writing = false;
    const whole = (await logOf(one, runId)).map(({ eventId }) => eventId);
    assert.equal(whole.length, 403);
    for (const seen of await Promise.all(readers)) assert.deepEqual(seen, whole);
  });
});

test('a connection that is cut leaves whole events or none, and the caller does not notice (W5)', async () => {
  // By chance: the first call of a connection plans its statements, for longer than the killer pauses where the
  // machine is busy. Cut each time, it would come to no end.
  const kill = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND state = 'active' AND query LIKE '%"${database.schema}".append_events%'
      AND random() < 0.3`;
  let cut = 0;
  let done = false;
  const killer = (async () => {
    while (!done) {
      cut += (await database.pool.query(kill)).rowCount ?? 0;
      await sleep(20);
    }
  })();
  try {
    for (let round = 0; round < ROUNDS || (cut < 20 && round < 10 * ROUNDS); round++) {
      const runId = `wrun_${ulid()}`;
      const stepId = `step_${ulid()}`;
      const token = ulid();
      const { eventData } = runCreated();
      for (const step of [
        event('run_started', undefined, eventData),
        stepCreated(stepId),
        event('hook_created', `hook_${ulid()}`, { token }),
        event('step_started', stepId),
        event('step_completed', stepId, { result: bytes('r') }),
        event('run_completed', undefined, { output: bytes('o') }),
      ]) {
        await one.events.create(runId, step);
      }
    }
  } finally {
    done = true;
    await killer;
  }
  assert.ok(cut > 0, 'no connection was cut');
  await assertLogIsSound(database);
});

describe('random events at shared runs', () => {
  const seed = Number(process.env.TEST_SEED ?? Date.now() % 2 ** 31);

  /** @param {number} round */
  const shared = (round) => ({
    // Some of them are never created but by the race itself.
    runIds: Array.from({ length: 5 + (round % 20) }, () => `wrun_${ulid()}`),
    tokens: Array.from({ length: 1 + (round % 4) }, () => ulid()),
  });

  test(`of two Worlds leave a sound log (TEST_SEED=${seed})`, async (t) => {
    /** @type {Record<string, number>} */
    const sum = {};
    for (let round = 0; round < 30; round++) {
      const ids = shared(round);
      const racers = [one, two, one, two].map((world, i) =>
        race(world, { ...ids, seed: seed + 100 * round + i, batches: 12 }),
      );
      for (const outcome of await Promise.all(racers)) {
        for (const [name, count] of Object.entries(outcome)) sum[name] = (sum[name] ?? 0) + count;
      }
    }
    t.diagnostic(JSON.stringify(sum));
    for (const name of ['hook_conflict', 'hook_created', 'run_started', 'run_completed']) {
      assert.ok(sum[name] > 0, `${name} never came`);
    }
    await assertLogIsSound(database);
  });

  const script = fileURLToPath(new URL('racer.mjs', import.meta.url));

  /** @param {import('./racer.mjs').Race} task */
  function start(task) {
    const child = fork(script, { stdio: 'inherit' });
    const { url, schema, queueSchema } = database;
    child.send({ ...task, database: { url, schema, queueSchema } });
    return child;
  }

  test(`of three processes leave a sound log (TEST_SEED=${seed})`, async () => {
    const ids = shared(9);
    const processes = [1, 2, 3].map(async (i) => {
      const child = start({ ...ids, seed: seed + 10_000 * i, batches: 120 });
      const [outcome] = await Promise.race([once(child, 'message'), once(child, 'exit')]);
      assert.equal(typeof outcome, 'object', `process ${i} ended with ${outcome}`);
    });
    await Promise.all(processes);
    await assertLogIsSound(database);
  });

  test(`of processes that are killed leave a sound log (TEST_SEED=${seed})`, async () => {
    const ids = shared(19);
    const count = async () => {
      const { rows } = await database.pool.query(
        `SELECT count(*)::integer FROM ${database.schema}.workflow_events WHERE run_id = ANY ($1)`,
        [ids.runIds],
      );
      return rows[0].count;
    };
    for (let round = 0; round < 5; round++) {
      const before = await count();
      const children = [1, 2].map((i) =>
        start({ ...ids, seed: seed + 1000 * round + i, batches: 1e6 }),
      );
      const ends = children.map((child) => once(child, 'exit'));
      while ((await count()) < before + 15) {
        for (const { exitCode } of children) assert.equal(exitCode, null);
        await sleep(10);
      }
      for (const child of children) child.kill('SIGKILL');
      await Promise.all(ends);
    }
    await assertLogIsSound(database);
  });
});

test('after all this the log and the entities agree', async () => {
  await assertLogIsSound(database);
});
