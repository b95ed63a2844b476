// Whom TLS trusts, on machines that have no certificates of the system's.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer as createHttpServer } from 'node:http';
import { createServer as createHttpsServer } from 'node:https';
import { connect, createServer } from 'node:net';
import { after, describe, test } from 'node:test';
import { TLSSocket } from 'node:tls';
import { privateAuthority, WITHOUT_SYSTEM_ROOTS } from '../support/certificates.mjs';
import { testDatabase } from '../support/database.mjs';
import { printed } from '../support/program.mjs';

const database = await testDatabase({ after });
const authority = privateAuthority({ after }, ['localhost', '127.0.0.1']);
const trusting = { NODE_EXTRA_CA_CERTS: authority.ca };

/** @param {import('node:net').Server} server */
async function portOf(server) {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  after(() => {
    server.close();
    if ('closeAllConnections' in server) /** @type {any} */ (server).closeAllConnections();
  });
  return /** @type {import('node:net').AddressInfo} */ (server.address()).port;
}

/** @param {import('node:http').IncomingMessage} request @param {import('node:http').ServerResponse} response */
function answer(request, response) {
  request.resume();
  response.setHeader('content-type', 'application/json');
  response.setHeader('x-workflow-world', 'postgres');
  response.end('{"ok":true,"messageId":"msg_of_qstash"}');
}

const http = await portOf(createHttpServer(answer));
const https = await portOf(createHttpsServer(authority, answer));

/** PostgreSQL behind TLS: what the server itself would do with `ssl = on`. */
const postgres = await portOf(
  createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', () => {
      // It was an SSLRequest.
      socket.write('S');
      const { hostname, port } = new URL(database.url);
      const { key, cert } = authority;
      const client = new TLSSocket(socket, { isServer: true, key, cert });
      const upstream = connect(Number(port), hostname);
      client.on('error', () => upstream.destroy());
      upstream.on('error', () => client.destroy());
      client.pipe(upstream).pipe(client);
    });
  }),
);

/** @param {string} parameters */
function postgresUrl(parameters) {
  const url = new URL(database.url);
  url.host = `localhost:${postgres}`;
  url.search = parameters;
  return url.href;
}

/** @param {string} program @param {Record<string, string>} env */
const run = (program, env) =>
  printed(program, { env: { ...database.env, ...WITHOUT_SYSTEM_ROOTS, ...env } });

describe('where the system has no root certificates', () => {
  const start = `
    import { createWorld } from '@workflow/world-postgres';
    const world = createWorld();
    const outcome = await world.start().then(() => world.health(), ({ message }) => ({ message }));
    await world.close();
    console.log(JSON.stringify(outcome));`;

  test('a World starts whose app is reached by plain HTTP', async () => {
    const env = { WORKFLOW_POSTGRES_APP_URL: `http://127.0.0.1:${http}` };
    const { healthy, message, queue } = await run(start, env);
    assert.equal(healthy, true, message);
    assert.equal(queue.targetReachable, true);
  });

  const deliver = `
    import { createHttpProxy } from '@workflow/world-postgres';
    const message = { id: 's', queueName: '__wkf_step_s', messageId: 'msg_1', attempt: 1, data: Buffer.from('{}') };
    const outcome = await createHttpProxy().proxyStep(message)
      .then(({ status }) => ({ status }), ({ message }) => ({ message }));
    console.log(JSON.stringify(outcome));`;

  test('a delivery by HTTPS trusts the certificates of NODE_EXTRA_CA_CERTS', async () => {
    const env = { WORKFLOW_POSTGRES_APP_URL: `https://localhost:${https}` };
    assert.deepEqual(await run(deliver, { ...env, ...trusting }), { status: 200 });
    const { message } = await run(deliver, env);
    assert.match(message, /UnknownIssuer/);
    assert.match(message, /NODE_EXTRA_CA_CERTS/);
  });

  test('so does what is published to QStash', async () => {
    const program = `
      import { createPostgresUpstashWorld } from '@workflow/world-postgres/upstash';
      const world = createPostgresUpstashWorld();
      const outcome = await world.queue('__wkf_workflow_w', { runId: 'r' })
        .then(() => 'published', ({ message }) => message);
      console.log(JSON.stringify(outcome));`;
    const env = {
      QSTASH_URL: `https://localhost:${https}`,
      QSTASH_TOKEN: 'token',
      QSTASH_TARGET_URL: 'https://app.example',
    };
    assert.equal(await run(program, { ...env, ...trusting }), 'published');
    assert.match(await run(program, env), /UnknownIssuer.*NODE_EXTRA_CA_CERTS/);
  });

  const read = `
    import { createWorld } from '@workflow/world-postgres';
    const world = createWorld();
    const outcome = await world.runs.list().then(() => 'read', ({ message }) => message);
    await world.close();
    console.log(JSON.stringify(outcome));`;

  for (const mode of ['verify-ca', 'verify-full']) {
    test(`PostgreSQL is trusted with sslmode=${mode} by NODE_EXTRA_CA_CERTS, or by sslrootcert`, async () => {
      const url = postgresUrl(`sslmode=${mode}`);
      assert.equal(await run(read, { WORKFLOW_POSTGRES_URL: url, ...trusting }), 'read');
      const withRoot = postgresUrl(`sslmode=${mode}&sslrootcert=${authority.ca}`);
      assert.equal(await run(read, { WORKFLOW_POSTGRES_URL: withRoot }), 'read');
      const refused = await run(read, { WORKFLOW_POSTGRES_URL: url });
      assert.match(refused, /UnknownIssuer.*NODE_EXTRA_CA_CERTS/);
    });
  }
});
