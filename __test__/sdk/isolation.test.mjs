import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after, test } from 'node:test';
import {
  createFunctionProxy,
  createHttpProxy,
  createPgBossFunctionProxyQueue,
  createWorld,
} from '@workflow/world-postgres';
import { setup } from '../../lib/setup.js';
import { OF_WORLD } from '../queue/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { eventually } from './fixture.mjs';

/** @typedef {import('@workflow/world-postgres').MessageData} MessageData */

const TOKEN = 'x-workflow-secret';

/** @param {string} id @returns {MessageData} */
const message = (id) => ({
  id,
  queueName: `__wkf_step_${id}`,
  messageId: `msg_${id}`,
  attempt: 1,
  data: Buffer.from('{}'),
});

const numbers = Array.from({ length: 20 }, (_, n) => `n${n}`);

test('stand-alone proxies need no World, keep to their own target and token, and leave nothing behind', async (t) => {
  const before = Object.getOwnPropertySymbols(globalThis);
  const hosts = await Promise.all(
    ['one', 'two'].map(async (token) => {
      /** @type {[unknown, string][]} */
      const received = [];
      const server = createServer((request, response) => {
        received.push([request.headers[TOKEN], `${request.headers['x-vqs-message-id']}`]);
        response.writeHead(200, OF_WORLD).end('{"ok":true}');
      });
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      t.after(async () => {
        server.closeAllConnections();
        server.close();
      });
      const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
      const http = createHttpProxy({ baseUrl: `http://127.0.0.1:${port}`, securityToken: token });
      /** @param {Request} request */
      const stepEntrypoint = async ({ headers }) => {
        received.push([headers.get(TOKEN), `${headers.get('x-vqs-message-id')}`]);
        return Response.json({ ok: true }, { headers: OF_WORLD });
      };
      const functions = createFunctionProxy({
        stepEntrypoint,
        workflowEntrypoint: () => assert.fail('there are no messages for workflows'),
        securityToken: token,
      });
      return { token, received, proxies: [http, functions] };
    }),
  );

  await Promise.all(
    hosts.flatMap(({ token, proxies }) =>
      proxies.flatMap((proxy) => numbers.map((n) => proxy.proxyStep(message(`${token}_${n}`)))),
    ),
  );

  for (const { token, received } of hosts) {
    const expected = numbers.flatMap((n) => Array(2).fill([token, `msg_${token}_${n}`]));
    assert.deepEqual(received.sort(), expected.sort());
  }
  assert.deepEqual(Object.getOwnPropertySymbols(globalThis), before);
});

/**
 * A World that executes steps with a function which notes them.
 *
 * @param {import('@workflow/world-postgres').PostgresWorldConfig} options
 */
function noting(options) {
  /** @type {string[]} */
  const executed = [];
  /** @param {unknown} _ @param {{ queueName: string }} meta */
  const note = async (_, { queueName }) => {
    executed.push(queueName.replace('__wkf_step_', ''));
  };
  /** @type {ReturnType<typeof createWorld>} */
  const world = createWorld({
    queueFactory: () => createPgBossFunctionProxyQueue({ workflowEntrypoint: entrypoint }),
    ...options,
  });
  const entrypoint = world.createQueueHandler('__wkf_step_', note);
  after(() => world.close());
  return { world, executed, entrypoint };
}

/** @param {ReturnType<typeof noting>[]} nodes */
async function assertEachExecutesItsOwn(nodes) {
  await Promise.all(
    nodes.flatMap(({ world }, i) =>
      numbers.map((n) => world.queue(`__wkf_step_of${i}_${n}`, { runId: 'none' })),
    ),
  );
  const executed = () => nodes.map((node) => [...node.executed].sort());
  await eventually(() => nodes.every((node) => node.executed.length >= numbers.length), {
    report: () => JSON.stringify(executed()),
  });
  assert.deepEqual(
    executed(),
    nodes.map((_, i) => numbers.map((n) => `of${i}_${n}`).sort()),
  );
}

test('Worlds of different schemas and tokens in one process do not see each other', async (t) => {
  const databases = [await testDatabase(t), await testDatabase(t)];
  const nodes = databases.map(({ url, schema, queueSchema }, i) =>
    noting({ connectionString: url, schema, queueSchema, securityToken: `token-${i}` }),
  );
  for (const { world } of nodes) await world.start();
  await assertEachExecutesItsOwn(nodes);

  const created = await Promise.all(
    nodes.map(({ world }) =>
      world.events.create(null, {
        eventType: 'run_created',
        eventData: { deploymentId: 'd', workflowName: 'w', input: new Uint8Array() },
      }),
    ),
  );
  for (const [i, { world }] of nodes.entries()) {
    const { data } = await world.runs.list();
    assert.deepEqual(
      data.map(({ runId }) => runId),
      [created[i].run?.runId],
    );
    const stranger = /** @type {string} */ (created[1 - i].run?.runId);
    await assert.rejects(world.runs.get(stranger), { name: 'WorkflowRunNotFoundError' });
  }

  const proxy = createFunctionProxy({
    workflowEntrypoint: nodes[0].entrypoint,
    securityToken: 'token-1',
  });
  await assert.rejects(proxy.proxyStep(message('x')), /401/);

  await nodes[0].world.close();
  nodes[1].executed.length = 0;
  await assertEachExecutesItsOwn([nodes[1]]);
});

test('Worlds of one database with different prefixes take only their own messages', async (t) => {
  const { url, schema, queueSchema } = await testDatabase(t);
  const prefixes = ['here_', 'there_'];
  const nodes = prefixes.map((jobPrefix) =>
    noting({ connectionString: url, schema, queueSchema, jobPrefix, securityToken: 'token' }),
  );
  for (const jobPrefix of prefixes)
    await setup({ connectionString: url, schema, queueSchema, jobPrefix });
  for (const { world } of nodes) await world.start();
  await assertEachExecutesItsOwn(nodes);
});

test('Worlds of one database with different drivers take only their own messages', async (t) => {
  const { url, schema, queueSchema, pool } = await testDatabase(t);
  const settings = { connectionString: url, schema, queueSchema, securityToken: 'token' };
  const ours = noting(settings);
  const foreign = noting({
    ...settings,
    queueFactory() {
      const proxy = createFunctionProxy({
        workflowEntrypoint: foreign.entrypoint,
        securityToken: 'token',
      });
      /** @param {MessageData} message */
      const push = async (message) => {
        setImmediate(() => proxy.proxyStep(message));
      };
      return { pushStep: push, pushFlow: push, start: async () => {} };
    },
  });
  await ours.world.start();
  await foreign.world.start();
  await assertEachExecutesItsOwn([ours, foreign]);

  await ours.world.close();
  await foreign.world.queue('__wkf_step_last', { runId: 'none' });
  await eventually(() => foreign.executed.includes('last'));
  const { rows } = await pool.query(`SELECT name FROM ${queueSchema}.job`);
  assert.deepEqual(rows, []);
});
