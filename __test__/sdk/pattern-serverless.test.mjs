// A platform that keeps messages and calls a function with each: the first README's snippet, as printed.
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { json } from 'node:stream/consumers';
import { after } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { testScenarios } from './scenarios.mjs';

/** @typedef {import('@workflow/world-postgres').MessageData} MessageData */

const snippet = new URL('../types/snippets/09-serverless.ts', import.meta.url);

/** @returns {Promise<(message: MessageData) => Promise<void>>} */
async function loadHandler() {
  const { outputText } = ts.transpileModule(await readFile(snippet, 'utf8'), {
    compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
  });
  const file = new URL(`.cache/queue-handler-${process.pid}.mjs`, import.meta.url);
  await mkdir(new URL('.', file), { recursive: true });
  await writeFile(file, outputText);
  after(() => rm(file));
  return (await import(fileURLToPath(file))).handleQueueMessage;
}

/** @type {(message: MessageData) => Promise<void>} */
let handleQueueMessage;
const ending = new AbortController();
const { signal } = ending;

/** @param {MessageData} message */
async function deliver(message) {
  await sleep((message.delaySeconds ?? 0) * 1000, undefined, { signal });
  for (let attempt = 1; ; attempt++) {
    try {
      return await handleQueueMessage({ ...message, attempt });
    } catch {
      await sleep(Math.min(100 * 2 ** attempt, 10_000), undefined, { signal });
    }
  }
}

const platform = createServer(async (request, response) => {
  const message = /** @type {MessageData} */ (await json(request));
  response.end();
  // Messages that wait until the end of the test reject.
  deliver(message).catch(() => {});
});
await new Promise((resolve) => platform.listen(0, '127.0.0.1', () => resolve(undefined)));
after(() => {
  ending.abort();
  platform.close();
});
const { port } = /** @type {import('node:net').AddressInfo} */ (platform.address());

await testScenarios('serverless: a function is called with each message', {
  async arrange(startApp, { env }) {
    const app = await startApp({
      env: { TEST_PATTERN: 'serverless', TEST_QUEUE_URL: `http://127.0.0.1:${port}` },
    });
    process.env.APP_URL = app.url;
    process.env.SECURITY_TOKEN = env.WORKFLOW_POSTGRES_SECURITY_TOKEN;
    handleQueueMessage = await loadHandler();
    return app;
  },
  foreignQueue: true,
});
