import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { after, describe, test } from 'node:test';
import { testDatabase } from '../support/database.mjs';

const database = await testDatabase({ after });

/**
 * A process whose only flow prints `begun`, and `ended` when it is allowed to end.
 *
 * @param {import('node:test').TestContext} t
 * @param {string} until expression of a promise
 */
async function worker(t, until) {
  const source = `
    import { createPgBossFunctionProxyQueue, createWorld } from '@workflow/world-postgres';
    const headers = { 'x-workflow-world': 'postgres' };
    async function workflowEntrypoint(request) {
      if (request.headers.has('x-workflow-probe')) return Response.json({}, { headers });
      console.log('begun');
      await ${until};
      console.log('ended');
      return Response.json({}, { headers });
    }
    const queueFactory = () => createPgBossFunctionProxyQueue({ workflowEntrypoint });
    const world = createWorld({ closeOnSignals: true, queueFactory });
    await world.start();
    await world.queue('__wkf_workflow_w', { runId: 'wrun_signals' });`;
  const child = spawn(process.execPath, ['--input-type=module', '--eval', source], {
    env: { ...process.env, ...database.env },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  /** @type {string[]} */
  const lines = [];
  const reader = createInterface({ input: child.stdout });
  reader.on('line', (line) => lines.push(line));
  const exit = once(child, 'exit');
  await Promise.race([once(reader, 'line'), exit]);
  return { child, lines, exit };
}

describe('a World with closeOnSignals', () => {
  for (const signal of /** @type {const} */ (['SIGTERM', 'SIGINT'])) {
    test(`lets what runs end on ${signal}, which then has its usual effect`, async (t) => {
      const { child, lines, exit } = await worker(t, 'new Promise((end) => setTimeout(end, 500))');
      child.kill(signal);
      assert.deepEqual(await exit, [null, signal]);
      assert.deepEqual(lines, ['begun', 'ended']);
    });
  }

  test('ends at once on the second signal', async (t) => {
    const { child, lines, exit } = await worker(t, 'new Promise(() => {})');
    child.kill('SIGTERM');
    // The first one has removed the listeners when this has an effect; before that it has none.
    const again = setInterval(() => child.kill('SIGTERM'), 50);
    assert.deepEqual(await exit, [null, 'SIGTERM']);
    clearInterval(again);
    assert.deepEqual(lines, ['begun']);
  });
});
