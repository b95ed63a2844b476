import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { testDatabase } from '../support/database.mjs';
import { assertLogIsSound, openWorld, pendingStep, runningRun } from './fixture.mjs';

/** Which starts of a step count as attempts, and how long a step waits whose execution was ended from outside. */

const database = await testDatabase({ after });
const world = openWorld(database);
after(() => world.close());

const { url, schema, queueSchema } = database;
const env = {
  ...process.env,
  TEST_EXECUTOR: JSON.stringify({ url, schema, queueSchema, token: 'token-of-the-tests' }),
};
const program = fileURLToPath(new URL('./executor.mjs', import.meta.url));

/**
 * @typedef {object} Executor
 * @property {(step: Step) => Promise<number>} execute begins the step, as soon as it may; its attempt
 * @property {() => Promise<void>} close
 * @typedef {{ workflowRunId: string, stepId: string }} Step
 */

/** @returns {Promise<Step>} */
async function newStep() {
  const workflowRunId = await runningRun(world);
  return { workflowRunId, stepId: await pendingStep(world, workflowRunId) };
}

/**
 * @param {(message: unknown) => void} send
 * @param {(listener: (message: any) => void) => void} listen
 * @returns {Executor}
 */
function executor(send, listen) {
  /** @type {Map<string, (message: any) => void>} */
  const waiting = new Map();
  listen((message) => waiting.get(message.stepId)?.(message));
  return {
    /** Closes the World of it, as SIGTERM does. */
    async close() {
      const closed = new Promise((resolve) => {
        waiting.set('close', resolve);
      });
      send('close');
      await closed;
    },
    async execute(step) {
      const deadline = Date.now() + 40_000;
      for (;;) {
        const answer = await new Promise((resolve) => {
          waiting.set(step.stepId, resolve);
          send(step);
        });
        if (answer.attempt !== undefined) return answer.attempt;
        assert.ok(Date.now() < deadline, `not started: ${JSON.stringify(answer)}`);
        await sleep(250);
      }
    },
  };
}

/** @param {import('../support/database.mjs').Test} t */
function newProcess(t) {
  const child = fork(program, { env, stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
  const kill = async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGKILL');
    await once(child, 'exit');
  };
  t.after(kill);
  return {
    ...executor(
      (message) => child.send(/** @type {any} */ (message)),
      (listener) => child.on('message', listener),
    ),
    kill,
    /** Nothing of it moves, as in a machine that sleeps. */
    stop: () => child.kill('SIGSTOP'),
    go: () => child.kill('SIGCONT'),
  };
}

/** @param {import('../support/database.mjs').Test} t */
function newThread(t) {
  const worker = new Worker(program, { env });
  t.after(async () => void (await worker.terminate()));
  return {
    ...executor(
      (message) => worker.postMessage(message),
      (listener) => worker.on('message', listener),
    ),
    terminate: () => worker.terminate(),
  };
}

test('the steps of a terminated thread go on elsewhere at once, however long its process lives', async (t) => {
  const step = await newStep();
  const thread = newThread(t);
  assert.equal(await thread.execute(step), 1);
  await thread.terminate();
  const ended = Date.now();
  assert.equal(await newProcess(t).execute(step), 1);
  // Far less than the lease of 6 s: it was given back.
  assert.ok(Date.now() - ended < 4_000, `after ${Date.now() - ended} ms`);
  await assertLogIsSound(database);
});

test('a step that is handed over again and again has used up one attempt', async (t) => {
  const step = await newStep();
  for (let handed = 0; handed < 6; handed += 1) {
    const thread = newThread(t);
    assert.equal(await thread.execute(step), 1);
    if (handed % 2) await thread.terminate();
    else await thread.close();
  }
  await assertLogIsSound(database);
});

test('a step that was alone in a process that died has used up an attempt', async (t) => {
  const step = await newStep();
  const first = newProcess(t);
  assert.equal(await first.execute(step), 1);
  await first.kill();
  assert.equal(await newProcess(t).execute(step), 2);
});

test('steps that were lost beside others keep their attempts, until one is alone', async (t) => {
  const steps = [await newStep(), await newStep(), await newStep()];
  // The first one begins alone, and is told of the others before their code begins.
  for (let crashes = 0; crashes < 2; crashes += 1) {
    const process = newProcess(t);
    for (const step of steps) assert.equal(await process.execute(step), 1);
    await process.kill();
  }
  const process = newProcess(t);
  assert.equal(await process.execute(steps[0]), 1);
  await process.kill();
  assert.equal(await newProcess(t).execute(steps[0]), 2);
  await assertLogIsSound(database);
});

test('a step that is lost beside others for the eleventh time has used up an attempt', async (t) => {
  const step = await newStep();
  const first = newProcess(t);
  assert.equal(await first.execute(step), 1);
  await first.kill();
  await database.pool.query(
    `UPDATE ${schema}.workflow_steps SET lease_shared = true, uncounted = 9 WHERE step_id = $1`,
    [step.stepId],
  );
  const second = newProcess(t);
  assert.equal(await second.execute(step), 1);
  await second.kill();
  await database.pool.query(
    `UPDATE ${schema}.workflow_steps SET lease_shared = true WHERE step_id = $1`,
    [step.stepId],
  );
  assert.equal(await newProcess(t).execute(step), 2);
});

test('after a time in which no process came through, a new one leaves the living their steps', async (t) => {
  const step = await newStep();
  const old = newProcess(t);
  assert.equal(await old.execute(step), 1);
  const lease = async () => {
    const { rows } = await database.pool.query(
      `SELECT attempt, lease_until, now() > lease_until AS expired
       FROM ${schema}.workflow_steps WHERE step_id = $1`,
      [step.stepId],
    );
    return rows[0];
  };
  const taken = (await lease()).lease_until;
  while (Number((await lease()).lease_until) === Number(taken)) await sleep(50);
  old.stop();
  while (!(await lease()).expired) await sleep(100);
  // The new one asks first, and again and again until the old one has renewed.
  const executing = newProcess(t).execute(step);
  await sleep(2_000);
  assert.equal((await lease()).attempt, 1);
  old.go();
  while ((await lease()).expired) await sleep(50);
  const { lease_until: renewed } = await lease();
  while (Number((await lease()).lease_until) === Number(renewed)) await sleep(50);
  assert.equal((await lease()).attempt, 1);
  // Of one that is gone for good, the new one takes the step over.
  await old.kill();
  assert.equal(await executing, 2);
});
