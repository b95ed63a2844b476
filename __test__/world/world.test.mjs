import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { inspect } from 'node:util';
import { createWorld } from '../../index.js';
import { refusal, runCreated, ulid } from '../storage/fixture.mjs';
import { wiretap } from '../storage/wiretap.mjs';
import { testDatabase } from '../support/database.mjs';
import { printed as printedBy, runProgram } from '../support/program.mjs';

const database = await testDatabase({ after });
const { url, schema, queueSchema } = database;
const options = { connectionString: url, schema, queueSchema, securityToken: 'token-of-the-tests' };

/** @param {string} program @param {Partial<import('../support/program.mjs').ProgramOptions>} [more] */
const run = (program, more) => runProgram(program, withDatabase(more));

/** The JSON that a program prints. @param {Parameters<typeof run>} args */
const printed = (...[program, more]) => printedBy(program, withDatabase(more));

/** @param {Partial<import('../support/program.mjs').ProgramOptions>} [options] */
const withDatabase = (options) => ({ ...options, env: { ...database.env, ...options?.env } });

describe('createWorld', () => {
  test('gives a plain object of plain functions, at once', async () => {
    const world = createWorld(options);
    assert.equal(Object.getPrototypeOf(world), Object.prototype);
    assert.equal(world.specVersion, 3);
    assert.equal(await world.getDeploymentId(), await createWorld().getDeploymentId());
    for (const name of /** @type {const} */ ([
      'start',
      'close',
      'queue',
      'createQueueHandler',
      'getDeploymentId',
      'writeToStream',
      'writeToStreamMulti',
      'closeStream',
      'readFromStream',
      'listStreamsByRunId',
      'getStreamChunks',
      'getStreamInfo',
    ])) {
      assert.equal(typeof world[name], 'function', name);
    }
    // What it does not have, the SDK must not find.
    for (const absent of ['then', 'getEncryptionKeyForRun']) assert.ok(!(absent in world), absent);
    await world.close();
  });

  test('can be taken to pieces', async () => {
    const world = createWorld(options);
    const { events, runs, queue } = { ...world };
    const { create } = events;
    const { run } = await create(null, /** @type {any} */ (runCreated()));
    const { get, list } = runs;
    assert.equal((await get(/** @type {any} */ (run).runId)).status, 'pending');
    assert.ok((await list()).data.length > 0);
    assert.match(
      (await queue('__wkf_workflow_w', { runId: /** @type {any} */ (run).runId })).messageId ?? '',
      /^msg_/,
    );
    await world.close();
  });

  test('passes on how often the SDK may flush streams', () => {
    assert.equal(createWorld({ ...options, streamFlushIntervalMs: 7 }).streamFlushIntervalMs, 7);
    assert.equal(createWorld(options).streamFlushIntervalMs, 0);
  });

  test('two Worlds of the same settings share connections, and either may close first', async (t) => {
    const tap = await wiretap(t, url);
    const shared = { ...options, connectionString: tap.url, maxPoolSize: 1 };
    const [one, two] = [createWorld(shared), createWorld({ ...shared, streamFlushIntervalMs: 5 })];
    await Promise.all([one, two, one, two].map((world) => world.runs.list()));
    assert.equal(tap.connections(), 1);
    await one.close();
    await two.runs.list();
    assert.equal(tap.connections(), 1);
    await two.close();
    const three = createWorld(shared);
    await three.runs.list();
    assert.equal(tap.connections(), 2);
    await three.close();
  });

  test('a closed World says so, and closes as often as it is told to', async () => {
    const world = createWorld(options);
    await world.runs.list();
    await Promise.all([world.close(), world.close()]);
    await world.close();
    for (const call of [
      () => world.runs.list(),
      () => world.events.create(null, /** @type {any} */ (runCreated())),
      () => world.queue('__wkf_workflow_w', { runId: 'r' }),
      () => world.start(),
      () => world.readFromStream('strm_x'),
    ]) {
      await assert.rejects(call, { name: 'WorkflowWorldError', code: 'CLOSED' });
    }
    await createWorld(options).close();
  });
});

