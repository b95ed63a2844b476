import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { inspect } from 'node:util';
import { createWorld } from '../../index.js';
import { createPostgresUpstashWorld, createQStashQueue } from '../../upstash.js';
import { printed } from '../support/program.mjs';
import { NOWHERE, place, queueOptions, serve, until } from './fixture.mjs';

/** @typedef {import('../../upstash.js').QStashOptions} QueueOptions */

const complete = {
  token: 'token-hunter2',
  targetUrl: 'https://app.example',
  currentSigningKey: 'sig_hunter2',
  nextSigningKey: 'sig_hunter3',
  baseUrl: 'https://qstash.example',
};

/** @param {() => unknown} call @returns {any} */
function thrown(call) {
  try {
    call();
  } catch (error) {
    return error;
  }
  throw new Error('it did not fail');
}

/** @param {unknown} error @param {RegExp[]} names */
function assertConfiguration(error, ...names) {
  const { name, status, code, message } = /** @type {any} */ (error);
  assert.deepEqual([name, status, code], ['WorkflowWorldError', 500, 'CONFIGURATION'], message);
  for (const pattern of names) assert.match(message, pattern);
  assert.ok(!inspect(error, { depth: null }).includes('hunter'), message);
}

describe('a setting that is missing or wrong is an error at once, which names it', () => {
  /** @type {Record<string, [QueueOptions, ...RegExp[]]>} */
  const table = {
    'no token': [{ token: undefined }, /QSTASH_TOKEN/, /qstash\.token/],
    'an empty token': [{ token: '' }, /QSTASH_TOKEN/],
    'a token with a newline': [{ token: 'token-hunter2\n' }, /QSTASH_TOKEN/],
    'a token beyond ASCII': [{ token: 'hunter😀' }, /QSTASH_TOKEN/],
    'no target': [{ targetUrl: undefined }, /QSTASH_TARGET_URL/, /qstash\.targetUrl/],
    'an empty target': [{ targetUrl: '' }, /QSTASH_TARGET_URL/],
    'a target without a scheme': [{ targetUrl: 'app.example' }, /QSTASH_TARGET_URL/],
    'a target of another scheme': [{ targetUrl: 'ftp://app.example' }, /QSTASH_TARGET_URL/],
    'an address of QStash that is none': [{ baseUrl: 'qstash' }, /QSTASH_URL/],
    'retries below 0': [{ retries: -1 }, /qstash\.retries/],
    'half a retry': [{ retries: 0.5 }, /qstash\.retries/],
    'no delay at most': [{ maxDelaySeconds: 0 }, /qstash\.maxDelaySeconds/],
  };
  for (const [name, [options, ...names]] of Object.entries(table)) {
    test(name, async () => {
      const qstash = { ...complete, ...options };
      assertConfiguration(
        thrown(() => createQStashQueue(qstash)),
        ...names,
      );
      // Nothing takes the place of a queue that cannot be.
      for (const world of [
        createPostgresUpstashWorld({ databaseUrl: NOWHERE, qstash }),
        createWorld({ connectionString: NOWHERE, queueFactory: () => createQStashQueue(qstash) }),
      ]) {
        const calls = [
          () => world.start(),
          () => world.queue('__wkf_step_s', { runId: 'r' }),
          () => world.runs.get('wrun_1'),
        ];
        for (const call of calls) {
          const error = await call().then(
            () => assert.fail('it went on'),
            (/** @type {unknown} */ reason) => reason,
          );
          assertConfiguration(error, ...names);
        }
      }
    });
  }
});

describe('signing keys', () => {
  test('are not needed to send', async (t) => {
    const { world, qstash } = await place(t, {
      queue: { currentSigningKey: undefined, nextSigningKey: undefined },
    });
    await world.queue('__wkf_workflow_w', { runId: 'r' });
    await until(() => qstash.deliveries.length === 1);
    assert.equal(qstash.deliveries[0].status, 401);
  });

  test('are needed to start, and named', async () => {
    const driver = createQStashQueue({
      ...complete,
      currentSigningKey: undefined,
      nextSigningKey: '',
    });
    const error = await Promise.resolve(driver.start()).catch((reason) => reason);
    assertConfiguration(error, /QSTASH_CURRENT_SIGNING_KEY/, /qstash\.currentSigningKey/);
  });
});

