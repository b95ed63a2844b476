import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { consumer } from '../support/consumer.mjs';

const run = promisify(execFile);
const REQUIRED = ['@workflow/world', 'pg-boss'];

/**
 * What a script prints in a project that has the package.
 * @param {import('../support/database.mjs').Test} t
 * @param {string[]} dependencies
 * @param {string} file
 * @param {string} source
 */
async function printed(t, dependencies, file, source) {
  const project = await consumer(t, dependencies);
  await writeFile(path.join(project, file), source);
  const { stdout } = await run(process.execPath, [file], { cwd: project });
  return JSON.parse(stdout);
}

test('the root works without drizzle-orm until one of its tables is touched', async (t) => {
  const { world, tables, error } = await printed(
    t,
    REQUIRED,
    'without.mjs',
    `import * as root from '@workflow/world-postgres';
     const world = Object.keys(root.createWorld());
     const tables = ['runs', 'events', 'steps', 'hooks', 'streams'].map((name) => typeof root[name]);
     let error;
     try {
       root.runs.runId;
     } catch ({ name, code, message }) {
       error = { name, code, message };
     }
     console.log(JSON.stringify({ world, tables, error }));`,
  );
  assert.ok(world.includes('start'));
  assert.deepEqual(tables, Array(5).fill('object'));
  assert.equal(error.name, 'WorkflowWorldError');
  assert.equal(error.code, 'NOT_INSTALLED');
  assert.match(error.message, /npm install drizzle-orm/);
});

const loaders = {
  'imports.mjs': (/** @type {string} */ name) => `await import('${name}')`,
  'requires.cjs': (/** @type {string} */ name) => `require('${name}')`,
};
for (const [file, load] of Object.entries(loaders)) {
  test(`an installed drizzle-orm is found: ${file}`, async (t) => {
    const names = await printed(
      t,
      [...REQUIRED, 'drizzle-orm'],
      file,
      `(async () => {
         const { runs } = ${load('@workflow/world-postgres')};
         const { waits } = ${load('@workflow/world-postgres/schema')};
         const { getTableName } = ${load('drizzle-orm')};
         console.log(JSON.stringify([runs, waits].map((table) => getTableName(table))));
       })();`,
    );
    assert.deepEqual(names, ['workflow_runs', 'workflow_waits']);
  });
}
