import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { after, afterEach, describe, test } from 'node:test';
import { fixture, repeated } from './fixture.mjs';

/** @typedef {import('../support/app.mjs').App} App */
/** @typedef {Awaited<ReturnType<typeof fixture>>} Fixture */

/**
 * What holds wherever messages wait and whoever executes them: one list for every execution pattern.
 *
 * @param {string} pattern
 * @param {object} options
 * @param {(startApp: Fixture['app'], database: Fixture['database']) => Promise<App>} options.arrange
 *   starts the processes of the pattern; what it resolves with starts the runs
 * @param {boolean} [options.foreignQueue] messages wait elsewhere than in pg-boss's tables
 * @param {number} [options.largest] value in bytes: queues have limits, and a run starts with a message
 *   that holds its arguments
 */
export async function testScenarios(
  pattern,
  { arrange, foreignQueue = false, largest = 1_048_576 },
) {
  const {
    app: startApp,
    check,
    database,
    ended,
    ledger,
    until,
  } = await fixture({ after }, { foreignQueue });
  const app = await arrange(startApp, database);
  const { pool, schema } = database;

  /** @param {string} workflow @param {...unknown} args @returns {Promise<string>} */
  const start = (workflow, ...args) => app.call('start', workflow, args);

  /** @param {string} runId */
  async function outcome(runId) {
    const [status] = await ended([runId]);
    if (status === 'completed') return app.call('result', runId);
    return app.call('result', runId).then(
      () => assert.fail(`${runId} is ${status} and has a result`),
      (error) => error,
    );
  }

  /** @param {string} workflow @param {...unknown} args */
  const run = async (workflow, ...args) => outcome(await start(workflow, ...args));

  /** @param {string} runId @param {string} step */
  async function executions(runId, step) {
    const entries = await ledger(runId);
    const begun = entries.filter((entry) => entry.phase === 'begin' && entry.step === step);
    return begun.length;
  }

  /** @param {string} runId */
  async function assertOnce(runId) {
    assert.deepEqual(repeated(await ledger(runId)), []);
  }

  /** @param {string} runId @param {string} type @param {number} [count] */
  const event = (runId, type, count = 1) =>
    until([runId], async () => {
      const { rows } = await pool.query(
        `SELECT slot FROM ${schema}.workflow_events WHERE run_id = $1 AND type = $2`,
        [runId, type],
      );
      return rows.length >= count;
    });

  // Most of them wait most of the time.
  describe(pattern, { concurrency: 6 }, () => {
    afterEach(async () => {
      assert.ok(app.running(), app.logs());
      await check();
    });

    // First, for it takes the longest.
    test('a stream of 10,000 chunks arrives complete and in order', async () => {
      const runId = await start('counting', 10_000);
      const expected = Array.from({ length: 10_000 }, (_, n) => n);
      assert.deepEqual(await app.call('readStream', runId), expected, 'while it is written');
      assert.equal(await outcome(runId), 10_000);
      assert.deepEqual(await app.call('readStream', runId), expected, 'afterwards');
      assert.deepEqual(
        await app.call('readStream', runId, { startIndex: 9_990 }),
        expected.slice(9_990),
      );
      assert.deepEqual(await app.call('readStream', runId, { startIndex: -5 }), expected.slice(-5));
    });

    test('10 sequential steps run once each', async () => {
      const runId = await start('sequential', 10);
      assert.equal(await outcome(runId), 55);
      assert.equal(await executions(runId, 'add'), 10);
      await assertOnce(runId);
    });

    test('100 parallel steps run once each', async () => {
      const runId = await start('fanOut', 100);
      assert.equal(await outcome(runId), 328_350);
      assert.equal(await executions(runId, 'square'), 100);
      await assertOnce(runId);
    });

    test('a workflow may have the name of a step', async () => {
      assert.equal(await run('stepwise', 'done'), 'done');
    });

    test('an error is retried until the step succeeds', async () => {
      const runId = await start('retries', 2, 'not yet');
      assert.equal(await outcome(runId), 3);
      assert.equal(await executions(runId, 'flaky'), 3);
    });

    test('a RetryableError is retried not before its time', async () => {
      const runId = await start('retries', 1, 'not yet', 1500);
      assert.equal(await outcome(runId), 2);
      const [first, second] = (await ledger(runId)).filter(({ phase }) => phase === 'begin');
      assert.ok(second.at - first.at >= 1500, `${second.at - first.at} ms`);
    });

    test('a FatalError is not retried', async () => {
      const runId = await start('fatal', 'no');
      assert.deepEqual(await outcome(runId), { fatal: true, message: 'no' });
      assert.equal(await executions(runId, 'refuse'), 1);
    });

    test('a step fails when its retries are exhausted', async () => {
      const runId = await start('exhausted', 'never');
      assert.match((await outcome(runId)).message, /never/);
      assert.equal(await executions(runId, 'hopeless'), 3);
    });

    test('a step error that nobody catches fails the run', async () => {
      const error = await run('uncaught', 'nobody cares');
      assert.equal(error.name, 'WorkflowRunFailedError');
      assert.match(error.message, /nobody cares/);
    });

    test('a workflow that throws fails with its message and its stack', async () => {
      const runId = await start('failing', 'out of bounds');
      const error = await outcome(runId);
      assert.equal(error.name, 'WorkflowRunFailedError');
      assert.match(error.message, /out of bounds/);
      const stored = await app.call('run', runId);
      assert.equal(stored.status, 'failed');
      assert.equal(stored.error.message, 'out of bounds');
      assert.match(stored.error.stack, /failing/);
    });

    test('a sleep lasts as long as it says', async () => {
      const slept = await run('nap', 1200);
      assert.ok(slept >= 1200, `${slept} ms`);
    });

    test('sleeps in a loop all end', async () => {
      assert.equal(await run('naps', 3, 1000), 6);
    });

    test('a sleep can be cut short', async () => {
      const runId = await start('nap', 3_600_000);
      await event(runId, 'wait_created');
      await app.call('wakeUp', runId);
      await outcome(runId);
    });

    for (const at of [new Date(-8.64e15), new Date(Number.NaN)]) {
      test(`a sleep or a retry until ${at.getTime()} ms goes on at once`, async () => {
        assert.equal(await run('napUntil', at), 'awake');
        assert.equal(await run('retries', 1, 'not yet', at), 2);
      });
    }

    test('a hook resumes its run with the payload', async () => {
      const token = randomUUID();
      const runId = await start('approval', token);
      await event(runId, 'hook_created');
      const [hook] = await app.call('hooks', runId);
      assert.equal(hook.token, token);
      const payload = { approved: true, by: ['Ada', 'Grace'], at: new Date(0), none: undefined };
      assert.equal(await app.call('resumeHook', token, payload), runId);
      assert.deepEqual(await outcome(runId), payload);
      await assert.rejects(app.call('resumeHook', token, payload), { name: 'HookNotFoundError' });
    });

    test('a hook may have a token of 60,000 bytes', async () => {
      const token = `${randomUUID()}.`.repeat(1622);
      const owner = await start('approval', token);
      await event(owner, 'hook_created');
      assert.deepEqual(await run('claim', token), { owner });
      await app.call('resumeHook', token, 'mine');
      assert.equal(await outcome(owner), 'mine');
    });

    test('a hook whose token cannot be stored fails its run, which says why', async () => {
      const error = await run('approval', `${randomUUID()}\0`);
      assert.equal(error.name, 'WorkflowRunFailedError');
      assert.match(error.message, /token must not hold NUL/);
    });

    test('a hook gets every payload, in order', async () => {
      const token = randomUUID();
      const runId = await start('collect', token);
      await event(runId, 'hook_created');
      for (let value = 1; value <= 20; value++) {
        await app.call('resumeHook', token, { value, last: value === 20 });
      }
      assert.deepEqual(
        await outcome(runId),
        Array.from({ length: 20 }, (_, n) => 2 * (n + 1)),
      );
      await assertOnce(runId);
    });

    test('a hook that is disposed of frees its token while its run lives', async () => {
      const [token, next] = [randomUUID(), randomUUID()];
      const first = await start('handOver', token, next);
      await event(first, 'hook_created');
      await app.call('resumeHook', token, 1);
      await event(first, 'hook_created', 2);
      const second = await start('approval', token);
      await event(second, 'hook_created');
      await app.call('resumeHook', token, 2);
      await app.call('resumeHook', next, 3);
      assert.deepEqual(await outcome(first), [1, 3]);
      assert.equal(await outcome(second), 2);
    });

    test('a token has one owner, and the other run learns who', async () => {
      const token = randomUUID();
      const owner = await start('approval', token);
      await event(owner, 'hook_created');
      assert.deepEqual(await run('claim', token), { owner });
      assert.equal(await run('contend', token), 'HookConflictError');
      await app.call('resumeHook', token, 'mine');
      assert.equal(await outcome(owner), 'mine');
    });

    test('of many runs that want one token at once, one gets it', async () => {
      const token = randomUUID();
      const runIds = await Promise.all(Array.from({ length: 10 }, () => start('claim', token)));
      const rivals = await until(runIds, async () => {
        const { rows } = await pool.query(
          `SELECT run_id FROM ${schema}.workflow_runs WHERE run_id = ANY ($1) AND status = 'completed'`,
          [runIds],
        );
        return rows.length === 9 ? rows.map((row) => row.run_id) : undefined;
      });
      const owner = runIds.find((runId) => !rivals.includes(runId));
      await app.call('resumeHook', token, 'won');
      assert.deepEqual(
        await Promise.all(runIds.map(outcome)),
        runIds.map((runId) => (runId === owner ? { payload: 'won' } : { owner })),
      );
    });

    test('a run that ends before its sleep does leaves nothing behind', async () => {
      const token = randomUUID();
      const runId = await start('approvalWithin', token, 86_400_000);
      await event(runId, 'wait_created');
      await event(runId, 'hook_created');
      await app.call('resumeHook', token, 'in time');
      assert.equal(await outcome(runId), 'in time');
    });

    test('a webhook is resumed over HTTP and answers', async () => {
      const runId = await start('webhook');
      await event(runId, 'hook_created');
      const [hook] = await app.call('hooks', runId);
      const url = `${app.url}/.well-known/workflow/v1/webhook/${encodeURIComponent(hook.token)}`;
      const body = { from: 'outside', text: 'ü\u0000' };
      const response = await fetch(url, { method: 'PUT', body: JSON.stringify(body) });
      assert.equal(response.status, 200);
      assert.deepEqual(await response.json(), { received: body });
      assert.deepEqual(await outcome(runId), { method: 'PUT', body });
      assert.equal((await fetch(url, { method: 'POST' })).status, 404);
    });

    test('values of every serializable kind survive arguments, step results and outputs', async () => {
      const value = {
        text: 'ü 漢 😀 \\u0000 "quoted"',
        numbers: [0, -0, 1.5, Number.NaN, Number.POSITIVE_INFINITY],
        big: 2n ** 80n,
        date: new Date(1_700_000_000_123),
        map: new Map([['a', new Set([1, 2])]]),
        bytes: new Uint8Array([0, 1, 254, 255]),
        nothing: [undefined, null],
        empty: ['', [], {}],
      };
      assert.deepEqual(await run('echo', value), { direct: value, fromStep: value });
    });

    for (const value of [undefined, null, 0, false, '']) {
      test(`${JSON.stringify(value) ?? 'undefined'} is a value`, async () => {
        assert.deepEqual(await run('echo', value), { direct: value, fromStep: value });
      });
    }

    test(`arguments, step results and outputs of ${largest} bytes`, async () => {
      const text = '0123456789abcdef'.repeat(largest / 16);
      const { direct, fromStep } = await run('echo', text);
      assert.ok(direct === text && fromStep === text);
      const bytes = new Uint8Array(largest).map((_, n) => n % 256);
      const binary = await run('echo', bytes);
      assert.deepEqual(binary, { direct: bytes, fromStep: bytes });
    });

    test('a hook takes a 1 MB payload', async () => {
      const token = randomUUID();
      const runId = await start('approval', token);
      await event(runId, 'hook_created');
      const payload = 'p'.repeat(1_048_576);
      await app.call('resumeHook', token, payload);
      assert.ok((await outcome(runId)) === payload);
    });

    test('NUL in arguments, step results and hook payloads', async () => {
      const text = 'a\u0000b\u0000';
      assert.deepEqual(await run('echo', text), { direct: text, fromStep: text });
      const token = randomUUID();
      const runId = await start('approval', token);
      await event(runId, 'hook_created');
      await app.call('resumeHook', token, { [text]: text });
      assert.deepEqual(await outcome(runId), { [text]: text });
    });

    test('NUL in the message and the stack of an error', async () => {
      const message = 'a\u0000b';
      assert.equal(await run('retries', 1, message), 2);
      assert.equal(await run('retries', 1, message, 1), 2);
      assert.deepEqual(await run('fatal', message), { fatal: true, message });
      assert.ok((await run('exhausted', message)).message.includes(message));
      const failed = await start('failing', message);
      await outcome(failed);
      const { error } = await app.call('run', failed);
      assert.equal(error.message, message);
      assert.ok(error.stack.includes(message));
    });

    test('a stream with a name is another stream', async () => {
      const runId = await start('counting', 10, 'numbers');
      await outcome(runId);
      assert.equal((await app.call('readStream', runId, { namespace: 'numbers' })).length, 10);
    });

    test('a cancelled run ends at once and its hook with it', async () => {
      const token = randomUUID();
      const runId = await start('approval', token);
      await event(runId, 'hook_created');
      await app.call('cancel', runId);
      assert.equal((await outcome(runId)).name, 'WorkflowRunCancelledError');
      await assert.rejects(app.call('resumeHook', token, 1), { name: 'HookNotFoundError' });
      await app.call('cancel', runId);
    });

    test('a run that has ended cannot be cancelled', async () => {
      const runId = await start('sequential', 1);
      assert.equal(await outcome(runId), 1);
      await assert.rejects(app.call('cancel', runId), { name: 'EntityConflictError' });
    });

    test('a run is cancelled in the middle of a sleep', async () => {
      const runId = await start('nap', 86_400_000);
      await event(runId, 'wait_created');
      await app.call('cancel', runId);
      assert.deepEqual(await ended([runId]), ['cancelled']);
    });

    test('a run is cancelled in the middle of a step, which reports, and no other step starts', async () => {
      const runId = await start('sequential', 5, 1500);
      await until([runId], async () => (await executions(runId, 'add')) === 2);
      await app.call('cancel', runId);
      assert.deepEqual(await ended([runId]), ['cancelled']);
      await event(runId, 'step_completed', 2);
      await check();
      assert.equal(await executions(runId, 'add'), 2);
    });

    test('a run can be run again with its input', async () => {
      const runId = await start('echo', { text: 'again', big: 3n });
      const first = await outcome(runId);
      const again = await app.call('rerun', runId);
      assert.notEqual(again, runId);
      assert.deepEqual(await outcome(again), first);
    });

    test('the log of a run reads as the SDK writes it', async () => {
      const runId = await start('sequential', 1);
      await outcome(runId);
      const events = await app.call('events', runId);
      assert.deepEqual(
        events.map((/** @type {{ eventType: string }} */ { eventType }) => eventType),
        [
          'run_created',
          'run_started',
          'step_created',
          'step_started',
          'step_completed',
          'run_completed',
        ],
      );
    });

    for (const endpoint of ['workflow', 'step']) {
      test(`the SDK's health check of the ${endpoint} endpoint passes`, async () => {
        const { healthy, error } = await app.call('healthCheck', endpoint);
        assert.ok(healthy, error);
      });
    }

    test('the World says that it is healthy', async () => {
      const health = await app.call('health');
      assert.ok(health.healthy, JSON.stringify(health));
    });
  });
}
