import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { buffer } from 'node:stream/consumers';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Worker } from 'node:worker_threads';
import {
  createPgBossFunctionProxyQueue,
  createPgBossHttpProxyQueue,
  createWorld,
} from '../../index.js';
import { setup } from '../../lib/setup.js';
import { bytes, runCreated, ulid } from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { printed, runProgram } from '../support/program.mjs';
import { relay } from '../support/relay.mjs';
import {
  asWorld,
  gate,
  isGone,
  isProbe,
  OF_WORLD,
  place,
  routes,
  TOKEN,
  until,
} from './fixture.mjs';

/** @typedef {import('node:test').TestContext} Test */
/** @typedef {import('./fixture.mjs').Handler} Handler */
/** @typedef {(request: Request) => any} Answer */

setFlagsFromString('--expose-gc');
const gc = runInNewContext('gc');
const database = await testDatabase({ after });
const ok = () => Response.json({ ok: true }, { headers: OF_WORLD });

/** Options of a World whose deliveries go to functions. @param {any} step @param {any} [flow] */
const toFunctions = (step, flow = step) => {
  const [stepEntrypoint, workflowEntrypoint] = [step, flow].map(
    (answer) => answer && withProbes(answer),
  );
  return {
    queueFactory: () => createPgBossFunctionProxyQueue({ stepEntrypoint, workflowEntrypoint }),
  };
};

/** Functions of a test see no probes. @param {Answer} answer @returns {Answer} */
const withProbes = (answer) => (request) => (isProbe(request) ? ok() : answer(request));

/** Sends a step of this id. @param {import('./fixture.mjs').World} world @param {string} stepId */
const sendStep = (world, stepId) =>
  world.queue('__wkf_step_s', { stepId }, { idempotencyKey: stepId });

/** A started World with these handlers of steps and flows. @param {Test} t @param {{ step?: Handler, flow?: Handler }} handlers */
async function workerOf(t, handlers) {
  const { step, flow } = routes(handlers);
  const world = await place(t, database)(toFunctions(step, flow));
  await world.start();
  return world;
}

