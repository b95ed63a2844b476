// The World of the second seed on a real database.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { createPostgresUpstashWorld } from '../../upstash.js';
import { ulid } from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { printed, runProgram } from '../support/program.mjs';
import { place, serve, until } from './fixture.mjs';

const database = await testDatabase({ after });
const { url, schema, queueSchema } = database;
const storage = { databaseUrl: url, schema, queueSchema };
const env = {
  DATABASE_URL: url,
  WORKFLOW_POSTGRES_SCHEMA: schema,
  WORKFLOW_POSTGRES_QUEUE_SCHEMA: queueSchema,
};

/** @param {import('node:test').TestContext} t @param {Parameters<typeof place>[1]} [options] */
async function placeWithStorage(t, options) {
  const found = await place(t, { ...options, world: { ...storage, ...options?.world } });
  t.after(() => found.world.close());
  return found;
}

describe('runs.create', () => {
  /** @param {object} [more] */
  const newRun = (more) => ({
    runId: `wrun_${ulid()}`,
    workflowName: 'my-workflow',
    status: /** @type {const} */ ('pending'),
    input: ['arg1', 'arg2'],
    deploymentId: 'production',
    executionContext: {},
    createdAt: new Date(),
    updatedAt: new Date(),
    ...more,
  });

  test('makes a run and tells of it, as its event does', async (t) => {
    const { world } = await placeWithStorage(t);
    const given = newRun();
    const run = await world.runs.create(given);
    assert.equal(run.runId, given.runId);
    assert.equal(run.status, 'pending');
    assert.equal(run.workflowName, 'my-workflow');
    assert.equal(run.deploymentId, 'production');
    assert.deepEqual(run.input, ['arg1', 'arg2']);
    assert.deepEqual(await world.runs.get(run.runId), run);
    const { data } = await world.events.list({ runId: run.runId });
    assert.deepEqual(
      data.map(({ eventType }) => eventType),
      ['run_created'],
    );
  });

  test('makes a run of the spec version that it is given, or of the current one', async (t) => {
    const { world } = await placeWithStorage(t);
    for (const input of [['arg1'], Uint8Array.of(1)]) {
      for (const [specVersion, expected] of [
        [undefined, 3],
        [1, 1],
        [2, 2],
        [3, 3],
      ]) {
        const run = await world.runs.create(newRun({ input, specVersion }));
        assert.equal(/** @type {any} */ (run).specVersion, expected);
      }
      await assert.rejects(world.runs.create(newRun({ input, specVersion: 4 })), {
        name: 'RunNotSupportedError',
      });
    }
  });

  test('takes what the SDK has serialised', async (t) => {
    const { world } = await placeWithStorage(t);
    const input = Uint8Array.from([0, 255, 1]);
    const run = await world.runs.create(newRun({ input }));
    assert.deepEqual(run.input, input);
    assert.equal(/** @type {any} */ (run).specVersion, 3);
  });

  test('makes a run once', async (t) => {
    const { world } = await placeWithStorage(t);
    const given = newRun();
    await world.runs.create(given);
    await assert.rejects(world.runs.create(given), { name: 'EntityConflictError' });
  });

  test('does not start it', async (t) => {
    const { world, qstash } = await placeWithStorage(t);
    await world.runs.create(newRun());
    assert.equal(qstash.requests.length, 0);
  });
});

describe('start', () => {
  test('needs a database and keys, and no security token in production', async (t) => {
    const { qstash } = await placeWithStorage(t);
    const program = `
      import { createWorld } from '@workflow/world-postgres/upstash';
      const world = createWorld();
      const error = await world.start().then(() => null, ({ code, message }) => ({ code, message }));
      await world.close();
      console.log(JSON.stringify(error));`;
    const settings = { ...env, ...qstash.env('https://app.example'), NODE_ENV: 'production' };
    const { code, output, errors } = await runProgram(program, { env: settings });
    assert.deepEqual([code, output.trim()], [0, 'null'], errors);
    assert.doesNotMatch(errors, /SECURITY_TOKEN/);
    const withoutKeys = await printed(program, {
      env: { ...settings, QSTASH_CURRENT_SIGNING_KEY: '', QSTASH_NEXT_SIGNING_KEY: '' },
    });
    assert.equal(withoutKeys.code, 'CONFIGURATION');
    assert.match(withoutKeys.message, /QSTASH_CURRENT_SIGNING_KEY/);
  });

  test('is not needed: a World that was not started sends and receives', async (t) => {
    const { world, calls } = await placeWithStorage(t);
    await world.queue('__wkf_workflow_w', { runId: 'r' });
    await until(() => calls.length === 1);
  });

  test('asks QStash for nothing', async (t) => {
    const { world, qstash } = await placeWithStorage(t);
    await world.start();
    await world.close();
    assert.equal(qstash.requests.length, 0);
  });
});

