// Messages that kill the process that delivers them: real processes, started again by a supervisor.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { after, describe, test } from 'node:test';
import { createWorld } from '../../index.js';
import { root } from '../support/app.mjs';
import { testDatabase } from '../support/database.mjs';
import { until } from './fixture.mjs';

const database = await testDatabase({ after });
const MOST = 2;

/**
 * A process that is started again as often as it dies; its deliveries of `bad` kill it.
 *
 * @param {import('node:test').TestContext} t
 * @param {Record<string, string | undefined>} env
 * @param {string} kind
 */
function supervise(t, env, kind) {
  const program = `
    import { createPgBossFunctionProxyQueue, createWorld } from '@workflow/world-postgres';
    const route = (prefix) => world.createQueueHandler(prefix, async (message) => {
      if (message.bad) process.kill(process.pid, 'SIGKILL');
      console.log(JSON.stringify({ delivered: message.runId }));
    });
    const world = createWorld({
      log: (line) => console.log(JSON.stringify(line)),
      queueFactory: () => createPgBossFunctionProxyQueue({
        workflowEntrypoint: (request) => route('__wkf_workflow_')(request),
        stepEntrypoint: (request) => route('__wkf_step_')(request),
      }),
    });
    await world.start();
    setInterval(() => {}, 1000);`;
  const state = { deaths: 0, lines: /** @type {any[]} */ ([]), kind };
  let stopped = false;
  /** @type {import('node:child_process').ChildProcess} */
  let child;
  const run = async () => {
    while (!stopped) {
      child = spawn(process.execPath, ['--input-type=module', '--eval', program], {
        cwd: root,
        env: { PATH: process.env.PATH, ...env, WORKFLOW_POSTGRES_MAX_LOST_LEASES: `${MOST}` },
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      const output = createInterface({
        input: /** @type {import('node:stream').Readable} */ (child.stdout),
      });
      output.on('line', (line) => state.lines.push(JSON.parse(line)));
      await once(child, 'exit');
      if (!stopped) state.deaths += 1;
    }
  };
  const running = run();
  t.after(async () => {
    stopped = true;
    child.kill('SIGKILL');
    await running;
  });
  return state;
}

describe('a message that kills its process', { concurrency: true }, () => {
  for (const kind of ['workflow', 'step']) {
    test(`(${kind}) is given up after ${MOST} deaths, named, kept, and holds up no others`, async (t) => {
      const own = await testDatabase(t, { url: database.url });
      const { url, schema, queueSchema } = own;
      const world = createWorld({ connectionString: url, schema, queueSchema });
      t.after(() => world.close());
      /** @type {any} */
      const bad =
        kind === 'step'
          ? { workflowRunId: 'wrun_bad', stepId: 'step_bad', bad: true }
          : { runId: 'wrun_bad', bad: true };
      await world.queue(/** @type {any} */ (`__wkf_${kind}_killer`), bad, {
        idempotencyKey: 'step_bad',
      });
      const state = supervise(t, own.env, kind);
      const dead = await until(() => state.lines.find(({ level }) => level === 'error'));
      assert.match(dead.message, /given up: its process died/);
      assert.deepEqual([dead.run, dead.times], ['wrun_bad', `${MOST}`]);
      assert.equal(state.deaths, MOST);
      const { rows } = await own.pool.query(
        `SELECT state::text, output ->> 'lost' AS lost, retry_count FROM ${queueSchema}.job`,
      );
      assert.deepEqual(rows, [{ state: 'failed', lost: `${MOST}`, retry_count: 0 }]);
      await world.queue('__wkf_workflow_w', { runId: 'wrun_good' });
      await until(() => state.lines.some(({ delivered }) => delivered === 'wrun_good'));
      assert.equal(state.deaths, MOST);
    });
  }
});