test('creating a World opens nothing and asks nobody', async (t) => {
  let asked = 0;
  const baseUrl = await serve(t, async () => {
    asked += 1;
    return new Response('{}');
  });
  const found = await printed(
    `import { createPostgresUpstashWorld, createQStashQueue, createWorld } from '@workflow/world-postgres/upstash';
     const handles = () => process.getActiveResourcesInfo().filter((kind) => /TCP|TLS|UDP|GetAddr|Timeout|Worker/.test(kind));
     const before = handles().length;
     const qstash = ${JSON.stringify({ ...complete, baseUrl })};
     const worlds = [createWorld(), createPostgresUpstashWorld({ databaseUrl: '${NOWHERE}', qstash })];
     createQStashQueue(qstash);
     for (const world of worlds) world.createQueueHandler('__wkf_step_', async () => {});
     console.log(JSON.stringify({
       opened: handles().length - before,
       same: createWorld === createPostgresUpstashWorld,
       ids: await Promise.all(worlds.map((world) => world.getDeploymentId())),
       error: await worlds[0].runs.get('wrun_1').catch(({ code, message }) => ({ code, message })),
     }));`,
    { env: { WORKFLOW_POSTGRES_URL: NOWHERE } },
  );
  assert.equal(found.opened, 0);
  assert.equal(asked, 0);
  assert.equal(found.same, true);
  assert.deepEqual(found.ids, ['postgres-upstash', 'postgres-upstash']);
  assert.equal(found.error.code, 'CONFIGURATION');
  assert.match(found.error.message, /QSTASH_TOKEN/);
});

describe('the environment', () => {
  /** What a World of the environment does, in a process of its own. */
  const program = `
    import { createWorld } from '@workflow/world-postgres/upstash';
    const world = createWorld();
    const sent = await world.queue('__wkf_workflow_w', { runId: 'r' }).catch(({ message }) => ({ message }));
    console.log(JSON.stringify({ ...sent, deploymentId: await world.getDeploymentId() }));
    await world.close();`;

  test('configures all of it', async (t) => {
    const { qstash, calls } = await place(t);
    const env = {
      ...qstash.env('https://app.example'),
      DATABASE_URL: NOWHERE,
      DEPLOYMENT_ID: 'dpl_7',
    };
    const { messageId, deploymentId } = await printed(program, { env });
    assert.equal(deploymentId, 'dpl_7');
    await until(() => calls.length === 1);
    assert.equal(calls[0].messageId, messageId);
  });

  test('names what it lacks', async (t) => {
    const { qstash } = await place(t);
    const env = { ...qstash.env('https://app.example'), DATABASE_URL: NOWHERE };
    for (const name of ['QSTASH_TOKEN', 'QSTASH_TARGET_URL']) {
      for (const value of [undefined, '']) {
        const { message } = await printed(program, { env: { ...env, [name]: value } });
        assert.match(message, new RegExp(name));
        assert.ok(!message.includes(qstash.token));
      }
    }
    assert.equal(qstash.requests.length, 0);
  });

  test('gives way to options', async (t) => {
    const { qstash, calls } = await place(t);
    process.env.QSTASH_TOKEN = 'of-the-environment';
    process.env.QSTASH_TARGET_URL = 'https://other.example';
    process.env.QSTASH_URL = 'http://127.0.0.1:1';
    t.after(() => {
      for (const name of ['TOKEN', 'TARGET_URL', 'URL']) delete process.env[`QSTASH_${name}`];
    });
    const world = createPostgresUpstashWorld({
      databaseUrl: NOWHERE,
      qstash: queueOptions(qstash),
      deploymentId: 'mine',
    });
    assert.equal(await world.getDeploymentId(), 'mine');
    await world.queue('__wkf_workflow_w', { runId: 'r' });
    await until(() => calls.length === 1);
  });

  test('does not make a queue of what looks like a development or a test', async () => {
    for (const env of [
      { NODE_ENV: 'test' },
      { NODE_ENV: 'development' },
      { VITEST: 'true' },
      { QSTASH_DEV: '1' },
    ]) {
      const { message } = await printed(program, { env: { ...env, DATABASE_URL: NOWHERE } });
      assert.match(message, /QSTASH_TOKEN/, JSON.stringify(env));
    }
  });
});