describe('a function', () => {
  test('gets the request that a route gets over HTTP', async (t) => {
    /** @param {any} request @param {Headers} headers @param {Uint8Array} body */
    const seen = ({ method, url }, headers, body) => ({
      method,
      path: new URL(url, 'http://localhost').pathname,
      headers: Object.fromEntries(
        [...headers].filter(([name]) =>
          /^(x-(?!workflow-ticket)|traceparent|content-type)/.test(name),
        ),
      ),
      body: Buffer.from(body).toString(),
    });
    /** @param {any[]} requests */
    const failingFirst = (requests) => (requests.length === 1 ? 500 : 200);

    /** @type {any[]} */
    const overHttp = [];
    const server = createServer(async (request, response) => {
      const body = await buffer(request);
      if (isProbe(request)) return void response.writeHead(200, OF_WORLD).end('{}');
      overHttp.push(seen(request, new Headers(/** @type {any} */ (request.headers)), body));
      response.writeHead(failingFirst(overHttp), OF_WORLD).end('{}');
    }).listen(0, '127.0.0.1');
    t.after(() => server.close());
    await once(server, 'listening');
    const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());

    /** @type {any[]} */
    const inProcess = [];
    const entrypoint = asWorld(async (/** @type {Request} */ request) => {
      const body = new Uint8Array(await request.arrayBuffer());
      inProcess.push(seen(request, request.headers, body));
      return new Response('{}', { status: failingFirst(inProcess) });
    });

    for (const queueFactory of [
      () => createPgBossHttpProxyQueue({ port }),
      toFunctions(entrypoint).queueFactory,
    ]) {
      const world = await place(t, database)({ queueFactory });
      await world.start();
      const flow = { runId: 'wrun_1', runInput: { input: bytes('\0input'), list: [null] } };
      const { messageId } = await world.queue('__wkf_workflow_workflow//./ä b%//main', flow, {
        headers: { traceparent: '00-trace', 'x-vqs-message-attempt': '7', 'x-own': 'yes' },
      });
      await until(() => isGone(database, messageId));
      const step = await sendStep(world, 's');
      await until(() => isGone(database, step.messageId));
      for (const { messageId: id } of [{ messageId }, step]) {
        for (const { headers } of [...overHttp, ...inProcess]) {
          if (headers['x-vqs-message-id'] === id) headers['x-vqs-message-id'] = 'as it was sent';
        }
      }
      await world.close();
    }
    assert.deepEqual(inProcess, overHttp);
    const [first, second, step] = inProcess;
    assert.deepEqual(first, {
      method: 'POST',
      path: '/.well-known/workflow/v1/flow',
      headers: {
        'content-type': 'application/json',
        traceparent: '00-trace',
        'x-own': 'yes',
        'x-vqs-message-attempt': '1',
        'x-vqs-message-id': 'as it was sent',
        'x-vqs-queue-name': '__wkf_workflow_workflow//./%C3%A4%20b%25//main',
        'x-workflow-secret': TOKEN,
      },
      body: `{"runId":"wrun_1","runInput":{"input":{"__type":"Uint8Array","data":"AGlucHV0"},"list":[null]}}`,
    });
    assert.equal(second.headers['x-vqs-message-attempt'], '2');
    assert.equal(step.path, '/.well-known/workflow/v1/step');
  });

  test('is called for so many messages of a kind at once, and steps hold up no flows', async (t) => {
    const { open, opened } = gate();
    const running = { step: 0, flow: 0 };
    const most = { step: 0, flow: 0 };
    let flows = 0;
    /** @param {'step' | 'flow'} kind @param {() => Promise<unknown>} work @returns {Answer} */
    const counting = (kind, work) => async () => {
      running[kind] += 1;
      most[kind] = Math.max(most[kind], running[kind]);
      await work();
      running[kind] -= 1;
      return ok();
    };
    const world = await place(
      t,
      database,
    )({
      queueConcurrency: 3,
      ...toFunctions(
        counting('step', () => opened),
        counting('flow', async () => {
          await sleep(5);
          flows += 1;
        }),
      ),
    });
    await world.start();
    const steps = await Promise.all(
      Array.from({ length: 12 }, (_, i) => sendStep(world, `step_${i}`)),
    );
    await until(() => running.step === 3);
    for (let i = 0; i < 12; i++) await world.queue('__wkf_workflow_w', { runId: `wrun_${i}` });
    await until(() => flows === 12);
    assert.deepEqual(running, { step: 3, flow: 0 });
    open();
    for (const { messageId } of steps) await until(() => isGone(database, messageId));
    assert.equal(most.step, 3);
    assert.ok(most.flow <= 3, `${most.flow} flows at once`);
  });

  test('settles a message by answers of a World only, others spend no attempt', async (t) => {
    let cancelled = 0;
    /** @param {ConstructorParameters<typeof Response>[0]} body @param {number} [status] */
    const ofWorld = (body, status) => new Response(body, { status, headers: OF_WORLD });
    const wait = (/** @type {number} */ timeoutSeconds, /** @type {number} */ status) =>
      ofWorld(JSON.stringify({ timeoutSeconds }), status);
    const endless = () =>
      new ReadableStream({
        pull: (controller) => controller.enqueue(new Uint8Array(10_000).fill(32)),
        cancel: () => void (cancelled += 1),
      });
    const broken = () =>
      new ReadableStream({
        pull(controller) {
          controller.enqueue(new TextEncoder().encode('{"ok":'));
          controller.error(new Error('reset'));
        },
      });
    const consumed = async () => {
      const response = ok();
      await response.text();
      return response;
    };
    /** What the first delivery gets, and the attempts that there are. @type {Record<string, [Answer, number[]]>} */
    const cases = {
      'a response': [ok, [1]],
      'a wait': [() => wait(0.5, 200), [1, 1]],
      'no wait at all': [() => wait(0, 200), [1, 1]],
      'a wait as 503': [() => wait(0.5, 503), [1, 1]],
      'a wait as 500': [() => wait(0.5, 500), [1, 2]],
      'a failure': [() => ofWorld('"lost"', 500), [1, 2]],
      'a body without end': [() => ofWorld(endless()), [1, 2]],
      'no JSON': [() => ofWorld('fine'), [1, 2]],
      'a token that is not known': [() => ofWorld('{}', 401), [1, 1]],
      'no mark': [() => Response.json({ ok: true }), [1, 1]],
      'no content': [() => new Response(null, { status: 204 }), [1, 1]],
      'status 401': [() => new Response(null, { status: 401 }), [1, 1]],
      'status 404': [() => new Response(null, { status: 404 }), [1, 1]],
      'status 500': [() => new Response('"lost"', { status: 500 }), [1, 1]],
      'a redirect': [() => Response.redirect('http://localhost/login'), [1, 1]],
      'half a body': [() => new Response(broken()), [1, 1]],
      'a body that was read': [consumed, [1, 1]],
      'an exception': [() => assert.fail('lost'), [1, 1]],
      'a rejection': [() => Promise.reject(new Error('lost')), [1, 1]],
      'a rejection with nothing': [() => Promise.reject(), [1, 1]],
      'a rejection with no text': [() => Promise.reject(Object.create(null)), [1, 1]],
      nothing: [() => undefined, [1, 1]],
      'a promise of nothing': [async () => {}, [1, 1]],
      null: [() => null, [1, 1]],
      'a number': [() => 200, [1, 1]],
      'a plain object': [() => ({ status: 200, body: '{"ok":true}' }), [1, 1]],
      'what the handler returns': [() => ({ timeoutSeconds: 1 }), [1, 1]],
    };
    /** @type {Map<string, number[]>} */
    const attempts = new Map();
    const world = await place(
      t,
      database,
    )({
      log: () => {},
      ...toFunctions((/** @type {Request} */ request) => {
        // Not async: an exception is thrown by the call itself.
        const name = decodeURIComponent(request.headers.get('x-vqs-queue-name') ?? '').slice(11);
        const before = attempts.get(name) ?? [];
        attempts.set(name, [...before, Number(request.headers.get('x-vqs-message-attempt'))]);
        return before.length === 0 ? cases[name][0](request) : Promise.resolve(ok());
      }),
    });
    await world.start();
    const sent = await Promise.all(
      Object.keys(cases).map((name) =>
        world.queue(`__wkf_step_${name}`, {}, { idempotencyKey: name }),
      ),
    );
    for (const { messageId } of sent) await until(() => isGone(database, messageId));
    assert.deepEqual(
      Object.fromEntries(Object.keys(cases).map((name) => [name, attempts.get(name)])),
      Object.fromEntries(Object.entries(cases).map(([name, [, expected]]) => [name, expected])),
    );
    assert.equal(cancelled, 1);
  });

  test('that never settles keeps its message, until its World is closed', async (t) => {
    const makeWorld = place(t, database);
    const started = gate();
    const stuck = await makeWorld(
      toFunctions(() => {
        started.open();
        return new Promise(() => {});
      }),
    );
    await stuck.start();
    const { messageId } = await sendStep(stuck, 's');
    await started.opened;

    /** @type {(string | null)[]} */
    const attempts = [];
    const other = await makeWorld(
      toFunctions(async (/** @type {Request} */ { headers }) => {
        attempts.push(headers.get('x-vqs-message-attempt'));
        return ok();
      }),
    );
    await other.start();
    // What nothing can settle any more is garbage.
    gc();
    // Longer than a lease that nobody renews, and the search for such.
    await until(async () => {
      const { rows } = await database.pool.query(
        `SELECT FROM ${database.queueSchema}.job
         WHERE data ->> 'messageId' = $1 AND started_on < now() - interval '15 seconds'`,
        [messageId],
      );
      return rows.length > 0;
    });
    assert.deepEqual(attempts, []);

    await stuck.close();
    await until(() => isGone(database, messageId));
    assert.deepEqual(attempts, ['1']);
    const { queue } = await other.health();
    assert.equal(/** @type {any} */ (queue).deliveries.leasesSwept, 0, 'it was handed back');
  });
});

