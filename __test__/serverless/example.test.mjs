// The packed tarball in production builds of examples/upstash, reduced to the files that a platform would
// take, and moved: what serverless deployments are made of.
import assert from 'node:assert/strict';
import { cp, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { installExample, nextIn, root } from '../../scripts/support/example.mjs';
import { freePort } from '../../scripts/support/postgres.mjs';
import { run, start } from '../../scripts/support/process.mjs';
import { startQStash } from '../../scripts/support/qstash.mjs';
import { eventually } from '../sdk/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { assertInvariants } from '../support/invariants.mjs';

/** @typedef {import('node:test').TestContext} TestContext */

const example = path.join(root, 'examples', 'upstash');
/** Under which QStash knows the app. */
const APP = 'https://sign-up.example';
// What a build may know.
const buildEnv = {
  NODE_ENV: 'production',
  NEXT_TELEMETRY_DISABLED: '1',
  WORKFLOW_TARGET_WORLD: '@workflow/world-postgres/upstash',
};

describe('a production build of the QStash example', () => {
  let directory = '';
  let installed = '';

  before(async () => {
    directory = await mkdtemp(path.join(tmpdir(), 'world-postgres-upstash-'));
    installed = path.join(directory, 'installed');
    await cp(example, installed, { recursive: true, filter: isSource });
    const config = path.join(installed, 'next.config.ts');
    const source = await readFile(config, 'utf8');
    await writeFile(
      config,
      source.replace('NextConfig = {', "NextConfig = { output: 'standalone',"),
    );
    await installExample(installed);
  });
  after(() => rm(directory, { recursive: true, force: true }));

  for (const bundler of ['turbopack', 'webpack']) {
    test(`of ${bundler}`, async (t) => {
      const app = await build(bundler);
      await t.test('signs somebody up, by /queue, and whenever an instance is there', (t) =>
        signUp(t, app, `${APP}/queue`),
      );
      await t.test("signs somebody up, by the SDK's routes", (t) => signUp(t, app, APP));
    });
  }

  /** @param {string} bundler */
  async function build(bundler) {
    const app = await mkdtemp(path.join(directory, `${bundler}-`));
    await cp(example, app, { recursive: true, filter: isSource });
    await cp(path.join(installed, 'next.config.ts'), path.join(app, 'next.config.ts'));
    // Hard links: a node_modules of its own, in no time and no space.
    const copy = process.platform === 'linux' ? '-al' : '-RP';
    await run('cp', [copy, path.join(installed, 'node_modules'), app]);
    await run(process.execPath, [nextIn(app), 'build', `--${bundler}`], {
      cwd: app,
      env: buildEnv,
    });
    const moved = await mkdtemp(path.join(directory, 'moved-'));
    await rename(path.join(app, '.next', 'standalone'), path.join(moved, 'app'));
    await rm(app, { recursive: true });
    return path.join(moved, 'app');
  }
});

/** Not what building and running it has left there. @param {string} source */
const isSource = (source) =>
  !['node_modules', '.next', '.well-known', '.env'].includes(path.basename(source));

/**
 * @param {TestContext} t
 * @param {string} cwd
 * @param {string} target
 */
async function signUp(t, cwd, target) {
  const database = await testDatabase(t);
  /** @type {Awaited<ReturnType<typeof startInstance>>[]} */
  let instances = [];
  let turn = 0;
  const next = () => instances[turn++ % instances.length];
  const qstash = await startQStash(t, {
    faults: { duplicate: 0.2, reorder: 0.2 },
    route: (url) => url.replace(APP, next().url),
  });
  const startInstances = async () => {
    instances = await Promise.all(
      [1, 2].map(() => startInstance(t, cwd, database, qstash.env(target))),
    );
  };
  const output = () => instances.map(({ app }) => app.output()).join('\n');
  /** @param {string} pathname @param {object} [body] */
  const request = async (pathname, body) => {
    const init = body && { method: 'POST', body: JSON.stringify(body) };
    const response = await fetch(`${next().url}/api/${pathname}`, init);
    const text = await response.text();
    assert.ok(response.ok, `${pathname}: ${response.status} ${text}\n${output()}`);
    return text && JSON.parse(text);
  };
  const report = () => `${output()}\n${JSON.stringify(qstash.deliveries.slice(-5), undefined, 1)}`;

  await startInstances();
  const { runId } = await request('signups', { email: 'ada@example.com' });
  const token = await eventually(() => /Please confirm: (\S+)/.exec(output())?.[1], { report });
  await eventually(() => qstash.deliveries.length > 0 && isAtRest(qstash), { report });

  // Between requests there need not be any process.
  await Promise.all(instances.map(({ app }) => app.stop()));
  await startInstances();
  await forge(next().url, target);
  await request(`confirm/${token}`, {});
  const { result } = await eventually(
    async () => {
      const answer = await request(`runs/${runId}`);
      return answer.status === 'completed' && answer;
    },
    { report },
  );
  assert.deepEqual([result.email, result.member], ['ada@example.com', true]);
  // Each by one of the two instances.
  for (const mail of [/Welcome!/, /How do you like it\?/]) assert.match(output(), mail);
  assert.deepEqual(
    [...new Set(qstash.deliveries.map(({ url }) => new URL(url).pathname.split('/')[1]))],
    [target === APP ? '.well-known' : 'queue'],
  );
  assert.deepEqual(qstash.dead, []);
  await assertInvariants(database, { foreignQueue: true });
}

/** What waits does so for days. @param {Awaited<ReturnType<typeof startQStash>>} qstash */
const isAtRest = ({ waiting, now }) => [...waiting].every(({ due }) => due > now() + 86_400_000);

/**
 * What anybody could send: no signature, and one without a key.
 *
 * @param {string} url
 * @param {string} target
 */
async function forge(url, target) {
  const queueName = '__wkf_step_step//./workflows/sign-up//mail';
  const pathname =
    target === APP ? '/.well-known/workflow/v1/step' : `/queue/${encodeURIComponent(queueName)}`;
  for (const signature of ['', 'eyJhbGciOiJub25lIn0.e30.']) {
    const response = await fetch(url + pathname, {
      method: 'POST',
      headers: {
        'x-vqs-queue-name': encodeURIComponent(queueName),
        'x-vqs-message-id': 'msg_1',
        'x-vqs-message-attempt': '1',
        'upstash-signature': signature,
      },
      body: '{}',
    });
    assert.equal(response.status, 401, await response.text());
  }
}

/**
 * @param {TestContext} t
 * @param {string} cwd
 * @param {import('../support/database.mjs').TestDatabase} database
 * @param {Record<string, string>} qstash
 */
async function startInstance(t, cwd, database, qstash) {
  const port = String(await freePort());
  const env = {
    ...buildEnv,
    ...qstash,
    DATABASE_URL: database.url,
    WORKFLOW_POSTGRES_SCHEMA: database.schema,
    WORKFLOW_POSTGRES_QUEUE_SCHEMA: database.queueSchema,
    PORT: port,
    HOSTNAME: '127.0.0.1',
  };
  const app = start(process.execPath, ['server.js'], { cwd, env });
  t.after(() => app.stop());
  const url = `http://127.0.0.1:${port}`;
  await eventually(
    () =>
      fetch(url).then(
        () => true,
        () => false,
      ),
    { report: app.output },
  );
  return { app, url };
}