describe('creating a World', () => {
  test('reads no setting and opens nothing until it is used', async () => {
    const found = await printed(
      `import { createWorld } from '@workflow/world-postgres';
       import { createPgBossHttpProxyQueue } from '@workflow/world-postgres';
       const handles = () => process.getActiveResourcesInfo().filter((kind) => !/Pipe|TTY|File/.test(kind));
       const before = handles();
       const worlds = [createWorld(), createWorld()];
       createPgBossHttpProxyQueue();
       worlds[0].createQueueHandler('__wkf_step_', async () => {});
       const nothing = handles().length - before.length;
       const deployment = await worlds[0].getDeploymentId();
       const error = await worlds[0].runs.get('wrun_1').catch((error) => error);
       process.env.WORKFLOW_POSTGRES_URL = ${JSON.stringify(url)};
       const missing = await worlds[0].runs.get('wrun_1').catch((error) => error.name);
       for (const world of worlds) await world.close();
       console.log(JSON.stringify({ nothing, deployment, code: error.code, message: error.message, missing }));`,
      { env: { WORKFLOW_POSTGRES_URL: 'http://hunter2@nowhere' } },
    );
    assert.deepEqual([found.nothing, found.code], [0, 'CONFIGURATION']);
    assert.match(found.message, /WORKFLOW_POSTGRES_URL/);
    assert.doesNotMatch(found.message, /hunter2/);
    assert.equal(found.missing, 'WorkflowRunNotFoundError');
  });

  test('works by import and by require', async () => {
    const list = `world.runs.list().then(async ({ data }) => {
      await world.close();
      console.log(JSON.stringify(Array.isArray(data)));
    });`;
    const imported = `import { createWorld } from '@workflow/world-postgres'; const world = createWorld(); ${list}`;
    const required = `const world = require('@workflow/world-postgres').createWorld(); ${list}`;
    assert.equal(await printed(imported), true);
    assert.equal(await printed(required, { type: 'commonjs' }), true);
  });

  test('works by the name in WORKFLOW_TARGET_WORLD, as the SDK does it', async () => {
    const found = await printed(
      `import { createWorld, getWorld, getWorldHandlers } from 'workflow/runtime';
       const world = getWorld();
       const { data } = await world.runs.list();
       const handlers = getWorldHandlers();
       await world.close();
       console.log(JSON.stringify([data.length >= 0, handlers.specVersion, typeof handlers.createQueueHandler, createWorld().specVersion]));`,
    );
    assert.deepEqual(found, [true, 3, 'function', 3]);
  });
});

describe('a process ends by itself', () => {
  const use = `import { createWorld } from '@workflow/world-postgres';
    const world = createWorld();
    await world.runs.list();
    await world.queue('__wkf_workflow_w', { runId: 'wrun_none' });
    await world.writeToStream('strm_x', 'wrun_x', 'chunk');
    await world.getStreamInfo('strm_x');`;

  test('after the use of a World that was closed', async () => {
    const { code, signal, errors } = await run(`${use} await world.close();`);
    assert.deepEqual([code, signal], [0, null], errors);
  });

  test('after the use of a World that was never started, unclosed', async () => {
    const { code, signal, errors } = await run(use);
    assert.deepEqual([code, signal], [0, null], errors);
  });
});

