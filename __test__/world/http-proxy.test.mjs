// Deliveries carry the token: they go through an HTTP proxy only where that was asked for.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { createServer as createHttpsServer } from 'node:https';
import { connect } from 'node:net';
import { after, test } from 'node:test';
import { privateAuthority } from '../support/certificates.mjs';
import { printed } from '../support/program.mjs';

const TOKEN = 'token-of-the-deliveries';
const authority = privateAuthority({ after }, ['qstash.example']);

/** @param {import('node:http').Server} server */
async function portOf(server) {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  after(() => {
    server.close();
    server.closeAllConnections();
  });
  return /** @type {import('node:net').AddressInfo} */ (server.address()).port;
}

/** An HTTP proxy that notes all it sees, and leads every tunnel to one place. @param {number} [tunnelTo] */
async function httpProxy(tunnelTo) {
  /** @type {{ method?: string, url?: string, headers: Record<string, unknown> }[]} */
  const seen = [];
  const server = createServer((request, response) => {
    const { method, url, headers } = request;
    seen.push({ method, url, headers });
    request.resume();
    response.setHeader('x-workflow-world', 'postgres');
    response.end('{"ok":true}');
  });
  server.on('connect', ({ method, url, headers }, socket) => {
    seen.push({ method, url, headers });
    const upstream = connect(tunnelTo ?? 1, '127.0.0.1', () => {
      socket.write('HTTP/1.1 200 OK\r\n\r\n');
      socket.pipe(upstream).pipe(socket);
    });
    upstream.on('error', () => socket.destroy());
    socket.on('error', () => upstream.destroy());
  });
  return { seen, url: `http://127.0.0.1:${await portOf(server)}` };
}

/** The proxy variables of a company's machine. @param {string} url */
const environment = (url) =>
  Object.fromEntries(
    ['HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'].flatMap((name) => [
      [name, url],
      [name.toLowerCase(), url],
    ]),
  );

const deliver = `
  import { createHttpProxy } from '@workflow/world-postgres';
  const message = { id: 's', queueName: '__wkf_step_s', messageId: 'msg_1', attempt: 1, data: Buffer.from('{}') };
  const outcome = await createHttpProxy().proxyStep(message)
    .then(({ status }) => ({ status }), ({ message }) => ({ message }));
  console.log(JSON.stringify(outcome));`;

for (const url of ['http://app.invalid:3000', 'https://app.invalid']) {
  test(`a delivery to ${url} does not go to the proxies of the environment`, async () => {
    const proxy = await httpProxy();
    const { message } = await printed(deliver, {
      env: {
        ...environment(proxy.url),
        WORKFLOW_POSTGRES_APP_URL: url,
        WORKFLOW_POSTGRES_SECURITY_TOKEN: TOKEN,
      },
    });
    assert.match(message, /must be repeated/);
    assert.deepEqual(proxy.seen, []);
  });
}

test('a delivery goes through the proxy of WORKFLOW_POSTGRES_HTTP_PROXY, wherever to', async () => {
  for (const url of ['http://app.invalid:3000', 'http://127.0.0.1:1']) {
    const proxy = await httpProxy();
    const { status } = await printed(deliver, {
      env: {
        WORKFLOW_POSTGRES_HTTP_PROXY: proxy.url,
        WORKFLOW_POSTGRES_APP_URL: url,
        WORKFLOW_POSTGRES_SECURITY_TOKEN: TOKEN,
      },
    });
    assert.equal(status, 200);
    assert.equal(proxy.seen[0].url, `${url}/.well-known/workflow/v1/step`);
  }
});

const publish = `
  import { createPostgresUpstashWorld } from '@workflow/world-postgres/upstash';
  const world = createPostgresUpstashWorld();
  const outcome = await world.queue('__wkf_workflow_w', { runId: 'r' })
    .then(() => 'published', ({ message }) => message);
  console.log(JSON.stringify(outcome));`;

test('QStash is reached through HTTPS_PROXY, which does not see its token', async () => {
  const qstash = await portOf(
    createHttpsServer(authority, (request, response) => {
      request.resume();
      response.end('{"messageId":"msg_of_qstash"}');
    }),
  );
  const proxy = await httpProxy(qstash);
  const outcome = await printed(publish, {
    env: {
      ...environment(proxy.url),
      NODE_EXTRA_CA_CERTS: authority.ca,
      QSTASH_URL: 'https://qstash.example',
      QSTASH_TOKEN: TOKEN,
      QSTASH_TARGET_URL: 'https://app.example',
    },
  });
  assert.equal(outcome, 'published');
  assert.deepEqual(
    proxy.seen.map(({ method, url }) => [method, url]),
    [['CONNECT', 'qstash.example:443']],
  );
  assert.ok(!JSON.stringify(proxy.seen).includes(TOKEN));
});

test('a QStash that is reached by plain HTTP, for development, is not behind a proxy', async () => {
  const proxy = await httpProxy();
  const qstash = await portOf(
    createServer((request, response) => {
      request.resume();
      response.end('{"messageId":"msg_of_qstash"}');
    }),
  );
  const outcome = await printed(publish, {
    env: {
      ...environment(proxy.url),
      QSTASH_URL: `http://127.0.0.1:${qstash}`,
      QSTASH_TOKEN: TOKEN,
      QSTASH_TARGET_URL: 'https://app.example',
    },
  });
  assert.equal(outcome, 'published');
  assert.deepEqual(proxy.seen, []);
});
