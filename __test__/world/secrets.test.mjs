// Marked secrets, driven through what can fail, and looked for wherever anything is told.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after, test } from 'node:test';
import { inspect } from 'node:util';
import {
  createHttpProxy,
  createPgBossHttpProxyQueue,
  createQStashQueue,
  createWorld,
} from '../../index.js';
import { configure } from '../../lib/configuration.js';
import { until } from '../queue/fixture.mjs';
import { testDatabase } from '../support/database.mjs';

const database = await testDatabase({ after });
const MARK = /m4rked/;
const SECRET = 'm4rked-secret';
const message = {
  id: 's',
  queueName: '__wkf_step_s',
  messageId: 'msg_1',
  attempt: 1,
  data: Buffer.from('{}'),
};

/** An app that quotes what it is sent, as echo servers and pages of gateways do. @param {number} status */
async function echo(status) {
  const server = createServer((request, response) => {
    request.resume();
    response.writeHead(status, {
      location: `http://u:${SECRET}@elsewhere/?token=${SECRET}`,
      'x-workflow-world': 'postgres',
    });
    response.end(
      JSON.stringify({
        quoted: request.headers['x-workflow-secret'] ?? request.headers.authorization,
      }),
    );
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  after(() => {
    server.closeAllConnections();
    server.close();
  });
  return /** @type {import('node:net').AddressInfo} */ (server.address()).port;
}

/** @param {unknown} told */
function assertSecret(told) {
  assert.doesNotMatch(inspect(told, { depth: 9, showHidden: true }), MARK);
  assert.doesNotMatch(JSON.stringify(told) ?? '', MARK);
}

/** @param {() => unknown} call */
const errorOf = async (call) => {
  try {
    await call();
  } catch (error) {
    return /** @type {any} */ (error);
  }
  throw new assert.AssertionError({ message: `this did not fail: ${call}` });
};

test('a delivery that fails tells neither the token nor the credentials of the base URL', async (t) => {
  const { url, schema, queueSchema, pool } = database;
  for (const status of [500, 404, 302, 401]) {
    /** @type {any[]} */
    const lines = [];
    const baseUrl = `http://user:${SECRET}@127.0.0.1:${await echo(status)}`;
    const world = createWorld({
      connectionString: url,
      schema,
      queueSchema,
      securityToken: SECRET,
      log: (line) => lines.push(line),
      queueFactory: () => createPgBossHttpProxyQueue({ baseUrl }),
    });
    t.after(() => world.close());
    await world.queue('__wkf_workflow_w', { runId: 'r' });
    await world.start();
    await until(() => lines.length > 0);
    const proxied = await errorOf(() =>
      createHttpProxy({ baseUrl, securityToken: SECRET }).proxyStep(message),
    );
    for (const told of [lines, await world.health(), world, proxied.message, proxied.stack])
      assertSecret(told);
    await world.close();
  }
  const { rows } = await pool.query(
    `SELECT table_schema || '.' || table_name AS name FROM information_schema.tables
     WHERE table_schema IN ('${schema}', '${queueSchema}')`,
  );
  for (const { name } of rows) {
    assertSecret((await pool.query(`SELECT t::text FROM ${name} t`)).rows);
  }
});

test('nobody is told a setting that is wrong', async () => {
  const at = '127.0.0.1:1';
  /** @type {any[]} */
  const wrong = [
    { connectionString: `postgres://u:${SECRET}@${at}/db` },
    { connectionString: `mysql://u:${SECRET}@${at}/db` },
    { listenConnectionString: `mysql://u:${SECRET}@${at}/db` },
    { connectionString: `postgres://u@${at}/db?password=${SECRET}&sslmode=no-such` },
    { connectionString: { url: SECRET } },
    { securityToken: `${SECRET} ä` },
    { securityToken: [SECRET] },
    { qstash: SECRET },
    { baseUrl: `ftp://u:${SECRET}@h` },
    { baseUrl: `http://h/?token=${SECRET}` },
    { httpProxy: `ftp://u:${SECRET}@h` },
  ];
  for (const options of wrong) {
    const world = createWorld({
      connectionString: database.url,
      securityToken: SECRET,
      ...options,
    });
    const error = await errorOf(() => world.runs.list());
    assertSecret([error, error.stack, error.cause, await world.health()]);
    const handle = world.createQueueHandler('__wkf_step_', async () => {});
    const answer = await handle(new Request('http://h', { method: 'POST', body: '{}' }));
    assert.equal(await answer.text(), '{"error":"This delivery is not authenticated"}');
    await world.close();
  }
});

test('QStash’s token and keys stay where they are', async () => {
  const port = await echo(400);
  const queue = createQStashQueue({
    baseUrl: `http://127.0.0.1:${port}`,
    token: SECRET,
    currentSigningKey: SECRET,
    nextSigningKey: SECRET,
    targetUrl: 'https://app.example',
  });
  const error = await errorOf(() => queue.pushStep(message));
  assertSecret([error, error.stack, queue]);
});

test('a configuration shows nothing to JavaScript', () => {
  const configuration = /** @type {any} */ (
    configure({
      connectionString: `postgres://u:${SECRET}@h/db`,
      securityToken: SECRET,
      baseUrl: `http://u:${SECRET}@h`,
    })
  );
  for (const [name, { get }] of Object.entries(
    Object.getOwnPropertyDescriptors(Object.getPrototypeOf(configuration)),
  )) {
    if (get) assert.doesNotMatch(String(configuration[name]), MARK, name);
  }
});