describe('settings', () => {
  /** @param {any} wrong */
  const useOf = (wrong) => createWorld({ ...options, ...wrong }).runs.list();

  for (const [name, wrong] of Object.entries({
    'a schema that is SQL': { schema: 'a"; DROP SCHEMA public; --' },
    'a schema in capitals': { schema: 'Workflow' },
    'an empty schema': { schema: '' },
    'the schema of the official package': { schema: 'workflow' },
    'a schema of PostgreSQL': { schema: 'pg_catalog' },
    'a queue schema that is SQL': { queueSchema: "a'b" },
    'a queue schema that the official package drops': { queueSchema: 'pgboss' },
    'a job prefix that is SQL': { jobPrefix: "a'; --" },
    'a long job prefix': { jobPrefix: 'a'.repeat(65) },
    'a namespace with a dash': { namespace: 'a-b' },
    'no connections': { maxPoolSize: 0 },
    'half a connection': { maxPoolSize: 1.5 },
    'no concurrency': { queueConcurrency: 0 },
    'a number as text': { maxPoolSize: 'many' },
    'a URL of something else': { connectionString: 'mysql://user:hunter2@host/db' },
    'no URL': { connectionString: 'hunter2' },
    'a token that is no header': { securityToken: 'hunter2 \u2713' },
    'an object': { connectionString: {} },
    'a token that is a number': { securityToken: 20_021_017 },
    'a token where an object belongs': { qstash: 'hunter2' },
  })) {
    test(`that are ${name} are refused and nothing secret is told`, async () => {
      const error = await refusal(useOf(wrong));
      assert.deepEqual(
        [error.name, error.code],
        ['WorkflowWorldError', 'CONFIGURATION'],
        error.stack,
      );
      assert.doesNotMatch(inspect(error, { depth: 9 }), /hunter2|20021017/);
    });
  }

  test('the password is in no error of a connection either', async () => {
    const { hostname, port } = new URL(url);
    const at = `${hostname}:${port}`;
    for (const connectionString of [
      `postgres://world:hunter2@${at}/world`,
      `postgres://world:hunter2@${at}/world?sslmode=no-such-mode`,
      `postgres://world:hunter2@${at}/world?sslmode=require`,
      'postgres://world:hunter2@no-such-host.invalid/world',
      `postgres://world@${at}/world?password=hunter2`,
    ]) {
      const world = createWorld({ ...options, connectionString });
      for (const call of [() => world.runs.list(), () => world.start()]) {
        const error = await refusal(call());
        assert.equal(error.name, 'WorkflowWorldError');
        assert.ok(error.status >= 500);
        assert.doesNotMatch(inspect(error, { depth: 9 }), /hunter2/);
      }
      await world.close();
    }
  });

  test('a database that is not reachable is told as 503', async () => {
    const world = createWorld({ ...options, connectionString: 'postgres://u:p@127.0.0.1:1/db' });
    const error = await refusal(world.runs.list());
    assert.deepEqual([error.name, error.status], ['WorkflowWorldError', 503]);
    await world.close();
  });

  test('a database of another isolation level is refused, with the cure', async () => {
    for (const level of ['serializable', 'repeatable read']) {
      const connection = new URL(url);
      const option = `-c default_transaction_isolation=${level.replace(' ', '\\ ')}`;
      connection.search = `?options=${encodeURIComponent(option)}`;
      const world = createWorld({ ...options, connectionString: connection.href });
      const cure = { code: 'CONFIGURATION', message: /read committed/ };
      try {
        await assert.rejects(world.start(), cure);
        // A process that only enqueues never calls start().
        await assert.rejects(world.runs.list(), cure);
        assert.match((await world.health()).database.error ?? '', cure.message);
      } finally {
        await world.close();
      }
    }
  });

  test('a database that is not set up is told the command', async () => {
    const world = createWorld({ ...options, schema: `none_${ulid().toLowerCase()}` });
    for (const call of [() => world.start(), () => world.runs.list()]) {
      const error = await refusal(call());
      assert.equal(error.code, 'NOT_SET_UP');
      assert.match(error.message, /workflow-postgres-setup/);
    }
    await world.close();
  });
});