describe('an entrypoint', () => {
  test('is a function, or the module of a route', async (t) => {
    /** @type {string[]} */
    const called = [];
    /** @param {string} name */
    const named = (name) =>
      withProbes(async () => {
        called.push(name);
        return ok();
      });
    for (const options of [
      { stepEntrypoint: named('step'), workflowEntrypoint: named('flow') },
      { stepEntrypoint: { POST: named('step') }, workflowEntrypoint: { POST: named('flow') } },
      {
        stepEntrypoint: { __wkf_entrypoint: named('step'), POST: named('other') },
        workflowEntrypoint: { __wkf_entrypoint: named('flow'), GET: named('other') },
      },
      { workflowEntrypoint: named('flow') },
      { stepEntrypoint: undefined, workflowEntrypoint: { POST: named('flow') } },
    ]) {
      const queueFactory = () => createPgBossFunctionProxyQueue(/** @type {any} */ (options));
      const world = await place(t, database)({ queueFactory });
      await world.start();
      const flow = await world.queue('__wkf_workflow_w', { runId: 'wrun_1' });
      await until(() => isGone(database, flow.messageId));
      const step = await sendStep(world, 's');
      await until(() => isGone(database, step.messageId));
      const expected = options.stepEntrypoint ? ['flow', 'step'] : ['flow', 'flow'];
      assert.deepEqual(called.splice(0), expected);
      await world.close();
    }
  });

  test('that is the wrong one of the two says so, again and again', async (t) => {
    /** @type {any[]} */
    const lines = [];
    const { flow } = routes({});
    const log = (/** @type {any} */ line) => lines.push(line);
    const world = await place(t, database)({ log, ...toFunctions(undefined, flow) });
    await world.start();
    await sendStep(world, 's');
    const failure = await until(() => lines.find(({ level }) => level === 'warn'));
    assert.match(failure.error, /400.*Unhandled queue __wkf_step_s.*__wkf_workflow_/);
  });

  test('that is none is refused at once, with the name of the export that is one', () => {
    for (const wrong of [undefined, null, 'route', 1, {}, { GET: ok }, { POST: 'x' }]) {
      const message = /const \{ POST: workflowEntrypoint \} = await import\('.*\/flow\/route'\)/;
      assert.throws(
        () => createPgBossFunctionProxyQueue(/** @type {any} */ ({ workflowEntrypoint: wrong })),
        { name: 'WorkflowWorldError', status: 400, message },
        JSON.stringify(wrong),
      );
      if (wrong === undefined) continue;
      const options = { workflowEntrypoint: ok, stepEntrypoint: wrong };
      assert.throws(() => createPgBossFunctionProxyQueue(/** @type {any} */ (options)), {
        name: 'WorkflowWorldError',
        status: 400,
        message: /const \{ POST: stepEntrypoint \} = await import\('.*\/step\/route'\)/,
      });
    }
    for (const nothing of [undefined, null]) {
      assert.throws(() => createPgBossFunctionProxyQueue(/** @type {any} */ (nothing)), {
        name: 'WorkflowWorldError',
        message: /workflowEntrypoint/,
      });
    }
  });
});

