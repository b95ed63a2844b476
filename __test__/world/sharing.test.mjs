// The parts that Worlds of one process share, and those that each of them has for itself.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after, describe, test } from 'node:test';
import {
  createPgBossFunctionProxyQueue,
  createPgBossHttpProxyQueue,
  createWorld,
} from '../../index.js';
import { configure } from '../../lib/configuration.js';
import { until } from '../queue/fixture.mjs';
import { testDatabase } from '../support/database.mjs';

const { url, schema, queueSchema } = await testDatabase({ after });
const database = { connectionString: url, schema, queueSchema };

test('each of two Worlds delivers with its own token', async (t) => {
  /** @type {unknown[]} */
  const tokens = [];
  const server = createServer((request, response) => {
    request.resume();
    const { 'x-workflow-secret': token, 'x-workflow-probe': probe } = request.headers;
    if (!probe) tokens.push(token);
    response.setHeader('x-workflow-world', 'postgres');
    response.end('{"ok":true}');
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  const worldOf = (/** @type {string} */ securityToken) =>
    createWorld({
      ...database,
      securityToken,
      queueFactory: () => createPgBossHttpProxyQueue({ baseUrl: `http://127.0.0.1:${port}` }),
    });
  const [one, two] = [worldOf('token-of-the-first'), worldOf('token-of-the-second')];
  t.after(() => two.close());
  await one.start();
  await two.start();
  // From here on there is one worker, and it is the second World's.
  await one.close();
  await two.queue('__wkf_workflow_w', { runId: 'r' });
  await until(() => tokens.length > 0);
  assert.deepEqual(tokens, ['token-of-the-second']);
});

test('each of two Worlds logs to its own function', async (t) => {
  /** @type {Record<string, any[]>} */
  const lines = { one: [], two: [] };
  const worldOf = (/** @type {string} */ name) =>
    createWorld({
      ...database,
      securityToken: 'token-of-the-tests',
      log: (line) => lines[name].push(line),
      queueFactory: () =>
        createPgBossFunctionProxyQueue({
          workflowEntrypoint: async () => new Response('it fails', { status: 500 }),
        }),
    });
  const [one, two] = [worldOf('one'), worldOf('two')];
  t.after(() => Promise.all([one.close(), two.close()]));
  await one.runs.list();
  await two.start();
  await two.queue('__wkf_workflow_w', { runId: 'r' });
  await until(() => lines.two.find(({ error }) => error?.includes('it fails')));
  assert.deepEqual(lines.one, []);
});

test('a World without a log function has the one of its driver', async (t) => {
  /** @type {any[]} */
  const lines = [];
  const world = createWorld({
    ...database,
    queueFactory: () =>
      createPgBossFunctionProxyQueue({
        securityToken: 'short-token',
        log: (line) => lines.push(line),
        workflowEntrypoint: async () => new Response('it fails', { status: 500 }),
      }),
  });
  t.after(() => world.close());
  const handle = world.createQueueHandler('__wkf_step_', async () => {});
  const { status } = await handle(new Request('http://localhost', { method: 'POST', body: '{}' }));
  assert.equal(status, 401);
  assert.ok(
    lines.some(({ message }) => message.includes('was refused')),
    JSON.stringify(lines),
  );
  assert.ok(
    lines.some(({ message }) => message.includes('16 characters')),
    JSON.stringify(lines),
  );
});

describe('what a shared queue depends on is part of its key', () => {
  const base = { ...database, securityToken: 'token', baseUrl: 'http://app' };
  const keys = (/** @type {object} */ more) => {
    const { coreKey, queueKey } = configure({ ...base, ...more });
    return { coreKey, queueKey };
  };
  const known = keys({});

  /** @type {Record<string, unknown>} */
  const ofBoth = {
    connectionString: `${url}?application_name=other`,
    listenConnectionString: url,
    schema: 'other',
    queueSchema: 'other',
    maxPoolSize: 3,
    statementCache: false,
    jobPrefix: 'other_',
    namespace: 'other',
    listen: false,
    idleTimeoutSeconds: 5,
  };
  /** @type {Record<string, unknown>} */
  const ofQueues = {
    securityToken: 'other',
    baseUrl: 'http://other',
    httpProxy: 'http://proxy:3128',
    queueConcurrency: 3,
    keepCompleted: true,
  };
  for (const [name, value] of Object.entries({ ...ofBoth, ...ofQueues })) {
    test(name, () => {
      const found = keys({ [name]: value });
      assert.notEqual(found.queueKey, known.queueKey);
      assert.equal(found.coreKey === known.coreKey, name in ofQueues);
    });
  }

  test('equal settings, and nothing secret in the key', () => {
    assert.deepEqual(keys({}), known);
    for (const key of Object.values(known)) assert.match(key, /^[0-9a-f]{64}$/);
  });
});
