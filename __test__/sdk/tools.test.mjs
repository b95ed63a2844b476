import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { freePort } from '../../scripts/support/postgres.mjs';
import { cli, root } from '../support/app.mjs';
import { eventually, fixture } from './fixture.mjs';

const run = promisify(execFile);
const artifacts = fileURLToPath(new URL('.artifacts', import.meta.url));

const { app: startApp, check, database, ended } = await fixture({ after });
const app = await startApp();
const env = { ...process.env, ...database.env, NO_COLOR: '1', WORKFLOW_NO_UPDATE_CHECK: '1' };

const runIds = await Promise.all([
  app.call('start', 'sequential', [10]),
  app.call('start', 'failing', ['out of bounds']),
  app.call('start', 'nap', [86_400_000]),
]);
const [sequential, failing, napping] = runIds;
await app.call('cancel', napping);
await ended(runIds);

/** @param {...string} args */
const workflow = (...args) => run(process.execPath, [cli, ...args], { cwd: root, env });

/** @param {...string} args @returns {Promise<any>} */
const inspect = async (...args) =>
  JSON.parse((await workflow('inspect', ...args, '--json')).stdout);

test('`workflow inspect runs` prints the runs', async () => {
  const { stdout } = await workflow('inspect', 'runs');
  for (const [n, runId] of runIds.entries()) {
    const line = stdout.split('\n').find((text) => text.includes(runId.slice(-4)));
    assert.match(
      line ?? stdout,
      new RegExp(`${['sequential', 'failing', 'nap'][n]} +${'CFX'[n]} `),
    );
  }
});

test('`workflow inspect` lists runs, steps and events', async () => {
  /** @type {{ data: { runId: string, status: string }[] }} */
  const runs = await inspect('runs');
  assert.deepEqual(Object.fromEntries(runs.data.map(({ runId, status }) => [runId, status])), {
    [sequential]: 'completed',
    [failing]: 'failed',
    [napping]: 'cancelled',
  });
  /** @type {{ status: string }[]} */
  const steps = await inspect('steps', '--runId', sequential);
  assert.deepEqual(
    steps.map(({ status }) => status),
    Array(10).fill('completed'),
  );
  /** @type {{ eventType: string }[]} */
  const events = await inspect('events', '--runId', failing, '--sort', 'asc');
  assert.deepEqual(
    events.map(({ eventType }) => eventType),
    ['run_created', 'run_started', 'run_failed'],
  );
});

test('`workflow cancel` ends a run', async () => {
  const runId = await app.call('start', 'nap', [86_400_000]);
  await workflow('cancel', runId);
  assert.deepEqual(await ended([runId]), ['cancelled']);
  await check();
});

test('`workflow start` starts a run and leaves it to the workers', async () => {
  const { workflowName } = await app.call('run', sequential);
  const { stdout } = await workflow('start', workflowName, '3');
  const runId = /wrun_[0-9A-Z]{26}/.exec(stdout)?.[0] ?? assert.fail(stdout);
  assert.deepEqual(await ended([runId]), ['completed']);
  assert.equal(await app.call('result', runId), 6);
  await check();
});

test('`workflow health` finds both endpoints healthy', async () => {
  const { stdout } = await workflow('health', '--json');
  const results = JSON.parse(stdout);
  assert.equal(results.allHealthy, true, stdout);
});

const chromium = await ['chromium', 'chromium-browser', 'google-chrome'].reduce(
  /** @returns {Promise<string | undefined>} */
  async (found, name) =>
    (await found) ??
    run(name, ['--version']).then(
      () => name,
      () => undefined,
    ),
  Promise.resolve(/** @type {string | undefined} */ (process.env.CHROMIUM)),
);
const skip =
  (!chromium && 'no Chromium is installed (CHROMIUM may name one)') ||
  (!process.getBuiltinModule('node:sqlite') &&
    'the web UI of the SDK needs node:sqlite, so Node 22.13 or later');

test('`workflow web` shows the runs', { skip }, async (t) => {
  const port = await freePort();
  const web = spawn(process.execPath, [cli, 'web', '--noBrowser', '--webPort', String(port)], {
    cwd: root,
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  web.stdout.on('data', (text) => (output += text));
  web.stderr.on('data', (text) => (output += text));
  const exit = once(web, 'exit');
  const profile = await mkdtemp(path.join(tmpdir(), 'chromium-'));
  t.after(async () => {
    web.kill('SIGKILL');
    await exit;
    await rm(profile, { recursive: true, maxRetries: 5 });
  });
  await mkdir(artifacts, { recursive: true });
  const url = `http://localhost:${port}`;
  const answers = () =>
    fetch(url).then(
      (response) => response.ok,
      () => false,
    );
  await eventually(answers, { report: () => output });

  /** @param {string} page @param {...string} args */
  const browse = async (page, ...args) => {
    const { stdout } = await run(
      /** @type {string} */ (chromium),
      [
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--hide-scrollbars',
        `--user-data-dir=${profile}`,
        '--window-size=1400,1000',
        // Until the page has been idle for as long as this takes.
        '--virtual-time-budget=15000',
        ...args,
        `${url}/${page}`,
      ],
      { maxBuffer: 1e8 },
    );
    return stdout;
  };
  const list = await browse('', '--dump-dom');
  for (const runId of runIds) assert.ok(list.includes(runId), `${runId} is not listed\n${output}`);
  await browse('', `--screenshot=${path.join(artifacts, 'runs.png')}`);

  const page = await browse(`run/${sequential}`, '--dump-dom');
  assert.ok(page.includes(sequential) && page.includes('Completed'), output);
  await browse(`run/${sequential}`, `--screenshot=${path.join(artifacts, 'run.png')}`);
  assert.doesNotMatch(output, /Unhandled|TypeError|ERR_/);
});
