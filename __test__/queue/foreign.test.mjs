// Queues of one's own: the proxies that execute for them, and what a World does about their waits,
// duplicates and errors.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { buffer } from 'node:stream/consumers';
import { after, describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { createFunctionProxy, createHttpProxy, createWorld } from '../../index.js';
import { freePort } from '../../scripts/support/postgres.mjs';
import { bytes } from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { gate, OF_WORLD, TOKEN, until } from './fixture.mjs';

/** @typedef {import('node:test').TestContext} Test */
/** @typedef {import('../../index.js').MessageData} MessageData */
/** @typedef {import('../../index.js').QueueDriver} QueueDriver */
/** @typedef {import('./fixture.mjs').Handler} Handler */
/** @typedef {(request: Request) => Promise<Response>} Route */

const NOT_BEFORE = 'x-workflow-not-before';
const ok = async () => Response.json({ ok: true }, { headers: OF_WORLD });
const idle = { start: async () => {} };

/** @param {Partial<MessageData>} [more] @returns {MessageData} */
const messageOf = (more) => ({
  id: 's',
  queueName: '__wkf_step_s',
  messageId: 'msg_1',
  attempt: 1,
  data: bytes('{"stepId":"s"}'),
  ...more,
});

/** An app that serves one route. @param {Test} t @param {Route} route @returns {Promise<number>} its port */
async function serve(t, route) {
  const server = createServer(async (incoming, outgoing) => {
    try {
      const response = await route(
        new Request(`http://localhost${incoming.url}`, {
          method: incoming.method,
          headers: /** @type {any} */ (incoming.headers),
          body: await buffer(incoming),
        }),
      );
      outgoing.writeHead(response.status, Object.fromEntries(response.headers));
      for await (const chunk of /** @type {any} */ (response.body ?? [])) outgoing.write(chunk);
      outgoing.end();
    } catch {
      outgoing.destroy();
    }
  }).listen(0, '127.0.0.1');
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  await once(server, 'listening');
  return /** @type {import('node:net').AddressInfo} */ (server.address()).port;
}

/** @type {Record<string, (t: Test, route: Route) => Promise<import('../../index.js').WkfProxy>>} */
const proxies = {
  createHttpProxy: async (t, route) =>
    createHttpProxy({ port: await serve(t, route), securityToken: TOKEN }),
  createFunctionProxy: async (_t, route) =>
    createFunctionProxy({ workflowEntrypoint: route, securityToken: TOKEN }),
};

describe('a proxy of one’s own', () => {
  for (const [name, createProxy] of Object.entries(proxies)) {
    test(`(${name}) delivers a message, from memory or from JSON`, async (t) => {
      /** @type {any[]} */
      const requests = [];
      const proxy = await createProxy(t, async (request) => {
        const { headers, method, url } = request;
        requests.push({
          method,
          path: new URL(url).pathname,
          headers: Object.fromEntries([...headers].filter(([name]) => /^x-|^trace/.test(name))),
          body: await request.text(),
        });
        return new Response('{"ok":true}', {
          status: 201,
          headers: { 'x-answer': 'ä', ...OF_WORLD },
        });
      });
      const message = messageOf({
        id: 'ä',
        queueName: '__wkf_step_ä',
        headers: { traceparent: '00-1', 'x-workflow-secret': 'mine', 'x-vqs-message-id': 'mine' },
        idempotencyKey: 'key',
        delaySeconds: 5,
      });
      const stored = {
        ...JSON.parse(JSON.stringify(message)),
        data: Buffer.from(message.data).toString('base64'),
      };
      for (const sent of [message, stored, { ...message, attempt: 7 }]) {
        const response = await proxy.proxyStep(sent);
        assert.deepEqual([response.status, response.ok], [201, true]);
        assert.equal(response.headers.get('x-answer'), 'ä');
        assert.deepEqual(await response.json(), { ok: true });
      }
      await proxy.proxyWorkflow(messageOf({ queueName: '__wkf_workflow_w' }));
      /** @param {Record<string, string>} more */
      const headers = (more) => ({
        'x-vqs-message-attempt': '1',
        'x-vqs-message-id': 'msg_1',
        'x-vqs-queue-name': '__wkf_step_%C3%A4',
        'x-workflow-foreign-queue': '1',
        'x-workflow-secret': TOKEN,
        ...more,
      });
      const step = {
        method: 'POST',
        path: '/.well-known/workflow/v1/step',
        headers: headers({ traceparent: '00-1' }),
        body: '{"stepId":"s"}',
      };
      assert.deepEqual(requests, [
        step,
        step,
        { ...step, headers: headers({ traceparent: '00-1', 'x-vqs-message-attempt': '7' }) },
        {
          ...step,
          path: '/.well-known/workflow/v1/flow',
          headers: headers({ 'x-vqs-queue-name': '__wkf_workflow_w' }),
        },
      ]);
    });

    test(`(${name}) resolves for a complete answer of 2xx and of a World, and rejects for everything else`, async (t) => {
      const broken = () =>
        new ReadableStream({
          async pull(controller) {
            controller.enqueue(new TextEncoder().encode('{"ok":'));
            await turn();
            controller.error(new Error('reset'));
          },
        });
      const answers = {
        200: () => new Response('{}', { headers: OF_WORLD }),
        202: () => new Response('{}', { status: 202, headers: OF_WORLD }),
        204: () => new Response(null, { status: 204, headers: OF_WORLD }),
        400: () => new Response('{"error":"no"}', { status: 400, headers: OF_WORLD }),
        500: () => new Response('"lost"', { status: 500, headers: OF_WORLD }),
        503: () => Response.json({ timeoutSeconds: 1 }, { status: 503, headers: OF_WORLD }),
        // Of an app whose World does not send waits anew: nobody else would.
        '200 with a wait': () => Response.json({ timeoutSeconds: 1 }, { headers: OF_WORLD }),
        broken: () => new Response(broken(), { headers: OF_WORLD }),
        none: () => Promise.reject(new Error('crashed')),
      };
      /** Of an app with another token, of another app, and of whoever stands in between. */
      const foreign = {
        401: () => new Response('', { status: 401, headers: OF_WORLD }),
        302: () => Response.redirect('http://localhost/login', 302),
        404: () => new Response('not found', { status: 404 }),
        502: () => new Response('busy', { status: 502 }),
        'no mark': () => Response.json({ ok: true }),
        'nothing at all': () => new Response(''),
        'a login page': () => new Response('<html>Who are you?</html>'),
      };
      const proxy = await createProxy(t, async (request) => {
        const { answer } = await request.json();
        return /** @type {any} */ ({ ...answers, ...foreign })[answer]();
      });
      for (const answer of Object.keys({ ...answers, ...foreign })) {
        const data = bytes(JSON.stringify({ answer }));
        const delivery = proxy.proxyStep(messageOf({ data }));
        if (/^2..$/.test(answer) && !(answer in foreign)) {
          assert.equal((await delivery).status, Number(answer));
          continue;
        }
        await assert.rejects(delivery, (/** @type {any} */ error) => {
          const { name, status, code, message, response } = error;
          const taken = answer in answers ? 'DELIVERY_FAILED' : 'NOT_TAKEN';
          const expected = ['WorkflowWorldError', 503, taken];
          assert.deepEqual([name, status, code], expected, answer);
          assert.match(message, /must be repeated/);
          if (Number(answer)) {
            assert.equal(response.status, Number(answer));
            assert.match(message, new RegExp(answer));
          }
          if (answer === 'none') assert.ok(error.cause && !response);
          return true;
        });
      }
      const { response } = await proxy
        .proxyStep(messageOf({ data: bytes('{"answer":500}') }))
        .catch((error) => error);
      assert.equal(await response.json(), 'lost', 'the body can still be read');
    });

    test(`(${name}) refuses what is no message, and executes nothing`, async (t) => {
      let executions = 0;
      const proxy = await createProxy(t, () => {
        executions += 1;
        return ok();
      });
      /** @type {any[]} */
      const wrong = [
        undefined,
        null,
        'message',
        {},
        messageOf({ queueName: undefined }),
        messageOf({ queueName: 'step' }),
        messageOf({ messageId: undefined }),
        messageOf({ data: undefined }),
        messageOf({ data: /** @type {any} */ ({ stepId: 's' }) }),
        messageOf({ attempt: /** @type {any} */ ('1') }),
        messageOf({ attempt: 1.5 }),
        messageOf({ attempt: 2 ** 40 }),
        messageOf({ headers: /** @type {any} */ ('traceparent') }),
        messageOf({ headers: /** @type {any} */ ({ traceparent: 1 }) }),
      ];
      for (const message of wrong) {
        const refused = { name: 'WorkflowWorldError', status: 400 };
        await assert.rejects(proxy.proxyStep(message), refused, JSON.stringify(message));
      }
      assert.equal(executions, 0);
    });

    test(`(${name}) has a token of its own and no other`, async (t) => {
      /** @type {(string | null)[]} */
      const tokens = [];
      const route = async (/** @type {Request} */ { headers }) => {
        tokens.push(headers.get('x-workflow-secret'));
        return ok();
      };
      const port = await serve(t, route);
      /** @param {string} [securityToken] */
      const proxyWith = (securityToken) =>
        name === 'createHttpProxy'
          ? createHttpProxy({ port, securityToken })
          : createFunctionProxy({ workflowEntrypoint: route, securityToken });
      const [one, two] = [proxyWith('token-1'), proxyWith('token-2, token-1')];
      await one.proxyStep(messageOf());
      await two.proxyStep(messageOf());
      await one.proxyStep(messageOf());
      assert.deepEqual(tokens.splice(0), ['token-1', 'token-2', 'token-1']);

      const { WORKFLOW_POSTGRES_SECURITY_TOKEN, NODE_ENV } = process.env;
      t.after(() => restore({ WORKFLOW_POSTGRES_SECURITY_TOKEN, NODE_ENV }));
      restore({ WORKFLOW_POSTGRES_SECURITY_TOKEN: undefined, NODE_ENV: 'production' });
      const careless = proxyWith();
      for (const proxy of [careless, proxyWith('secret')]) {
        await assert.rejects(proxy.proxyStep(messageOf()), {
          name: 'WorkflowWorldError',
          code: 'CONFIGURATION',
          message: /WORKFLOW_POSTGRES_SECURITY_TOKEN/,
        });
      }
      await one.proxyStep(messageOf());
      process.env.WORKFLOW_POSTGRES_SECURITY_TOKEN = 'token-of-the-environment';
      await careless.proxyStep(messageOf());
      assert.deepEqual(tokens, ['token-1', 'token-of-the-environment']);
    });
  }

  test('tells that nobody answers, and repeats when told to', async (t) => {
    const port = await freePort();
    const proxy = createHttpProxy({ port, securityToken: TOKEN });
    await assert.rejects(proxy.proxyStep(messageOf()), (/** @type {any} */ error) => {
      assert.equal(error.code, 'DELIVERY_FAILED');
      assert.match(error.message, /refused/);
      return error.cause !== undefined && !('response' in error);
    });
    const server = createServer((_request, response) => {
      response.writeHead(200, OF_WORLD).end('{}');
    }).listen(port);
    t.after(() => server.close());
    await once(server, 'listening');
    assert.equal((await proxy.proxyStep(messageOf())).status, 200);
  });

  test('finds the app by the environment, at its first message', async (t) => {
    const { WORKFLOW_POSTGRES_APP_URL, WORKFLOW_POSTGRES_SECURITY_TOKEN } = process.env;
    t.after(() => restore({ WORKFLOW_POSTGRES_APP_URL, WORKFLOW_POSTGRES_SECURITY_TOKEN }));
    const proxy = createHttpProxy();
    const port = await serve(t, ok);
    process.env.WORKFLOW_POSTGRES_APP_URL = `http://127.0.0.1:${port}/`;
    process.env.WORKFLOW_POSTGRES_SECURITY_TOKEN = TOKEN;
    assert.equal((await proxy.proxyStep(messageOf())).status, 200);
    const nowhere = createHttpProxy({ baseUrl: 'localhost' });
    await assert.rejects(nowhere.proxyStep(messageOf()), { code: 'CONFIGURATION' });
  });

  test('needs entrypoints', () => {
    for (const wrong of [undefined, null, {}, { workflowEntrypoint: 'x' }]) {
      assert.throws(() => createFunctionProxy(/** @type {any} */ (wrong)), {
        name: 'WorkflowWorldError',
        status: 400,
        message: /POST/,
      });
    }
  });
});

/** @param {Record<string, string | undefined>} variables */
function restore(variables) {
  for (const [name, value] of Object.entries(variables)) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
}

/**
 * A World whose driver only notes what is pushed, and the proxy that executes its messages.
 *
 * @param {{ step?: Handler, flow?: Handler, driver?: Partial<QueueDriver> }} parts
 */
function worldOf({ step, flow, driver }) {
  /** @type {MessageData[]} */
  const pushed = [];
  const push = async (/** @type {MessageData} */ message) => void pushed.push(message);
  const world = createWorld({
    securityToken: TOKEN,
    queueFactory: () => ({ pushStep: push, pushFlow: push, ...idle, ...driver }),
  });
  const nothing = async () => {};
  const proxy = createFunctionProxy({
    securityToken: TOKEN,
    stepEntrypoint: world.createQueueHandler('__wkf_step_', step ?? nothing),
    workflowEntrypoint: world.createQueueHandler('__wkf_workflow_', flow ?? nothing),
  });
  return { world, proxy, pushed };
}

/** @param {string} runId @param {Partial<MessageData>} [more] */
const flowMessage = (runId, more) =>
  messageOf({
    id: 'w',
    queueName: '__wkf_workflow_w',
    data: bytes(JSON.stringify({ runId })),
    ...more,
  });

describe('a wait', () => {
  /** A clock that stands still unless it is told to tick. @param {Test} t */
  function clock(t) {
    t.mock.timers.enable({ apis: ['Date', 'setTimeout'], now: 1_800_000_000_000 });
    return {
      /** @param {number} ms */
      async tick(ms) {
        await turns();
        t.mock.timers.tick(ms);
        await turns();
      },
    };
  }
  const turns = async () => {
    for (let i = 0; i < 20; i++) await turn();
  };

  test('becomes one delayed message, however often a run asks for it', async (t) => {
    clock(t);
    let timeoutSeconds = 60;
    const { proxy, pushed } = worldOf({ flow: () => ({ timeoutSeconds }) });
    const message = flowMessage('wrun_1', {
      idempotencyKey: 'wrun_1',
      headers: { traceparent: '00-1', 'x-other': '1' },
    });
    for (const sent of [message, { ...message, messageId: 'msg_2' }, message]) {
      const response = await proxy.proxyWorkflow(sent);
      assert.deepEqual(await response.json(), { ok: true });
    }
    timeoutSeconds = 90;
    await proxy.proxyWorkflow(message);
    assert.equal(pushed.length, 1, 'it will have been delivered by then');
    const [delayed] = pushed;
    assert.deepEqual(
      { ...delayed, data: Buffer.from(delayed.data).toString() },
      {
        id: 'w',
        queueName: '__wkf_workflow_w',
        messageId: delayed.messageId,
        attempt: 1,
        data: '{"runId":"wrun_1"}',
        headers: { traceparent: '00-1', [NOT_BEFORE]: String(Date.now() + 60_000) },
        delaySeconds: 60,
      },
    );
    assert.match(delayed.messageId, /^msg_[0-9A-HJKMNP-TV-Z]{26}$/);

    timeoutSeconds = 60;
    await proxy.proxyWorkflow(flowMessage('wrun_2'));
    assert.equal(pushed.length, 2, 'another run has waits of its own');
    timeoutSeconds = 5;
    await proxy.proxyWorkflow(message);
    assert.deepEqual([pushed.length, pushed[2].delaySeconds], [3, 5], 'an earlier one is its own');
  });

  test('that is over may be asked for again, and no time at all each time', async (t) => {
    const { tick } = clock(t);
    let timeoutSeconds = 10;
    const { proxy, pushed } = worldOf({ step: () => ({ timeoutSeconds }) });
    await proxy.proxyStep(messageOf());
    await tick(10_000);
    await proxy.proxyStep(messageOf());
    assert.equal(pushed.length, 2);
    await tick(10_000);
    timeoutSeconds = 0;
    for (let i = 0; i < 3; i++) await proxy.proxyStep(messageOf());
    assert.equal(pushed.length, 5);
    assert.ok(pushed.slice(2).every((message) => !message.delaySeconds && !message.headers));
  });

  test('is asked for anew by what it has woken, also where the clock was set back', async (t) => {
    const { tick } = clock(t);
    const { proxy, pushed } = worldOf({
      flow: () => {
        if (pushed.length === 1) t.mock.timers.setTime(Date.now() - 2);
        return { timeoutSeconds: 1 };
      },
    });
    await proxy.proxyWorkflow(flowMessage('wrun_1'));
    await tick(1_000);
    await proxy.proxyWorkflow(pushed[0]);
    assert.equal(pushed.length, 2, 'nothing else would wake the run');
  });

  test('that its queue cuts short is held for a second and sent again, nothing is executed', async (t) => {
    const { tick } = clock(t);
    let executions = 0;
    const { proxy, pushed } = worldOf({ flow: () => void (executions += 1) });
    const due = Date.now() + 60_000;
    const headers = { traceparent: '00-1', [NOT_BEFORE]: String(due) };
    let settled = false;
    const delivery = proxy.proxyWorkflow(flowMessage('wrun_1', { headers })).then((response) => {
      settled = true;
      return response;
    });
    await tick(999);
    assert.deepEqual([settled, pushed.length], [false, 0]);
    await tick(1);
    assert.equal((await delivery).status, 200);
    assert.deepEqual([executions, pushed.length], [0, 1]);
    assert.deepEqual([pushed[0].delaySeconds, pushed[0].headers], [59, headers]);

    await tick(58_500);
    const last = proxy.proxyWorkflow(pushed[0]);
    await tick(499);
    assert.equal(executions, 0);
    await tick(2);
    await last;
    assert.deepEqual([executions, pushed.length], [1, 1]);
  });

  test('that cannot be pushed fails its delivery, so that it comes again', async () => {
    let away = true;
    /** @type {MessageData[]} */
    const pushed = [];
    const { proxy } = worldOf({
      flow: () => ({ timeoutSeconds: 60 }),
      driver: {
        pushFlow: async (message) => {
          if (away) throw new Error('the broker is away');
          pushed.push(message);
        },
      },
    });
    const refused = { code: 'DELIVERY_FAILED', message: /the broker is away/ };
    await assert.rejects(proxy.proxyWorkflow(flowMessage('wrun_1')), refused);
    away = false;
    await proxy.proxyWorkflow(flowMessage('wrun_1'));
    assert.equal(pushed.length, 1);
  });

  test('is honoured by a queue that knows no delays, which is not kept busy', async () => {
    /** @type {number[]} */
    const executions = [];
    let deliveries = 0;
    /** @param {MessageData} message */
    const deliverAtOnce = async (message) => {
      setImmediate(async () => {
        deliveries += 1;
        await proxy.proxyStep(message);
      });
    };
    const { world, proxy } = worldOf({
      step: () => {
        executions.push(Date.now());
        return executions.length === 1 ? { timeoutSeconds: 2.5 } : undefined;
      },
      driver: { pushStep: deliverAtOnce },
    });
    await world.queue('__wkf_step_s', /** @type {any} */ ({ stepId: 's' }));
    await until(() => executions.length === 2);
    const waited = executions[1] - executions[0];
    assert.ok(waited >= 2_500, `executed after ${waited} ms`);
    assert.ok(deliveries <= 5, `${deliveries} deliveries`);
  });

  test('goes to the driver of its own World', async () => {
    const worlds = [1, 2].map(() => worldOf({ flow: () => ({ timeoutSeconds: 60 }) }));
    await worlds[1].proxy.proxyWorkflow(flowMessage('wrun_1'));
    await worlds[1].proxy.proxyWorkflow(flowMessage('wrun_2'));
    await worlds[0].proxy.proxyWorkflow(flowMessage('wrun_1'));
    assert.deepEqual(
      worlds.map(({ pushed }) => pushed.length),
      [1, 2],
    );
  });
});

describe('simultaneous deliveries', () => {
  test('of a step are one execution, whose end is that of all', async () => {
    let { open, opened } = gate();
    let executions = 0;
    let fails = false;
    const { proxy, pushed } = worldOf({
      step: async () => {
        executions += 1;
        await opened;
        if (fails) throw new Error('lost');
        return { timeoutSeconds: 60 };
      },
    });
    const deliver = () =>
      Array.from({ length: 5 }, (_, i) => proxy.proxyStep(messageOf({ messageId: `msg_${i}` })));
    const first = deliver();
    const other = proxy.proxyStep(messageOf({ data: bytes('{"stepId":"another"}') }));
    await until(() => executions === 2);
    open();
    for (const response of await Promise.all([...first, other])) {
      assert.equal(response.status, 200);
    }
    assert.deepEqual([executions, pushed.length], [2, 2]);

    fails = true;
    ({ open, opened } = gate());
    const second = deliver();
    open();
    for (const { status } of await Promise.allSettled(second)) assert.equal(status, 'rejected');
    assert.equal(executions, 3, 'what has ended is executed anew');
    fails = false;
    await proxy.proxyStep(messageOf());
    assert.equal(executions, 4);
  });

  test('of a run are one replay more, after the one that may not have seen what they tell of', async () => {
    const { open, opened } = gate();
    /** @type {object[]} */
    const executed = [];
    let running = 0;
    const { proxy } = worldOf({
      flow: async (message) => {
        executed.push(message);
        running += 1;
        await opened;
        running -= 1;
        if (executed.length > 3) throw new Error('lost');
      },
    });
    const first = proxy.proxyWorkflow(flowMessage('wrun_1'));
    await until(() => executed.length === 1);
    const wakes = Array.from({ length: 5 }, () => proxy.proxyWorkflow(flowMessage('wrun_1')));
    // It carries more than a wake.
    const data = bytes('{"runId":"wrun_1","runInput":{"workflowName":"w"}}');
    const start = proxy.proxyWorkflow(flowMessage('wrun_1', { data }));
    await until(() => executed.length === 2);
    assert.equal(running, 2);
    open();
    await Promise.all([first, start, ...wakes]);
    assert.deepEqual(
      executed.map((message) => Object.keys(message)),
      [['runId'], ['runId', 'runInput'], ['runId']],
    );
    // What fails, fails for all that share it; and nothing is left of it.
    const failing = [1, 2, 3].map(() => proxy.proxyWorkflow(flowMessage('wrun_1')));
    for (const { status } of await Promise.allSettled(failing)) assert.equal(status, 'rejected');
    assert.equal(executed.length, 5);
  });
});

describe('a driver of one’s own', () => {
  test('that does not take a message is told to the sender, who may try again', async () => {
    for (const [thrown, push] of /** @type {[unknown, () => any][]} */ ([
      [new Error('away'), () => Promise.reject(new Error('away'))],
      [
        new Error('away'),
        () => {
          throw new Error('away');
        },
      ],
      ['away', () => Promise.reject('away')],
    ])) {
      const { world } = worldOf({ driver: { pushStep: push, pushFlow: push } });
      for (const queueName of /** @type {const} */ (['__wkf_step_s', '__wkf_workflow_w'])) {
        await assert.rejects(world.queue(queueName, { runId: 'r' }), (/** @type {any} */ error) => {
          const { name, status, code, cause, message } = error;
          assert.deepEqual([name, status, code], ['WorkflowWorldError', 503, 'QUEUE']);
          assert.deepEqual(cause, thrown);
          assert.match(message, /away/);
          return true;
        });
      }
    }
  });

  test('that is none is told when it is used', async () => {
    /** @type {[any, RegExp][]} */
    const wrong = [
      [() => undefined, /lacks pushStep, pushFlow, start/],
      [() => ({ pushStep: ok, pushFlow: ok }), /lacks start/],
      [() => ({ ...idle, pushStep: ok, pushFlow: 'push' }), /lacks pushFlow/],
      [async () => ({ ...idle, pushStep: ok, pushFlow: ok }), /promise/],
    ];
    for (const [queueFactory, message] of wrong) {
      const world = createWorld({ securityToken: TOKEN, queueFactory });
      const refused = { name: 'WorkflowWorldError', code: 'CONFIGURATION', message };
      await assert.rejects(world.queue('__wkf_step_s', { runId: 'r' }), refused);
      await assert.rejects(world.start(), refused);
      await world.close();
    }
    const failing = createWorld({ queueFactory: () => assert.fail('no such broker') });
    await assert.rejects(failing.queue('__wkf_step_s', { runId: 'r' }), /no such broker/);
  });

  test('is made once, started once by the World’s start and closed once by its close', async () => {
    const { url, schema, queueSchema } = await database;
    /** @type {string[]} */
    const calls = [];
    const noting = (/** @type {string} */ name) => async () => void calls.push(name);
    const options = { connectionString: url, schema, queueSchema, securityToken: TOKEN };
    const world = createWorld({
      ...options,
      queueFactory: () => {
        calls.push('made');
        return {
          pushStep: noting('step'),
          pushFlow: noting('flow'),
          start: noting('start'),
          close: noting('close'),
        };
      },
    });
    assert.deepEqual(calls, []);
    await world.queue('__wkf_step_s', { runId: 'r' });
    await Promise.all([world.start(), world.start()]);
    await world.queue('__wkf_workflow_w', { runId: 'r' });
    await Promise.all([world.close(), world.close()]);
    assert.deepEqual(calls, ['made', 'step', 'start', 'flow', 'close']);

    const bare = createWorld({
      ...options,
      queueFactory: () => ({ pushStep: ok, pushFlow: ok, start: noting('bare start') }),
    });
    await bare.start();
    await bare.close();
    assert.equal(calls.at(-1), 'bare start');
  });

  test('of which the start failed may be started again', async () => {
    const { url, schema, queueSchema } = await database;
    let starts = 0;
    const world = createWorld({
      connectionString: url,
      schema,
      queueSchema,
      securityToken: TOKEN,
      queueFactory: () => ({
        pushStep: ok,
        pushFlow: ok,
        start: async () => {
          starts += 1;
          if (starts === 1) throw new Error('the broker is away');
        },
      }),
    });
    await assert.rejects(world.start(), /the broker is away/);
    await world.start();
    assert.equal(starts, 2);
    await world.close();
  });
});

// Of those tests that start a World; all others need none.
const database = testDatabase({ after });
