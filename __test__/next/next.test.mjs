// The packed tarball in a production build of examples/nextjs, with each of the bundlers.
import assert from 'node:assert/strict';
import { cp, mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { setup } from '../../lib/setup.js';
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

const OWN_PREFIX = 'instrumentation_';
/** A preloaded module that prints each request which the process gets. */
const TELL_REQUESTS = `--import=data:text/javascript,${encodeURIComponent(`
  import { subscribe } from 'node:diagnostics_channel';
  subscribe('http.server.request.start', ({ request: { method, url } }) => {
    console.log('request ' + method + ' ' + url);
  });
`)}`;

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
      await runOrder(t, app, nextStart(app));
    });

    test(`of ${bundler} runs an order in its own process, without HTTP`, async (t) => {
      const app = await build(bundler, { prepare: useFunctionProxy });
      // Whoever would deliver over HTTP were to find nobody there.
      const env = { WORKFLOW_POSTGRES_APP_URL: `http://127.0.0.1:${await freePort()}` };
      const { database, output } = await runOrder(t, app, nextStart(app, TELL_REQUESTS), {
        env,
        check: async (url) => {
          const edge = await fetch(`${url}/api/edge`);
          assert.deepEqual([edge.status, await edge.text()], [200, 'from the edge']);
        },
      });
      const requests = [...output.matchAll(/^request .*/gm)].map(([line]) => line);
      assert.ok(requests.includes('request POST /api/orders'), requests.join('\n'));
      const deliveries = requests.filter((line) => /workflow\/v1\/(flow|step)/.test(line));
      assert.deepEqual(deliveries, []);
      const jobs = await database.pool.query(
        `SELECT DISTINCT name FROM ${database.queueSchema}.job ORDER BY name`,
      );
      assert.deepEqual(
        jobs.rows.map(({ name }) => name),
        [`${OWN_PREFIX}flows`, `${OWN_PREFIX}steps`],
        'the routes of the app sent to the driver of instrumentation.ts, and to no other',
      );
      assert.doesNotMatch(output, /another World/);

      const other = { ...env, WORKFLOW_TARGET_WORLD: '' };
      const unset = await serve(t, app, nextStart(app), other);
      await until(() => /The SDK uses another World.*"local"/.test(unset.app.output()), unset.app);
      await unset.app.stop();
    });
  }

  test('of turbopack runs standalone and moved, without configuration', async (t) => {
    const app = await build('turbopack', { nextConfig: "{ output: 'standalone' }" });
    await runOrder(t, await moveStandalone(app), ['server.js']);
  });

  test('of webpack runs standalone and moved, as an external package', async (t) => {
    const external = "serverExternalPackages: ['@workflow/world-postgres']";
    const app = await build('webpack', { nextConfig: `{ output: 'standalone', ${external} }` });
    await runOrder(t, await moveStandalone(app), ['server.js']);
  });

  /**
   * @param {string} bundler
   * @param {object} [options]
   * @param {string} [options.nextConfig] source of the configuration object
   * @param {(app: string) => Promise<void>} [options.prepare]
   */
  async function build(bundler, { nextConfig, prepare } = {}) {
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
    await prepare?.(app);
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

/** @param {string} app @param {string[]} flags of Node */
const nextStart = (app, ...flags) => [...flags, nextIn(app), 'start', '--hostname', '127.0.0.1'];

/** As the example's README says, with queues that only this driver knows, and an edge route. @param {string} app */
async function useFunctionProxy(app) {
  const source = await readFile(path.join(app, 'instrumentation.function-proxy.ts'), 'utf8');
  const options = `{ jobPrefix: '${OWN_PREFIX}', keepCompleted: true,`;
  const call = 'createPgBossFunctionProxyQueue(';
  await writeFile(
    path.join(app, 'instrumentation.ts'),
    source.replace(`${call}{`, `${call}${options}`),
  );
  const edge = path.join(app, 'app', 'api', 'edge');
  await mkdir(edge);
  await writeFile(
    path.join(edge, 'route.ts'),
    `export const runtime = 'edge';\nexport const GET = () => new Response('from the edge');\n`,
  );
}

/**
 * Runs the app with a database of its own.
 *
 * @param {import('node:test').TestContext} t
 * @param {string} cwd
 * @param {string[]} args of Node
 * @param {Record<string, string>} [more]
 */
async function serve(t, cwd, args, more) {
  const database = await testDatabase(t);
  const { url: connectionString, schema, queueSchema } = database;
  await setup({ connectionString, schema, queueSchema, jobPrefix: OWN_PREFIX });
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const env = {
    ...buildEnv,
    ...database.env,
    PORT: String(port),
    HOSTNAME: '127.0.0.1',
    WORKFLOW_POSTGRES_APP_URL: url,
    ...more,
  };
  const app = start(process.execPath, args, { cwd, env });
  t.after(() => app.stop());
  return { app, url, database };
}

/** @param {() => unknown} look @param {import('../../scripts/support/process.mjs').Started} app */
async function until(look, app) {
  for (const deadline = Date.now() + 60_000; !(await look()); await sleep(50)) {
    assert.ok(Date.now() < deadline && !app.hasEnded(), `in vain: ${look}\n${app.output()}`);
  }
}

/**
 * @param {import('node:test').TestContext} t
 * @param {string} cwd
 * @param {string[]} args of Node
 * @param {{ env?: Record<string, string>, check?: (url: string) => Promise<void> }} [options]
 */
async function runOrder(t, cwd, args, { env, check } = {}) {
  const { app, url, database } = await serve(t, cwd, args, env);
  try {
    const { stream } = await completeOrder(url, { app });
    assert.equal(stream.match(/Reserved/g)?.length, 1, stream);
    assert.match(stream, /attempt 1.*attempt 2.*Done: on its way/s);
    await assertInvariants(database);
    const health = await fetch(`${url}/api/health`);
    assert.deepEqual([health.status, await health.json()], [200, { healthy: true, started: true }]);
    await check?.(url);
    return { database, output: app.output() };
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
