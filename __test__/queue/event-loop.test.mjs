// A process whose event loop does not turn must not keep messages from the others.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { createPgBossFunctionProxyQueue } from '../../index.js';
import { ulid } from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { place, routes, until } from './fixture.mjs';

const database = await testDatabase({ after });
const program = fileURLToPath(new URL('event-loop-app.mjs', import.meta.url));
const BLOCK_MS = 12_000;

/**
 * The process of event-loop-app.mjs.
 *
 * @param {import('node:test').TestContext} t
 * @param {Record<string, string>} env
 */
async function app(t, env) {
  const child = spawn(process.execPath, [program], {
    env: { ...process.env, ...database.env, TEST_BLOCK_MS: String(BLOCK_MS), ...env },
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  t.after(() => child.kill('SIGKILL'));
  /** @type {any[]} */
  const lines = [];
  createInterface({ input: child.stdout }).on('line', (line) => lines.push(JSON.parse(line)));
  let errors = '';
  child.stderr.setEncoding('utf8').on('data', (text) => {
    errors += text;
  });
  await until(() => lines.some(({ ready }) => ready) || (child.exitCode !== null && errors));
  return {
    lines,
    errors: () => errors,
    executed: () => lines.flatMap(({ executed }) => executed ?? []),
    async health() {
      const known = lines.length;
      child.stdin.write('\n');
      return until(() => lines.slice(known).find(({ healthy }) => healthy !== undefined));
    },
    async close() {
      child.stdin.end();
      await once(child, 'exit');
    },
  };
}

for (const proxy of ['http', 'function']) {
  test(`(${proxy}) while JavaScript does not turn, others get the messages`, async (t) => {
    const jobPrefix = `t${ulid()}_`;
    const open = place(t, database);
    /** @type {string[]} */
    const executed = [];
    const { step, flow } = routes({
      step: ({ stepId }) => {
        executed.push(stepId);
      },
    });
    const other = await open({
      jobPrefix,
      queueFactory: () =>
        createPgBossFunctionProxyQueue({ stepEntrypoint: step, workflowEntrypoint: flow }),
    });
    const blocked = await app(t, { TEST_PROXY: proxy, TEST_JOB_PREFIX: jobPrefix });
    /** @param {string} stepId */
    const push = (stepId) => other.queue('__wkf_step_s', { stepId }, { idempotencyKey: stepId });
    const active = async () => {
      const { rows } = await database.pool.query(
        `SELECT singleton_key AS key FROM ${database.queueSchema}.job
          WHERE name = $1 AND state = 'active' ORDER BY key`,
        [`${jobPrefix}steps`],
      );
      return rows.map(({ key }) => key);
    };

    await push('block');
    await until(() => blocked.executed().includes('block'));
    const start = Date.now();
    const early = ['a', 'b', 'c', 'd', 'e'];
    await Promise.all(early.map(push));
    await until(async () => (await active()).length === 6);
    await other.start();
    await until(() => executed.length === 5);
    assert.ok(Date.now() - start < 8_000, 'they came when the event loop turned again');
    // A running step keeps its lease.
    await until(async () => (await active()).join() === 'block');
    // The blocked process does not claim jobs that are pushed now.
    const late = ['f', 'g', 'h'];
    const before = Date.now();
    await Promise.all(late.map(push));
    await until(() => executed.length === 8);
    assert.ok(Date.now() - before < 1_500, `${Date.now() - before} ms`);
    assert.ok(!blocked.lines.some(({ turns }) => turns), 'the event loop still does not turn');
    await until(() => blocked.lines.some(({ turns }) => turns));

    const { healthy, queue } = await blocked.health();
    assert.equal(healthy, false);
    assert.match(queue.error, /^The event loop of the process did not turn for 1[0-3]\.\d s$/);
    assert.ok(queue.deliveries.eventLoopLagMs >= 9_000, queue.deliveries.eventLoopLagMs);
    await until(async () => (await active()).length === 0);
    await sleep(500);
    assert.deepEqual(blocked.executed(), ['block']);
    assert.deepEqual(executed.sort(), [...early, ...late]);
    assert.equal(
      blocked.errors().match(/The event loop of process \d+ has not turned/g)?.length,
      1,
    );

    // It works again.
    await other.close();
    await open({ jobPrefix }).then((client) =>
      client.queue('__wkf_step_s', { stepId: 'again' }, { idempotencyKey: 'again' }),
    );
    await until(() => blocked.executed().includes('again'));
    await blocked.close();
  });
}