test('two Worlds of one process have each their own functions and tokens', async (t) => {
  /** @type {string[]} */
  const calls = [];
  /** @param {string} name @returns {Answer} */
  const noting = (name) => async (request) => {
    const { stepId } = await request.json();
    calls.push(`${name} ${request.headers.get('x-workflow-secret')} ${stepId}`);
    return ok();
  };
  const one = await place(t, database)({ securityToken: 'token-1', ...toFunctions(noting('one')) });
  const two = await place(t, database)({ securityToken: 'token-2', ...toFunctions(noting('two')) });
  await Promise.all([one.start(), two.start()]);
  const sent = await Promise.all([sendStep(one, 'a'), sendStep(two, 'b')]);
  for (const { messageId } of sent) await until(() => isGone(database, messageId));
  assert.deepEqual(calls.sort(), ['one token-1 a', 'two token-2 b']);
});

describe('a process', () => {
  /** @param {string} entrypoint source of the function @param {string} [options] source of more options */
  const worldOf = (entrypoint, options = '') => `
    import { createPgBossFunctionProxyQueue, createWorld } from '@workflow/world-postgres';
    const headers = { 'x-workflow-world': 'postgres' };
    const ok = () => Response.json({ ok: true }, { headers });
    const answer = ${entrypoint};
    const entrypoint = (request) => (request.headers.has('x-workflow-probe') ? ok() : answer(request));
    const world = createWorld({
      queueFactory: () => createPgBossFunctionProxyQueue({ workflowEntrypoint: entrypoint, ${options} }),
    });`;
  const push = `await world.queue('__wkf_step_s', { stepId: 's' }, { idempotencyKey: 's' });`;
  /** Of queues that no other test uses. @param {Test} t */
  async function ownEnv(t) {
    const { env } = await testDatabase(t, { url: database.url });
    return env;
  }

  test('is not kept alive by a World that was not started, nor by one that was closed', async (t) => {
    const env = await ownEnv(t);
    const answer = 'async () => ok()';
    for (const rest of ['', 'await world.start(); await world.close();']) {
      const { code, signal, errors } = await runProgram(`${worldOf(answer)} ${push} ${rest}`, {
        env,
      });
      assert.deepEqual([code, signal], [0, null], errors);
    }
  });

  test('that ends during a delivery hands its message to another', async (t) => {
    const own = await testDatabase(t, { url: database.url });
    const program = `${worldOf('() => process.exit(7)')} await world.start(); ${push}`;
    const { code, errors } = await runProgram(program, { env: own.env });
    assert.equal(code, 7, errors);
    /** @type {(string | null)[]} */
    const attempts = [];
    const world = await place(
      t,
      own,
    )({
      jobPrefix: 'workflow_',
      ...toFunctions(async (/** @type {Request} */ { headers }) => {
        attempts.push(headers.get('x-vqs-message-attempt'));
        return ok();
      }),
    });
    await world.start();
    await until(() => attempts.length);
    const { queue } = await world.health();
    assert.equal(/** @type {any} */ (queue).deliveries.leasesSwept, 0, 'it was handed back');
    assert.deepEqual(attempts, ['1']);
  });

  test('is warned at the start in development, and only then', async (t) => {
    const env = await ownEnv(t);
    const found = await printed(
      `${worldOf('async () => ok()')}
      const warnings = {};
      for (const environment of ['development', 'production', 'test', '']) {
        for (const through of ['console', 'log of the World', 'log of the driver']) {
          const lines = [];
          const log = ({ level, message }) => lines.push(level + ' ' + message);
          console.warn = (line) => lines.push('console ' + line);
          process.env.NODE_ENV = environment;
          const world = createWorld({
            ...(through === 'log of the World' && { log }),
            queueFactory: () => createPgBossFunctionProxyQueue({
              workflowEntrypoint: entrypoint,
              ...(through === 'log of the driver' && { log }),
            }),
          });
          await world.start();
          await world.close();
          warnings[environment + ' ' + through] = lines;
        }
      }
      console.log(JSON.stringify(warnings));`,
      { env },
    );
    const { 'development console': onConsole, 'development log of the World': ofWorld } = found;
    const { 'development log of the driver': ofDriver, ...others } = found;
    delete others['development console'];
    delete others['development log of the World'];
    for (const lines of [onConsole, ofWorld, ofDriver]) {
      assert.equal(lines.length, 1);
      assert.match(lines[0], /function proxy.*edits are not seen.*HTTP proxy/);
    }
    assert.match(onConsole[0], /^console \[@workflow\/world-postgres\]/);
    assert.match(ofWorld[0], /^warn /);
    for (const [where, lines] of Object.entries(others)) assert.deepEqual(lines, [], where);
  });

  test('whose World is started has the SDK send to its functions', async (t) => {
    const env = await ownEnv(t);
    const entrypoint = `async (request) => {
      const { runId } = await request.json();
      delivered({ runId, queueName: request.headers.get('x-vqs-queue-name') });
      return ok();
    }`;
    const found = await printed(
      `import { start } from 'workflow/api';
      let delivered;
      const delivery = new Promise((resolve) => { delivered = resolve; });
      ${worldOf(entrypoint)}
      await world.start();
      const { runId } = await start({ workflowId: 'workflow//./a//b' }, []);
      const found = await delivery;
      await world.close();
      console.log(JSON.stringify({ same: found.runId === runId, queueName: found.queueName }));`,
      { env },
    );
    assert.deepEqual(found, { same: true, queueName: '__wkf_workflow_workflow//./a//b' });
  });

  test('survives the end of a thread with deliveries in flight, which go to another', async (t) => {
    const own = await testDatabase(t, { url: database.url });
    const connections = await relay(t, database.url);
    const thread = new Worker(
      `import { parentPort } from 'node:worker_threads';
      ${worldOf(`() => { parentPort.postMessage('begun'); return new Promise(() => {}); }`)}
      await world.start();
      for (let i = 0; i < 5; i++) {
        await world.queue('__wkf_step_s', { stepId: 's' + i }, { idempotencyKey: 's' + i });
      }`,
      {
        eval: true,
        env: { ...process.env, ...own.env, WORKFLOW_POSTGRES_URL: connections.url },
        execArgv: ['--input-type=module'],
      },
    );
    let begun = 0;
    thread.on('message', () => void (begun += 1));
    await until(() => begun === 5);
    await thread.terminate();

    /** @type {string[]} */
    const executed = [];
    const world = await place(
      t,
      own,
    )({
      jobPrefix: 'workflow_',
      ...toFunctions(async (/** @type {Request} */ request) => {
        executed.push((await request.json()).stepId);
        return ok();
      }),
    });
    await world.start();
    await until(() => executed.length === 5);
    assert.deepEqual(executed.sort(), ['s0', 's1', 's2', 's3', 's4']);
    const { queue } = await world.health();
    assert.equal(/** @type {any} */ (queue).deliveries.leasesSwept, 0, 'they were handed back');
    // It neither claims nor listens on.
    await until(() => connections.open() === 0);
  });

  test('keeps nothing of 100,000 deliveries', async (t) => {
    const env = await ownEnv(t);
    const { heap, rss, deliveries, samples } = await printed(
      `${worldOf('async (request) => { await request.arrayBuffer(); return ok(); }', 'queueConcurrency: 100')}
      await world.start();
      const total = 100_000;
      const samples = [];
      let sent = 0;
      const pad = 'x'.repeat(1000);
      const sender = async (until) => {
        while (sent < until) {
          const key = 's' + sent++;
          await world.queue('__wkf_step_s', { stepId: key, pad }, { idempotencyKey: key });
        }
      };
      const delivered = async () => (await world.health()).queue.deliveries;
      for (let until = total / 10; until <= total; until += total / 10) {
        await Promise.all(Array.from({ length: 200 }, () => sender(until)));
        while ((await delivered()).completed < until) {
          await new Promise((resolve) => setTimeout(resolve, 10));
        }
        gc();
        const { heapUsed, rss, external } = process.memoryUsage();
        samples.push([heapUsed + external, rss].map((bytes) => Math.round(bytes / 1e5) / 10));
      }
      const { deliveries } = await delivered();
      await world.close();
      // After a warm-up of 20,000.
      const [, first, ...rest] = samples;
      const last = rest.at(-1);
      console.log(JSON.stringify({ heap: last[0] - first[0], rss: last[1] - first[1], deliveries, samples }));`,
      { env, flags: ['--expose-gc'], timeout: 300_000 },
    );
    const table = samples.map((/** @type {number[]} */ pair) => pair.join('/')).join(' ');
    t.diagnostic(`heap/RSS in MB after each 10,000: ${table}`);
    assert.equal(deliveries, 100_000);
    // 80,000 deliveries that each left 100 bytes would make 8 MB.
    assert.ok(heap < 4, `the heap grew by ${heap} MB: ${table}`);
    assert.ok(rss < 40, `the process grew by ${rss} MB: ${table}`);
  });
});