describe('the token of deliveries', () => {
  const program = `
    import { createWorld } from '@workflow/world-postgres';
    const world = createWorld();
    const handle = world.createQueueHandler('__wkf_step_', async () => {});
    const statuses = [];
    const answers = [];
    for (const token of ['', 'secret', process.env.OFFERED]) {
      const response = await handle(new Request('http://localhost', {
        method: 'POST',
        body: '{}',
        headers: {
          'x-workflow-secret': token,
          'x-vqs-queue-name': '__wkf_step_s',
          'x-vqs-message-id': 'msg_1',
          'x-vqs-message-attempt': '1',
        },
      }));
      statuses.push(response.status);
      answers.push(await response.text());
    }
    const { code, message } = await world.start().then(() => ({}), (error) => error);
    await world.close();
    console.log(JSON.stringify({ statuses, answers, code, message }));`;
  /** @param {string | undefined} token @param {string} [NODE_ENV] */
  const env = (token, NODE_ENV) => ({
    NODE_ENV,
    OFFERED: 'long-random-token',
    WORKFLOW_POSTGRES_SECURITY_TOKEN: token,
  });

  for (const environment of [undefined, '', 'production', 'staging']) {
    for (const token of [undefined, 'secret', 'secret,long-random-token', 'your-secret-token']) {
      test(`the token ${JSON.stringify(token)} neither starts nor executes where NODE_ENV is ${JSON.stringify(environment)}`, async () => {
        const { output, errors } = await run(program, { env: env(token, environment) });
        const found = JSON.parse(output);
        assert.deepEqual(found.statuses, [401, 401, 401]);
        assert.equal(found.code, 'CONFIGURATION');
        // The reason is for whoever runs the process.
        for (const reason of [found.message, errors]) {
          assert.match(reason, /WORKFLOW_POSTGRES_SECURITY_TOKEN/);
          assert.match(reason, /NODE_ENV/);
          assert.doesNotMatch(reason, /long-random-token/);
        }
        assert.doesNotMatch(found.answers.join(), /WORKFLOW|NODE_ENV|token/);
      });
    }
  }

  for (const environment of ['development', 'test']) {
    test(`without a token of one’s own, ${environment} starts and executes, and is warned once`, async () => {
      const { output, errors } = await run(program, { env: env(undefined, environment) });
      const found = JSON.parse(output);
      assert.deepEqual([found.statuses, found.code], [[401, 200, 401], undefined], found.message);
      assert.equal(errors.match(/is one that everybody knows/g)?.length, 1, errors);
    });
  }

  test('a token of one’s own does, without a warning', async () => {
    const { output, errors } = await run(program, { env: env('long-random-token') });
    const found = JSON.parse(output);
    assert.deepEqual([found.statuses, found.code], [[401, 401, 200], undefined], found.message);
    assert.doesNotMatch(errors, /SECURITY_TOKEN \(or/);
    // However many strangers knock, one line a minute tells of them.
    assert.equal(errors.match(/was refused/g)?.length, 1, errors);
  });

  test('a short token does, and is warned of once in a process', async () => {
    const { output, errors } = await run(program, { env: { ...env('short'), OFFERED: 'short' } });
    assert.deepEqual(JSON.parse(output).statuses, [401, 401, 200]);
    assert.equal(errors.match(/fewer than 16 characters/g)?.length, 1, errors);
  });
});

describe('a started World', () => {
  test('keeps its process alive until it is closed, and becomes the World of the SDK', async () => {
    const found = await printed(
      `import { createWorld } from '@workflow/world-postgres';
       import { getWorld } from 'workflow/runtime';
       const world = createWorld();
       await Promise.all([world.start(), world.start()]);
       const mine = getWorld() === world;
       const timer = process.getActiveResourcesInfo().includes('Timeout');
       await world.close();
       console.log(JSON.stringify({ mine, timer, after: getWorld() === world }));`,
    );
    assert.deepEqual(found, { mine: true, timer: true, after: false });
  });

  test('leaves another World alone that the SDK was told to use', async () => {
    const found = await printed(
      `import { createWorld } from '@workflow/world-postgres';
       import { getWorld } from 'workflow/runtime';
       const world = createWorld();
       await world.start();
       const other = getWorld();
       await world.close();
       console.log(JSON.stringify(other !== world));`,
      { env: { WORKFLOW_TARGET_WORLD: 'local' } },
    );
    assert.equal(found, true);
  });

  test('decides with its own token about the deliveries that the SDK’s handlers get', async () => {
    const found = await printed(
      `import { createWorld } from '@workflow/world-postgres';
       import { getWorldHandlers } from 'workflow/runtime';
       const handle = getWorldHandlers().createQueueHandler('__wkf_step_', async () => {});
       const world = createWorld({ securityToken: 'token-in-code' });
       const deliver = async (token) => (await handle(new Request('http://localhost', {
         method: 'POST',
         body: '{}',
         headers: {
           'x-workflow-secret': token,
           'x-vqs-queue-name': '__wkf_step_s',
           'x-vqs-message-id': 'msg_1',
           'x-vqs-message-attempt': '1',
         },
       }))).status;
       const tokens = ['token-of-the-tests', 'token-in-code'];
       const before = [await deliver(tokens[0]), await deliver(tokens[1])];
       await world.start();
       const during = [await deliver(tokens[0]), await deliver(tokens[1])];
       await world.close();
       const after = [await deliver(tokens[0]), await deliver(tokens[1])];
       console.log(JSON.stringify({ before, during, after }));`,
    );
    assert.deepEqual(found, { before: [200, 401], during: [401, 200], after: [200, 401] });
  });
});
