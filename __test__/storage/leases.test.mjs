import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { testDatabase } from '../support/database.mjs';
import { relay } from '../support/relay.mjs';
import {
  assertLogIsSound,
  bytes,
  event,
  logOf,
  openWorld,
  pendingStep,
  refusal,
  runningRun,
} from './fixture.mjs';

/** @typedef {() => Promise<Record<string, any> | undefined>} Execution */

const TOKEN = 'token-of-the-tests';
const database = await testDatabase({ after });
const world = openWorld(database, { securityToken: TOKEN });
after(() => world.close());

/**
 * A step, and deliveries of it as the SDK's handler takes them: it starts the step, then executes.
 *
 * @param {object} options
 * @param {import('./fixture.mjs').World} [options.through] executes it
 * @param {Execution[]} options.executions of the deliveries, in their order: what each comes to, as an event
 */
async function stepOf({ through = world, executions }) {
  const runId = await runningRun(world);
  const stepId = await pendingStep(world, runId);
  let started = 0;
  const { promise: begun, resolve: begin } = withResolvers();
  const handler = world.createQueueHandler('__wkf_step_', async () => {
    const execution = executions[started];
    await through.events.create(runId, event('step_started', stepId));
    started += 1;
    begin(undefined);
    const outcome = await execution?.();
    if (outcome) await through.events.create(runId, { ...outcome, correlationId: stepId });
  });
  const deliver = async () => {
    const response = await handler(
      new Request('http://localhost/.well-known/workflow/v1/step', {
        method: 'POST',
        headers: {
          'x-workflow-secret': TOKEN,
          'x-vqs-queue-name': '__wkf_step_s',
          'x-vqs-message-id': 'msg_1',
          'x-vqs-message-attempt': '1',
        },
        body: JSON.stringify({ workflowRunId: runId, stepId }),
      }),
    );
    return { status: response.status, body: await response.json() };
  };
  /** @returns {Promise<Date | null>} */
  const leaseUntil = async () => {
    const { rows } = await database.pool.query(
      `SELECT lease_until FROM ${database.schema}.workflow_steps WHERE step_id = $1`,
      [stepId],
    );
    return rows[0].lease_until;
  };
  return { runId, stepId, deliver, begun, leaseUntil };
}

/** @param {Execution[]} executions */
const step = (...executions) => stepOf({ executions });

