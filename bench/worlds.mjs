import { execFile } from 'node:child_process';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { root } from '../__test__/support/app.mjs';

const run = promisify(execFile);

/**
 * @typedef {object} World
 * @property {string} name
 * @property {string} target the value of WORKFLOW_TARGET_WORLD
 * @property {string} [setup] program that prepares an empty database
 * @property {import('./history.mjs').Tables} [tables] absent where nothing is stored
 * @property {Record<string, string>} [env] of the app
 */

const officialEntry = fileURLToPath(import.meta.resolve('official-world-postgres'));

const ours = {
  target: '@workflow/world-postgres',
  setup: path.join(root, 'bin/workflow-postgres-setup.js'),
  tables: {
    schema: 'workflow_world',
    runs: ['run_id'],
    steps: ['run_id', 'step_id'],
    events: ['run_id', 'correlation_id'],
    eventNumber: 'slot',
  },
};

/** @type {Record<string, World>} */
export const worlds = {
  floor: { name: 'floor', target: path.join(root, 'bench/floor.mjs') },
  http: { ...ours, name: 'ours, HTTP' },
  function: { ...ours, name: 'ours, function', env: { TEST_PATTERN: 'function' } },
  official: {
    name: 'official 4.3.7',
    target: officialEntry,
    setup: path.join(officialEntry, '../../bin/setup.js'),
    tables: {
      schema: 'workflow',
      runs: ['id'],
      steps: ['run_id', 'step_id'],
      events: ['id', 'run_id', 'correlation_id'],
    },
  },
};

/**
 * What every World is given; all the rest is left at its default.
 *
 * @param {World} world
 * @param {string} url
 */
export function environment(world, url) {
  return {
    ...Object.fromEntries(
      Object.keys(process.env)
        .filter((name) => name.startsWith('WORKFLOW_'))
        .map((name) => [name, undefined]),
    ),
    NODE_ENV: 'production',
    WORKFLOW_TARGET_WORLD: world.target,
    WORKFLOW_POSTGRES_URL: url,
    WORKFLOW_POSTGRES_SECURITY_TOKEN: 'token-of-the-benchmark',
    WORKFLOW_POSTGRES_WORKER_CONCURRENCY: '10',
    TEST_METHODS: path.join(root, 'bench/inside.mjs'),
    ...world.env,
  };
}

/** @param {World} world @param {string} url */
export async function setUp(world, url) {
  if (!world.setup) return;
  const env = { ...process.env, ...environment(world, url) };
  await run(process.execPath, [world.setup], { cwd: root, env });
}
