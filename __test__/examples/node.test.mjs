// examples/node as its README says, with the packed tarball.
import assert from 'node:assert/strict';
import { cp, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { installExample, root } from '../../scripts/support/example.mjs';
import { freePort } from '../../scripts/support/postgres.mjs';
import { run, start } from '../../scripts/support/process.mjs';
import { eventually } from '../sdk/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { assertInvariants } from '../support/invariants.mjs';

/** @typedef {import('../../scripts/support/process.mjs').Started} Started */
/** @typedef {import('../support/database.mjs').Test} Test */

const directory = await mkdtemp(path.join(tmpdir(), 'world-postgres-node-'));
after(() => rm(directory, { recursive: true, force: true }));
const app = path.join(directory, 'app');
const generated = ['node_modules', 'workflow', '.env'];
await cp(path.join(root, 'examples', 'node'), app, {
  recursive: true,
  filter: (source) => !generated.includes(path.basename(source)),
});
await installExample(app);
await run('npm', ['run', 'build'], {
  cwd: app,
  env: { WORKFLOW_TARGET_WORLD: '@workflow/world-postgres' },
});

/** The environment of a host, and what starts programs there. @param {Test} t @param {number} [port] */
async function host(t, port = 0) {
  /** @type {Started[]} */
  const programs = [];
  t.after(async () => {
    await Promise.all(programs.map((program) => program.stop()));
  });
  const database = await testDatabase(t);
  port ||= await freePort();
  const url = `http://localhost:${port}`;
  const queuePort = await freePort();
  const env = {
    ...database.env,
    NODE_ENV: 'production',
    PORT: String(port),
    WORKFLOW_POSTGRES_APP_URL: url,
    QUEUE_PORT: String(queuePort),
    QUEUE_URL: `http://localhost:${queuePort}`,
    APP_URL: url,
    SECURITY_TOKEN: database.env.WORKFLOW_POSTGRES_SECURITY_TOKEN,
  };
  /** @param {string[]} args of Node @param {Record<string, string>} [more] */
  const node = (args, more) => {
    const program = start(process.execPath, args, { cwd: app, env: { ...env, ...more } });
    programs.push(program);
    return program;
  };

  const output = () => programs.map((program) => program.output()).join('\n\n');

  /** @template T @param {() => Promise<T>} probe */
  const until = (probe) =>
    eventually(
      () => {
        assert.ok(!programs.some((program) => program.hasEnded()), output());
        return probe();
      },
      { report: output },
    );

  /** @param {string} path @param {object} [body] */
  const request = (path, body) =>
    fetch(`${url}${path}`, body && { method: 'POST', body: JSON.stringify(body) });

  return { database, node, until, request, programs };
}

/** @param {Awaited<ReturnType<typeof host>>} host */
async function completeOrder({ until, request }) {
  await until(() =>
    request('/healthz').then(
      ({ status }) => status === 200,
      () => false,
    ),
  );
  const created = await request('/orders', { cents: 1250 });
  assert.equal(created.status, 202);
  const { id, runId } = await created.json();
  await until(async () => (await request(`/orders/${id}/approval`, { by: 'Ada' })).status === 204);
  const finished = await until(async () => {
    const { status, result } = await (await request(`/runs/${runId}`)).json();
    return !['pending', 'running'].includes(status) && { status, result };
  });
  assert.deepEqual(finished, {
    status: 'completed',
    result: {
      id,
      paymentId: `payment of 1250 for ${id}`,
      approvedBy: 'Ada',
      parcel: `parcel with ${id}`,
    },
  });
}

const [major, minor] = process.versions.node.split('.').map(Number);
const runsTypeScript = major > 22 || (major === 22 && minor >= 18);
const worker = runsTypeScript ? ['worker.ts'] : ['--import', 'tsx', 'worker.ts'];

/** @type {[string, string[][], { foreignQueue?: boolean }?][]} */
const patterns = [
  ['http.mjs', [['http.mjs']]],
  ['function-proxy.mjs', [['function-proxy.mjs']]],
  ['web.mjs with two of worker.ts', [['web.mjs'], worker, worker]],
  [
    'serverless.mjs with queue-handler.mjs',
    [['serverless.mjs'], ['platform.mjs']],
    { foreignQueue: true },
  ],
];

for (const [name, commands, options] of patterns) {
  test(`${name} ships an order`, async (t) => {
    const here = await host(t);
    for (const command of commands) here.node(command);
    await completeOrder(here);
    await assertInvariants(here.database, options);
    for (const program of here.programs) {
      await program.stop();
      assert.doesNotMatch(program.output(), /warn|error/i);
    }
  });
}

test('worker.ts of the first README, as printed, ships an order of web.mjs', async (t) => {
  const port = 3000;
  if ((await freePort(port)) !== port) return t.skip(`something else is at port ${port}`);
  const printed = path.join(root, '__test__', 'types', 'snippets', '08-worker.ts');
  // It holds nothing that is not JavaScript as well.
  await cp(printed, path.join(app, 'printed.mjs'));
  const here = await host(t, port);
  here.node(['web.mjs']);
  here.node(['printed.mjs']);
  await completeOrder(here);
  await assertInvariants(here.database);
});

test('the route for load balancers answers 503 while PostgreSQL cannot be reached', async (t) => {
  const { node, until, request } = await host(t);
  node(['web.mjs'], { WORKFLOW_POSTGRES_URL: `postgres://world@127.0.0.1:${await freePort()}/w` });
  const response = await until(() => request('/healthz').catch(() => undefined));
  assert.equal(response.status, 503);
  assert.deepEqual(await response.json(), { healthy: false });
});
