import assert from 'node:assert/strict';
import test, { after } from 'node:test';
import {
  createFunctionProxy,
  createHttpProxy,
  createPgBossFunctionProxyQueue,
  createPgBossHttpProxyQueue,
  createPostgresUpstashWorld,
  createQStashQueue,
  createWorld,
} from '../../index.js';
import { TOKEN } from '../queue/fixture.mjs';
import { bytes } from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { changed, changes } from './creatures.mjs';
import { assertTyped, attempt, forAll } from './hostility.mjs';

const database = await testDatabase({ after });
// What is not given leads there, too: a server that does not answer is waited for.
process.env.WORKFLOW_POSTGRES_URL = database.url;

const settings = {
  connectionString: database.url,
  listenConnectionString: database.url,
  securityToken: TOKEN,
  schema: database.schema,
  queueSchema: database.queueSchema,
  maxPoolSize: 2,
  statementCache: true,
  jobPrefix: 'p_',
  queueConcurrency: 2,
  streamFlushIntervalMs: 1,
  namespace: 'ns',
  closeOnSignals: false,
  log() {},
};

const qstash = {
  token: 'token',
  targetUrl: 'https://app.example/queue',
  currentSigningKey: 'current',
  nextSigningKey: 'next',
  // Nobody listens there.
  baseUrl: 'http://127.0.0.1:1',
  retries: 1,
  retryDelay: '1000',
  maxDelaySeconds: 60,
};

const message = {
  id: 'a',
  queueName: '__wkf_step_a',
  data: bytes('{}'),
  messageId: 'msg_1',
  attempt: 1,
};

const ok = async () => new Response('{}', { headers: { 'x-workflow-world': 'postgres' } });
const entrypoints = {
  workflowEntrypoint: ok,
  stepEntrypoint: { POST: ok },
};

/** A wrong setting, or one that leads nowhere. @param {unknown} error */
function assertRefusal(error) {
  const { status, code } = Object(error);
  if (status === 503 && (code === 'TRANSPORT' || code === 'DELIVERY_FAILED')) return;
  if (code === 'NOT_SET_UP') return;
  assertTyped(error);
}

/** @param {Promise<unknown>} promise */
const settled = (promise) => promise.then(() => {}, assertRefusal);

/** @param {any} world */
async function use(world) {
  try {
    assert.equal(typeof (await world.health()).healthy, 'boolean');
    const handle = world.createQueueHandler('__wkf_step_', async () => {});
    const { status } = await handle(new Request('http://localhost', { method: 'POST' }));
    assert.equal(status, 401);
    assert.equal(typeof (await world.getDeploymentId()), 'string');
  } finally {
    await world.close();
  }
}

/** @type {Record<string, { args: unknown[], use: (...args: any[]) => Promise<unknown> }>} */
const entries = {
  createWorld: { args: [settings], use: async (options) => use(createWorld(options)) },
  'createWorld with a queueFactory': {
    args: [{ ...settings, queueFactory: { returns: {} } }],
    use: async (options) => use(createWorld(options)),
  },
  createPostgresUpstashWorld: {
    args: [{ databaseUrl: database.url, deploymentId: 'dpl', idleTimeoutSeconds: 1, qstash }],
    use: async (options) => use(createPostgresUpstashWorld(options)),
  },
  createPgBossHttpProxyQueue: {
    args: [{ ...settings, baseUrl: 'http://127.0.0.1:1', port: 1, keepCompleted: true }],
    async use(options) {
      const driver = createPgBossHttpProxyQueue(options);
      await settled(/** @type {any} */ (driver).health());
      await driver.close?.();
    },
  },
  createPgBossFunctionProxyQueue: {
    args: [{ ...settings, ...entrypoints }],
    async use(options) {
      const driver = createPgBossFunctionProxyQueue(options);
      await settled(/** @type {any} */ (driver).health());
      await driver.close?.();
    },
  },
  createQStashQueue: {
    args: [qstash],
    use: async (options) => settled(createQStashQueue(options).start()),
  },
  createHttpProxy: {
    args: [{ baseUrl: 'http://127.0.0.1:1', port: 1, securityToken: TOKEN }],
    use: async (options) => settled(createHttpProxy(options).proxyStep(message)),
  },
  createFunctionProxy: {
    args: [{ ...entrypoints, securityToken: TOKEN }],
    use: async (options) => settled(createFunctionProxy(options).proxyStep(message)),
  },
};

for (const [name, { args, use }] of Object.entries(entries)) {
  test(`${name} works with its options, or names the one that is wrong`, async () => {
    await forAll(60, changes, async (hostile) => {
      await attempt(() => use(...changed(args, hostile)));
    });
  });
}
