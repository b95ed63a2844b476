// npm run demo: builds the package, starts PostgreSQL and the Next.js example with it, and sends an
// order through. `npm run demo -- --exit` ends after that one run instead of keeping the page up.
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import {
  completeOrder,
  example,
  installExample,
  nextIn,
  npmFlags,
  root,
} from './support/example.mjs';
import { freePort, startPostgres } from './support/postgres.mjs';
import { checkPrerequisites } from './support/prerequisites.mjs';
import { run, start } from './support/process.mjs';

checkPrerequisites();
const { values: options } = parseArgs({ options: { exit: { type: 'boolean', default: false } } });

const stopping = new AbortController();
const { signal } = stopping;
for (const name of ['SIGINT', 'SIGTERM']) process.once(name, () => stopping.abort());

/** @type {import('./support/postgres.mjs').Postgres | undefined} */
let postgres;
/** @type {import('./support/process.mjs').Started | undefined} */
let app;
try {
  await demo();
} catch (error) {
  process.exitCode = signal.aborted ? 130 : 1;
  if (!signal.aborted) {
    if (app) detail(app.output());
    console.error(`\n${error instanceof Error ? error.message : error}`);
  }
} finally {
  await app?.stop();
  await postgres?.stop();
}

async function demo() {
  if (!existsSync(path.join(root, 'node_modules', '.package-lock.json'))) {
    say('Installing the development dependencies');
    await run('npm', ['install', ...npmFlags], { cwd: root, signal });
  }
  say('Building the native addon (the first time takes a few minutes)');
  await run('npm', ['run', '--silent', 'build'], { cwd: root, show: true, signal });

  say('Installing the example with the packed package, as a user would');
  await installExample(example, { signal });

  const world = {
    NODE_ENV: 'production',
    NEXT_TELEMETRY_DISABLED: '1',
    WORKFLOW_TARGET_WORLD: '@workflow/world-postgres',
  };
  const next = nextIn(example);
  say('Building the example: next build');
  await run(process.execPath, [next, 'build'], { cwd: example, env: world, signal });

  say(process.env.WORKFLOW_POSTGRES_URL ? 'Using WORKFLOW_POSTGRES_URL' : 'Starting PostgreSQL 18');
  postgres = await startPostgres({ log: detail });

  const port = await freePort(3000);
  const url = `http://127.0.0.1:${port}`;
  const env = {
    ...world,
    WORKFLOW_POSTGRES_URL: postgres.url,
    WORKFLOW_POSTGRES_SECURITY_TOKEN: randomBytes(32).toString('hex'),
    WORKFLOW_POSTGRES_APP_URL: url,
  };
  say('Creating the tables: workflow-postgres-setup');
  detail(await run('npm', ['run', '--silent', 'setup'], { cwd: example, env, signal }));

  say('Starting the example: next start');
  const listen = ['--hostname', '127.0.0.1', '--port', String(port)];
  app = start(process.execPath, [next, 'start', ...listen], { cwd: example, env, signal });

  say('Sending an order, and approving it when it asks');
  const { runId, result, stream } = await completeOrder(url, { app, signal, onEvent: showEvent });
  say('What it wrote to its stream');
  detail(stream.trim());
  say(`Run ${runId} completed`);
  detail(JSON.stringify(result, null, 2));

  if (options.exit) return;
  say(`The page: ${url}   (Ctrl-C stops everything)`);
  await app.ended;
  if (!signal.aborted) throw new Error('The app ended by itself');
}

/** @param {{ type: string, name?: string, detail?: string }} event @param {number} seconds */
function showEvent({ type, name = '', detail: error = '' }, seconds) {
  const time = `+${seconds.toFixed(2)} s`.padStart(9);
  detail(`${time}  ${type.padEnd(15)} ${name}  ${error}`.trimEnd());
}

/** @param {string} line */
function say(line) {
  console.log(`\n▸ ${line}`);
}

/** @param {string} text */
function detail(text) {
  console.log(text.replace(/^/gm, '  '));
}
