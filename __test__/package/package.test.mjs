// The tarball, in a project of its own outside the repository: what a user gets.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { isAcceptable, linkedCrates, textsOf } from '../../scripts/notices.mjs';
import { testDatabase } from '../support/database.mjs';

const root = fileURLToPath(new URL('../..', import.meta.url));
const run = promisify(execFile);

describe('the packed package, installed without install scripts', () => {
  /** @type {string} */
  let project;

  before(async () => {
    project = await mkdtemp(path.join(tmpdir(), 'world-postgres-package-'));
    const { stdout } = await run('npm', ['pack', '--json', '--pack-destination', project], {
      cwd: root,
    });
    const [{ filename }] = JSON.parse(stdout);
    await writeFile(path.join(project, 'package.json'), '{ "private": true }');
    await run('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', filename], {
      cwd: project,
    });
  });
  after(() => rm(project, { recursive: true, force: true }));

  /** @param {string[]} args @param {Record<string, string>} [env] */
  const node = (args, env) =>
    run(process.execPath, args, { cwd: project, env: { ...process.env, ...env } });

  const useIt = `
    const world = createWorld();
    const { run } = await world.events.create(null, {
      eventType: 'run_created', specVersion: 3,
      eventData: { deploymentId: 'postgres', workflowName: 'w', input: new Uint8Array([1, 2]) },
    });
    console.log(JSON.stringify([...(await world.runs.get(run.runId)).input]));
    await world.close();`;

  test('is set up by its command and works when it is imported', async (t) => {
    const { env } = await testDatabase(t);
    const setup = await run('npx', ['workflow-postgres-setup'], {
      cwd: project,
      env: { ...process.env, ...env },
    });
    assert.match(setup.stdout, /Ready\./);
    await writeFile(
      path.join(project, 'use.mjs'),
      `import { createWorld } from '@workflow/world-postgres';${useIt}`,
    );
    assert.equal((await node(['use.mjs'], env)).stdout, '[1,2]\n');
  });

  test('works when it is required', async (t) => {
    const { env } = await testDatabase(t);
    const source = `const { createWorld } = require('@workflow/world-postgres'); (async () => {${useIt}})();`;
    await writeFile(path.join(project, 'use.cjs'), source);
    assert.equal((await node(['use.cjs'], env)).stdout, '[1,2]\n');
  });

  test('names each crate that is linked into it, with its licence', async () => {
    const file = 'node_modules/@workflow/world-postgres/THIRD-PARTY-NOTICES.md';
    const notices = await readFile(path.join(project, file), 'utf8');
    const crates = linkedCrates();
    assert.ok(crates.length > 100, `${crates.length}`);
    for (const crate of crates) {
      const title = `${crate.name} ${crate.version} (${crate.license})`;
      assert.ok(notices.includes(title), title);
      assert.ok(isAcceptable(crate.license), title);
      const texts = textsOf(crate);
      assert.ok(texts.length > 0 && texts.every((text) => text.length > 60), title);
    }
  });

  test('takes licences only whose terms it can keep', () => {
    for (const license of ['MIT', 'MIT/Apache-2.0', '(MIT OR Apache-2.0) AND Unicode-3.0', 'ISC']) {
      assert.ok(isAcceptable(license), license);
    }
    for (const license of [null, '', 'GPL-3.0', 'MIT AND MPL-2.0', 'CDLA-Permissive-2.0']) {
      assert.ok(!isAcceptable(license), `${license}`);
    }
  });

  test('holds no sources, tests or build leftovers', async () => {
    const installed = path.join(project, 'node_modules/@workflow/world-postgres');
    const shipped = (await readdir(installed)).sort();
    assert.deepEqual(
      shipped.filter((name) => name !== 'node_modules'),
      [
        'LICENSE.md',
        'README.md',
        'THIRD-PARTY-NOTICES.md',
        'bin',
        'docker-compose.yaml',
        'index.d.ts',
        'index.js',
        'lib',
        'migrations',
        'native',
        'package.json',
        'queue-drivers',
        'schema.d.ts',
        'schema.js',
        'testing.d.ts',
        'testing.js',
        'upstash.d.ts',
        'upstash.js',
      ],
    );
  });

  test('has nothing in it that the SDK would take for a directive or for serialisable classes', async () => {
    const installed = path.join(project, 'node_modules/@workflow/world-postgres');
    const words = ['use workflow', 'use step', '@workflow/serde', 'workflow-serialize'];
    // grep answers 1 where it finds nothing.
    await assert.rejects(
      run('grep', [
        '-rlE',
        `['"](${words.join('|')})`,
        '--include=*.js',
        '--include=*.cjs',
        installed,
      ]),
      { code: 1 },
    );
  });
});