test('a driver may be given the settings that its World was not', async (t) => {
  const { step, flow } = routes({});
  const jobPrefix = `t${ulid()}_`;
  const { url, schema, queueSchema } = database;
  await setup({ connectionString: url, schema, queueSchema, jobPrefix });
  const world = createWorld({
    queueFactory: () =>
      createPgBossFunctionProxyQueue({
        stepEntrypoint: step,
        workflowEntrypoint: flow,
        connectionString: url,
        schema,
        queueSchema,
        jobPrefix,
        securityToken: TOKEN,
      }),
  });
  t.after(() => world.close());
  await world.start();
  const result = await world.events.create(null, /** @type {any} */ (runCreated()));
  const { rows } = await database.pool.query(
    `SELECT job_prefix FROM ${schema}.workflow_runs WHERE run_id = $1`,
    [result.run?.runId],
  );
  assert.deepEqual(rows, [{ job_prefix: jobPrefix }]);
  const handle = world.createQueueHandler('__wkf_step_', async () => {});
  const headers = {
    'x-workflow-secret': TOKEN,
    'x-vqs-queue-name': '__wkf_step_s',
    'x-vqs-message-id': 'msg_1',
    'x-vqs-message-attempt': '1',
  };
  const request = new Request('http://localhost', { method: 'POST', body: '{}', headers });
  assert.equal((await handle(request)).status, 200);
});