function withResolvers() {
  let resolve = (/** @type {unknown} */ _value) => {};
  const promise = new Promise((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}

/** As if the process that executes the step had given no sign of life for long. @param {string} stepId */
const expire = (stepId) =>
  database.pool.query(
    `UPDATE ${database.schema}.workflow_steps SET lease_until = now() - interval '1 minute' WHERE step_id = $1`,
    [stepId],
  );

const completed = event('step_completed', undefined, { result: bytes('result') });

test('while a step runs, another delivery of it is told to come back, and executes nothing', async () => {
  const gate = withResolvers();
  let executions = 0;
  const { deliver, begun, leaseUntil } = await step(
    async () => {
      executions += 1;
      await gate.promise;
      return completed;
    },
    async () => {
      executions += 1;
      return completed;
    },
  );
  const first = deliver();
  await begun;
  const second = await deliver();
  assert.match(second.body, /TooEarlyError/);
  gate.resolve(undefined);
  assert.equal((await first).status, 200);
  assert.equal(executions, 1);
  assert.equal(await leaseUntil(), null);
  await assertLogIsSound(database);
});

test('the lease lasts as long as the code runs', async () => {
  const gate = withResolvers();
  const { deliver, begun, leaseUntil } = await step(async () => {
    await gate.promise;
    return completed;
  });
  const first = deliver();
  await begun;
  const pulse = async () => {
    const { rows } = await database.pool.query(`SELECT at FROM ${database.schema}.workflow_pulse`);
    return Number(rows[0].at);
  };
  const [taken, before] = [Number(await leaseUntil()), await pulse()];
  while (Number(await leaseUntil()) <= taken) {
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  // Others can tell from it that leases can be renewed.
  assert.ok((await pulse()) > before);
  gate.resolve(undefined);
  assert.equal((await first).status, 200);
});

test('a lease is renewed while readers wait for all connections of the pool', async () => {
  const gate = withResolvers();
  let executions = 0;
  const { runId, deliver, begun, leaseUntil } = await step(
    async () => {
      executions += 1;
      await gate.promise;
      return completed;
    },
    async () => {
      executions += 1;
      return completed;
    },
  );
  const first = deliver();
  await begun;
  const blocker = await database.pool.connect();
  let locked = true;
  const readers = [];
  try {
    await blocker.query(`BEGIN; LOCK TABLE ${database.schema}.workflow_runs`);
    for (let reader = 0; reader < 20; reader += 1) {
      // As `run.returnValue` asks again and again.
      readers.push(
        (async () => {
          while (locked) await world.runs.get(runId).catch(() => {});
        })(),
      );
    }
    const end = Date.now() + 10_000;
    while (Date.now() < end) {
      assert.ok(Number(await leaseUntil()) > Date.now(), 'the lease has expired');
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  } finally {
    locked = false;
    await blocker.query('ROLLBACK');
    blocker.release();
  }
  assert.match((await deliver()).body, /TooEarlyError/);
  gate.resolve(undefined);
  assert.equal((await first).status, 200);
  assert.equal(executions, 1);
  await Promise.all(readers);
});

test('an execution that leaves no outcome leaves no lease: the next delivery executes at once', async () => {
  const { deliver, leaseUntil } = await step(
    () => Promise.reject(new Error('no outcome')),
    async () => completed,
  );
  assert.equal((await deliver()).status, 500);
  assert.equal(await leaseUntil(), null);
  assert.equal((await deliver()).status, 200);
});

test('a step that is to be retried can be started at once', async () => {
  const { deliver, leaseUntil } = await step(
    async () => event('step_retrying', undefined, { error: 'again' }),
    async () => completed,
  );
  assert.equal((await deliver()).status, 200);
  assert.equal(await leaseUntil(), null);
  assert.equal((await deliver()).status, 200);
});

test('a step whose process died can be started when its lease has ended', async () => {
  const { runId, stepId, deliver } = await step(async () => completed);
  const lease = (/** @type {string} */ until) =>
    database.pool.query(
      `UPDATE ${database.schema}.workflow_steps SET lease_until = ${until} WHERE step_id = $1`,
      [stepId],
    );
  await world.events.create(runId, event('step_started', stepId));
  await lease(`now() + interval '5 s'`);
  assert.match((await deliver()).body, /TooEarlyError/);
  // Other processes came through in the meantime, so that its own could have renewed.
  await database.pool.query(
    `UPDATE ${database.schema}.workflow_pulse SET at = now(), gap_from = 'epoch', gap_to = 'epoch'`,
  );
  await lease('now()');
  assert.deepEqual(await deliver(), { status: 200, body: { ok: true } });
});

test('a lease that nobody could have renewed lasts once more, and no longer', async () => {
  const { runId, stepId, deliver } = await step(async () => completed);
  await world.events.create(runId, event('step_started', stepId));
  const ago = (/** @type {number} */ seconds) =>
    database.pool.query(
      `WITH pulse AS (
         UPDATE ${database.schema}.workflow_pulse SET at = at - $2 * interval '1 s',
           gap_from = gap_from - $2 * interval '1 s', gap_to = gap_to - $2 * interval '1 s'
       )
       UPDATE ${database.schema}.workflow_steps
       SET lease_until = COALESCE(lease_until, now() + interval '6 s') - $2 * interval '1 s' WHERE step_id = $1`,
      [stepId, seconds],
    );
  // No process has come through since it was taken.
  await ago(12);
  const first = await deliver();
  assert.match(first.body, /TooEarlyError/);
  await ago(5);
  assert.match((await deliver()).body, /TooEarlyError/);
  // Also where nothing else than this delivery ever comes through.
  await ago(2);
  assert.deepEqual(await deliver(), { status: 200, body: { ok: true } });
});

test('a step whose process died is not started again when its run was cancelled', async () => {
  let executions = 0;
  const { runId, stepId, deliver } = await step(
    async () => {
      await world.events.create(runId, event('run_cancelled'));
      // As if this process had died meanwhile.
      await expire(stepId);
      executions += 1;
      const again = await deliver();
      assert.match(again.body, /RunExpiredError/);
      return completed;
    },
    async () => {
      executions += 1;
      return completed;
    },
  );
  assert.equal((await deliver()).status, 200, 'the attempt that lives may still report');
  assert.equal(executions, 1);
});

test('a delivery that is told to come back is told in whole seconds, of which one at least', async () => {
  const { runId, stepId, deliver, begun } = await step(async () => {
    const again = await refusal(world.events.create(runId, event('step_started', stepId)));
    assert.equal(again.name, 'TooEarlyError');
    assert.ok(Number.isInteger(again.retryAfter) && again.retryAfter >= 1, again.retryAfter);
    return completed;
  });
  assert.equal((await deliver()).status, 200, String(await begun));
});

for (const outcome of [
  completed,
  event('step_failed', undefined, { error: 'no' }),
  event('step_retrying', undefined, { error: 'again' }),
]) {
  test(`${outcome.eventType} of an attempt that another delivery took over is refused`, async () => {
    const stale = withResolvers();
    const taken = withResolvers();
    const gate = withResolvers();
    const { runId, stepId, deliver, begun, leaseUntil } = await step(
      async () => {
        await stale.promise;
        // The SDK takes the step for finished then, and does nothing more with it.
        const error = await refusal(
          world.events.create(runId, { ...outcome, correlationId: stepId }),
        );
        assert.equal(error.name, 'EntityConflictError', error.stack);
        return undefined;
      },
      async () => {
        taken.resolve(undefined);
        await gate.promise;
        return completed;
      },
    );
    const first = deliver();
    await begun;
    await expire(stepId);
    const second = deliver();
    await taken.promise;
    stale.resolve(undefined);
    const answer = await first;
    // The delivery of the stale attempt must not be taken for done: the one that took over may die too.
    assert.ok(answer.body.timeoutSeconds > 0, JSON.stringify(answer));
    assert.ok(await leaseUntil(), 'the lease of the attempt that runs');
    gate.resolve(undefined);
    assert.equal((await second).status, 200);
    const types = (await logOf(world, runId)).map(({ eventType }) => eventType);
    assert.deepEqual(types.slice(-3), ['step_started', 'step_started', 'step_completed']);
    await assertLogIsSound(database);
  });
}

test('an attempt that nobody took over counts, though its lease has expired', async () => {
  const gate = withResolvers();
  const { stepId, deliver, begun } = await step(async () => {
    await gate.promise;
    return completed;
  });
  const first = deliver();
  await begun;
  await expire(stepId);
  gate.resolve(undefined);
  assert.deepEqual(await first, { status: 200, body: { ok: true } });
});

test('a stale attempt neither renews nor gives back the lease of the attempt that took over', async () => {
  const gate = withResolvers();
  const failing = withResolvers();
  const waiting = async () => {
    await gate.promise;
    return completed;
  };
  const stale = await step(() =>
    failing.promise.then(() => Promise.reject(new Error('no outcome'))),
  );
  const first = stale.deliver();
  await stale.begun;
  // As another process takes it over.
  const { rows } = await database.pool.query(
    `UPDATE ${database.schema}.workflow_steps SET lease_request = lease_request + 1, lease_until = '2100-01-01'
     WHERE step_id = $1 RETURNING lease_until`,
    [stale.stepId],
  );
  // A step that this process does hold tells when it has renewed what it holds.
  const own = await step(waiting);
  const second = own.deliver();
  await own.begun;
  for (let renewals = 0, last = await own.leaseUntil(); renewals < 2; ) {
    const now = await own.leaseUntil();
    if (Number(now) > Number(last)) renewals += 1;
    last = now;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.deepEqual(await stale.leaseUntil(), rows[0].lease_until);
  failing.resolve(undefined);
  assert.equal((await first).status, 500);
  assert.deepEqual(await stale.leaseUntil(), rows[0].lease_until);
  gate.resolve(undefined);
  assert.equal((await second).status, 200);
});

for (const { others, outcome } of [
  { others: 0, outcome: 'executes the step, which is still its own' },
  { others: 1, outcome: 'executes nothing where another start came since' },
]) {
  test(`a start whose answer took longer than the lease ${outcome}`, async (t) => {
    const line = await relay(t, database.url);
    const far = openWorld(database, { connectionString: line.url, maxPoolSize: 1 });
    t.after(() => far.close());
    let executions = 0;
    const { stepId, deliver, leaseUntil } = await stepOf({
      through: far,
      executions: [
        async () => {
          executions += 1;
          line.calm();
          return completed;
        },
      ],
    });
    // A connection that is at hand, and knows the statement, needs no other exchange.
    await runningRun(far);
    line.delay(3200);
    const delivering = deliver();
    while (!(await leaseUntil())) await new Promise((resolve) => setTimeout(resolve, 50));
    // As another process would start it, once the lease has expired.
    await database.pool.query(
      `UPDATE ${database.schema}.workflow_steps SET lease_request = lease_request + $1 WHERE step_id = $2`,
      [others, stepId],
    );
    // The answer is on its way; what is asked next is answered at once.
    await new Promise((resolve) => setTimeout(resolve, 1000));
    line.delay(0);
    const answer = await delivering;
    assert.equal(executions, 1 - others, JSON.stringify(answer));
    if (others) assert.match(answer.body, /TooEarlyError.*started again/);
    else assert.equal(answer.status, 200);
  });
}

test('a World whose step leases cannot be renewed is not healthy, and says why', async (t) => {
  const gate = withResolvers();
  const { deliver, begun } = await step(async () => {
    await gate.promise;
    return completed;
  });
  const first = deliver();
  await begun;
  const blocker = await database.pool.connect();
  await blocker.query(`BEGIN; LOCK TABLE ${database.schema}.workflow_steps`);
  t.after(async () => {
    await blocker.query('ROLLBACK');
    blocker.release();
  });
  const health = async () => /** @type {any} */ (world).health();
  for (const end = Date.now() + 10_000; (await health()).healthy; ) {
    assert.ok(Date.now() < end, 'it is still healthy');
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.match(
    (await health()).error,
    /^The leases of running steps were not renewed for [\d.]+ s$/,
  );
  await blocker.query('ROLLBACK');
  for (const end = Date.now() + 20_000; !(await health()).healthy; ) {
    assert.ok(Date.now() < end, 'it stays unhealthy');
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  gate.resolve(undefined);
  assert.equal((await first).status, 200);
});
