import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { after, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { testDatabase } from '../support/database.mjs';

const database = await testDatabase({ after });

/**
 * The tests that each fault must make fail, and no others; after a question mark, those that it does on
 * a slow or on a fast machine only.
 *
 * @type {Record<string, string[]>}
 */
const FAULTS = {
  none: [],
  'ignores the kind': [
    'delivers steps to the step route and workflows to the workflow route',
    'a workflow that asks for a pause comes again after it, and not before',
  ],
  'changes bytes': ['delivers a body byte by byte'],
  'delivers before start': [
    'delivers before start() nothing, and then what was pushed before it',
    'delivers by instances that were started only',
    'delivers nothing after close()',
  ],
  'loses what failed': [
    'delivers again what failed, until it succeeds',
    'counts the failed deliveries in attempt, from 1',
    'loses nothing while its target is away',
    'leaves to others what fails while it closes',
    'a message reaches its handler, again where that fails',
  ],
  'gives up': [
    'delivers again what failed, until it succeeds',
    '?loses nothing while its target is away',
  ],
  'counts no attempts': [
    'counts the failed deliveries in attempt, from 1',
    'a message reaches its handler, again where that fails',
  ],
  // What the World makes of it holds all the same.
  'knows no delays': ['keeps a message back for delaySeconds', 'takes a delay of months'],
  'drops a key for ever': ['takes a key again after its message has ended'],
  'delivers one at a time': [
    'does not let slow deliveries hold up others',
    'lets a running delivery end when it closes',
    'leaves to others what fails while it closes',
  ],
  'forgets what runs long': [
    'does not take a long delivery for a lost one',
    '?executes once what is pushed several times under a key, while it runs',
    '?lets a running delivery end when it closes',
  ],
  'does not wait for what runs': ['lets a running delivery end when it closes'],
};

describe('the conformance suite finds that a driver', { concurrency: 3 }, () => {
  for (const [fault, expected] of Object.entries(FAULTS)) {
    test(fault, async () => {
      const { failed, output } = await run(fault);
      const certain = failed.filter((name) => !expected.includes(`?${name}`));
      const named = expected.filter((name) => !name.startsWith('?'));
      assert.deepEqual(certain.sort(), named.sort(), output);
    });
  }
});

/** @param {string} fault */
async function run(fault) {
  // In a run of its own, not as a part of this one.
  const { NODE_TEST_CONTEXT: _, ...env } = { ...process.env, ...database.env };
  const file = fileURLToPath(new URL('faulty.mjs', import.meta.url));
  /** @type {string} */
  const output = await new Promise((resolve) => {
    execFile(
      process.execPath,
      ['--test-reporter=tap', file, fault],
      { env, maxBuffer: 2 ** 26, timeout: 180_000 },
      (_error, stdout, stderr) => resolve(stdout + stderr),
    );
  });
  assert.match(output, /^# tests \d\d+$/m, output);
  const failed = [...output.matchAll(/^ *not ok \d+ - (.*)$/gm)].map(([, name]) => name);
  const suites = ['in a World', 'a driver in memory'];
  return { failed: failed.filter((name) => !suites.includes(name)), output };
}