test('deliveries reach a World that was made without options, as the SDK makes it', async (t) => {
  const { qstash } = await placeWithStorage(t, {
    standIn: { route: (destination) => destination },
  });
  // It has neither token nor database: the one that was started has.
  const found = await printed(
    `import { once } from 'node:events';
     import { createServer } from 'node:http';
     import { createWorld } from '@workflow/world-postgres/upstash';
     import { createPostgresUpstashWorld } from '@workflow/world-postgres';
     const settings = ${JSON.stringify({ ...storage, qstash: { ...qstashOptions(qstash), targetUrl: 'http://127.0.0.1:PORT' } })};
     let reached;
     const arrived = new Promise((resolve) => { reached = resolve; });
     const handle = createWorld().createQueueHandler('__wkf_workflow_', async (message, meta) => reached({ message, meta }));
     const server = createServer(async (request, response) => {
       const chunks = [];
       for await (const chunk of request) chunks.push(chunk);
       const answer = await handle(new Request('http://127.0.0.1' + request.url, {
         method: 'POST', headers: request.headers, body: Buffer.concat(chunks),
       }));
       response.writeHead(answer.status).end(await answer.text());
     }).listen(0, '127.0.0.1');
     await once(server, 'listening');
     settings.qstash.targetUrl = settings.qstash.targetUrl.replace('PORT', server.address().port);
     const world = createPostgresUpstashWorld(settings);
     await world.start();
     const { messageId } = await world.queue('__wkf_workflow_w', { runId: 'r' });
     const { message, meta } = await arrived;
     console.log(JSON.stringify({ same: meta.messageId === messageId, message }));
     await world.close();
     server.closeAllConnections();
     server.close();`,
    { env: { WORKFLOW_TARGET_WORLD: '@workflow/world-postgres/upstash', PATH: process.env.PATH } },
  );
  assert.deepEqual(found, { same: true, message: { runId: 'r' } });
});

/** @param {import('./fixture.mjs').QStash} qstash */
function qstashOptions({ url: baseUrl, token, keys }) {
  return {
    baseUrl,
    token,
    currentSigningKey: keys().current,
    nextSigningKey: keys().next,
  };
}

describe('the snippets of the seed run as printed', () => {
  /** The package has another name now. */
  const usage = `
    import { createPostgresUpstashWorld } from '@workflow/world-postgres/upstash';

    const world = createPostgresUpstashWorld({
      databaseUrl: process.env.DATABASE_URL!,
      qstash: {
        token: process.env.QSTASH_TOKEN!,
        targetUrl: process.env.QSTASH_TARGET_URL!, // Your API endpoint
      },
      deploymentId: 'production',
    });

    // Create a workflow run
    const run = await world.runs.create({
      runId: ulid(),
      workflowName: 'my-workflow',
      status: 'pending',
      input: ['arg1', 'arg2'],
      deploymentId: 'production',
      executionContext: {},
      createdAt: new Date(),
      updatedAt: new Date(),
    });
`;
  const receiving = `
    // QStash pushes messages to your endpoint
    app.post('/queue/:queueName', async (req, res) => {
      const handler = world.createQueueHandler('__wkf_workflow_', async (message, meta) => {
        // Process workflow step
      });

      return handler(req);
    });
`;

  test('creating a run', async (t) => {
    const { qstash } = await placeWithStorage(t);
    const runId = `wrun_${ulid()}`;
    const run = await printed(
      `${usage.replaceAll('!,', ',')}
       function ulid() { return '${runId}'; }
       await world.close();
       console.log(JSON.stringify(run));`,
      { env: { ...env, ...qstash.env('https://app.example/queue') } },
    );
    assert.deepEqual([run.runId, run.status, run.input], [runId, 'pending', ['arg1', 'arg2']]);
  });

  test('receiving its deliveries', async (t) => {
    /** @type {Record<string, (request: Request) => Promise<Response>>} */
    const posts = {};
    const app = {
      /** @param {string} path @param {(request: Request) => Promise<Response>} handle */
      post(path, handle) {
        posts[path] = handle;
      },
    };
    const own = await serve(t, (request) => posts['/queue/:queueName'](request));
    const { qstash, options } = await placeWithStorage(t, {
      targetUrl: 'https://app.example/queue',
      standIn: { route: (destination) => destination.replace('https://app.example', own) },
    });
    const world = createPostgresUpstashWorld(options);
    t.after(() => world.close());
    new Function('app', 'world', receiving)(app, world);
    await world.queue('__wkf_workflow_workflow//./workflows/order//handleOrder', { runId: 'r' });
    await until(() => qstash.isIdle() && qstash.deliveries.length === 1);
    const [{ status, answer, url: destination }] = qstash.deliveries;
    assert.deepEqual([status, answer], [200, '{"ok":true}']);
    assert.match(destination, /^https:\/\/app\.example\/queue\/__wkf_workflow_workflow%2F%2F/);
    // Nobody else gets in there.
    const forged = await fetch(`${own}/queue/__wkf_workflow_w`, { method: 'POST', body: '{}' });
    assert.equal(forged.status, 401);
  });
});

test('what is duplicated beyond the memory of QStash is harmless: the storage knows', async (t) => {
  const [runId, correlationId] = [`wrun_${ulid()}`, `step_${ulid()}`];
  let executions = 0;
  const { world, qstash } = await placeWithStorage(t, {
    async handle() {
      // As the SDK does.
      try {
        await create({ eventType: 'step_started' });
      } catch (error) {
        if (/** @type {Error} */ (error).name === 'EntityConflictError') return;
        throw error;
      }
      executions += 1;
      await create({ eventType: 'step_completed', eventData: { result: input } });
    },
  });
  const input = Buffer.from('1');
  const create = (/** @type {object} */ event) =>
    world.events.create(runId, /** @type {any} */ ({ specVersion: 3, correlationId, ...event }));
  await world.runs.create({ runId, workflowName: 'w', input, deploymentId: 'd' });
  await create({ eventType: 'run_started', correlationId: undefined });
  await create({
    eventType: 'step_created',
    eventData: { stepName: 's', workflowName: 'w', input },
  });
  for (let round = 1; round <= 3; round += 1) {
    await world.queue('__wkf_step_s', /** @type {any} */ ({ stepId: correlationId }), {
      idempotencyKey: correlationId,
    });
    await until(() => qstash.deliveries.length === round && qstash.isIdle());
    qstash.advance(601_000);
  }
  assert.ok(qstash.deliveries.every(({ status }) => status === 200));
  assert.equal(executions, 1);
});
