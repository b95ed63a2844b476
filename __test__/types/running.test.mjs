// Every snippet of the first README, as printed, in a project that has installed the packed package.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import path from 'node:path';
import { after, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { buildApp } from '../support/app.mjs';
import { consumer } from '../support/consumer.mjs';
import { testDatabase } from '../support/database.mjs';

const here = path.dirname(fileURLToPath(import.meta.url));
/** The port in the snippets. */
const PORT = 3000;

const { env: databaseEnv } = await testDatabase({ after });
const compiled = await buildApp();
const project = await consumer({ after }, ['workflow', '@workflow/core', 'drizzle-orm']);
await copyFile(path.join(here, 'harness.mjs'), path.join(project, 'harness.mjs'));
for (const name of ['flow', 'step']) {
  const folder = path.join(project, 'app/.well-known/workflow/v1', name);
  await mkdir(folder, { recursive: true });
  const bundle = JSON.stringify(path.join(compiled, `${name}.cjs`));
  // The snippets' name for the entrypoint, which the SDK exports as POST.
  await writeFile(
    path.join(folder, 'route.mjs'),
    `import { createRequire } from 'node:module';
     export const __wkf_entrypoint = createRequire(import.meta.url)(${bundle}).POST;`,
  );
}

/** The snippet without its types, as Node 22 would run it. @param {string} name */
async function place(name) {
  const source = await readFile(path.join(here, 'snippets', `${name}.ts`), 'utf8');
  const { outputText } = ts.transpileModule(source, {
    compilerOptions: {
      module: ts.ModuleKind.ESNext,
      target: ts.ScriptTarget.ES2022,
      verbatimModuleSyntax: true,
    },
  });
  await writeFile(path.join(project, `${name}.mjs`), outputText);
  return `${name}.mjs`;
}

/**
 * @param {import('node:test').TestContext} t
 * @param {string} name of the snippet
 * @param {Record<string, string | undefined>} [env]
 */
async function start(t, name, env) {
  const args = ['harness.mjs', await place(name), compiled];
  const child = spawn(process.execPath, args, {
    cwd: project,
    env: { ...process.env, ...databaseEnv, TEST_LEDGER: '/dev/null', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 120_000,
    killSignal: 'SIGKILL',
  });
  t.after(() => child.kill('SIGKILL'));
  let output = '';
  let errors = '';
  child.stdout.setEncoding('utf8').on('data', (text) => {
    output += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text) => {
    errors += text;
  });
  const ended = once(child, 'close').then(() => ({ output: output.trim(), errors }));
  return { child, ended };
}

/** @param {Parameters<typeof start>} args */
async function result(...args) {
  const { ended } = await start(...args);
  const { output, errors } = await ended;
  assert.equal(output, '6', errors);
}

const taken = await new Promise((resolve) => {
  const server = createServer();
  server.on('error', () => resolve(`port ${PORT}, which is in the snippets, is taken`));
  server.listen(PORT, () => server.close(() => resolve(false)));
});
const app = { APP_PORT: String(PORT) };

describe('run as printed', { skip: taken }, () => {
  for (const name of ['01-quick-start', '02-default', '06-custom-queue']) {
    test(`${name}: a workflow, by HTTP`, (t) => result(t, name, app));
  }

  for (const name of ['04-function-proxy', '07-function-proxy-instrumentation']) {
    test(`${name}: a workflow, without a server`, (t) => result(t, name));
  }

  test('08-worker: a workflow of another process', async (t) => {
    const worker = await start(t, '08-worker', { NO_RUN: 'true' });
    // It only enqueues and serves: nothing there is started.
    await result(t, '11-types', app);
    worker.child.kill();
    const { errors } = await worker.ended;
    assert.doesNotMatch(errors, /Error/);
  });

  test('09-serverless: a workflow whose messages a function is handed', (t) =>
    result(t, '09-serverless', {
      ...app,
      APP_URL: `http://localhost:${PORT}`,
      SECURITY_TOKEN: databaseEnv.WORKFLOW_POSTGRES_SECURITY_TOKEN,
    }));

  for (const name of ['03-programmatic-configuration', '05-function-proxy-options', '10-schema']) {
    test(`${name}: is evaluated, and connects to nothing`, async (t) => {
      const env = { WORKFLOW_POSTGRES_URL: 'postgres://nobody@127.0.0.1:1/nothing' };
      const { ended } = await start(t, name, { ...env, NO_RUN: 'true' });
      const { output, errors } = await ended;
      assert.equal(output, 'null', errors);
      assert.equal(errors, '');
    });
  }
});
