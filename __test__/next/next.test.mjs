// The packed tarball in a production build of examples/nextjs, with each of the bundlers.
import assert from 'node:assert/strict';
import { cp, mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { completeOrder, example, installExample, nextIn } from '../../scripts/support/example.mjs';
import { freePort } from '../../scripts/support/postgres.mjs';
import { run, start } from '../../scripts/support/process.mjs';
import { testDatabase } from '../support/database.mjs';
import { assertInvariants, describeRun } from '../support/invariants.mjs';

// What a build may know: the database and its secrets are for the running app.
const buildEnv = {
  NODE_ENV: 'production',
  NEXT_TELEMETRY_DISABLED: '1',
  WORKFLOW_TARGET_WORLD: '@workflow/world-postgres',
};

describe('a production build of the Next.js example', () => {
  let directory = '';
  let installed = '';

  before(async () => {
    directory = await mkdtemp(path.join(tmpdir(), 'world-postgres-next-'));
    installed = path.join(directory, 'installed');
    await copyExample(installed);
    await installExample(installed);
  });
  after(() => rm(directory, { recursive: true, force: true }));

  for (const bundler of ['turbopack', 'webpack']) {
    test(`of ${bundler} runs an order under next start`, async (t) => {
      const app = await build(bundler);
      await runOrder(t, app, [nextIn(app), 'start', '--hostname', '127.0.0.1']);
    });
  }

  test('of turbopack runs standalone and moved, without configuration', async (t) => {
    const app = await build('turbopack', "{ output: 'standalone' }");
    await runOrder(t, await moveStandalone(app), ['server.js']);
  });

  test('of webpack runs standalone and moved, as an external package', async (t) => {
    const external = "serverExternalPackages: ['@workflow/world-postgres']";
    const app = await build('webpack', `{ output: 'standalone', ${external} }`);
    await runOrder(t, await moveStandalone(app), ['server.js']);
  });

  /** @param {string} bundler @param {string} [nextConfig] source of the configuration object */
  async function build(bundler, nextConfig) {
    const app = await mkdtemp(path.join(directory, `${bundler}-`));
    await copyExample(app);
    // Hard links: a node_modules of its own, in no time and no space.
    const copy = process.platform === 'linux' ? '-al' : '-RP';
    await run('cp', [copy, path.join(installed, 'node_modules'), app]);
    if (nextConfig) {
      const lines = [
        "import { withWorkflow } from 'workflow/next';",
        `export default withWorkflow(${nextConfig});\n`,
      ];
      await writeFile(path.join(app, 'next.config.ts'), lines.join('\n'));
    }
    await run(process.execPath, [nextIn(app), 'build', `--${bundler}`], {
      cwd: app,
      env: buildEnv,
    });
    return app;
  }

  /** To where neither the app nor a node_modules above it can help. @param {string} app */
  async function moveStandalone(app) {
    const moved = await mkdtemp(path.join(directory, 'moved-'));
    await rename(path.join(app, '.next', 'standalone'), path.join(moved, 'app'));
    await rm(app, { recursive: true });
    return path.join(moved, 'app');
  }
});

/**
 * @param {import('node:test').TestContext} t
 * @param {string} cwd
 * @param {string[]} args of Node
 */
async function runOrder(t, cwd, args) {
  const database = await testDatabase(t);
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const env = {
    ...buildEnv,
    ...database.env,
    PORT: String(port),
    HOSTNAME: '127.0.0.1',
    WORKFLOW_POSTGRES_APP_URL: url,
  };
  const app = start(process.execPath, args, { cwd, env });
  try {
    const { stream } = await completeOrder(url, { app });
    assert.equal(stream.match(/Reserved/g)?.length, 1, stream);
    assert.match(stream, /attempt 1.*attempt 2.*Done: on its way/s);
    await assertInvariants(database);
  } catch (error) {
    const runs = await database.pool.query(`SELECT run_id FROM ${database.schema}.workflow_runs`);
    const logs = await Promise.all(runs.rows.map(({ run_id }) => describeRun(database, run_id)));
    throw new Error([error, ...logs, 'the app printed', app.output()].join('\n\n'), {
      cause: error,
    });
  } finally {
    await app.stop();
  }
}

/** Without what building and running it has left there. @param {string} target */
async function copyExample(target) {
  const generated = ['node_modules', '.next', '.well-known', '.env'];
  await cp(example, target, {
    recursive: true,
    filter: (source) => !generated.includes(path.basename(source)),
  });
}
