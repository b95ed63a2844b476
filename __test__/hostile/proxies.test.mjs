import assert from 'node:assert/strict';
import test, { after, beforeEach } from 'node:test';
import { createFunctionProxy, createHttpProxy } from '../../index.js';
import { serve } from '../qstash/fixture.mjs';
import { OF_WORLD, TOKEN } from '../queue/fixture.mjs';
import { bytes } from '../storage/fixture.mjs';
import { changed, changes } from './creatures.mjs';
import { attempt, forAll } from './hostility.mjs';

/** @type {{ headers: Headers, body: Buffer }[]} */
let received = [];
beforeEach(() => {
  received = [];
});

/** @param {Request} request */
async function take(request) {
  received.push({ headers: request.headers, body: Buffer.from(await request.arrayBuffer()) });
  return Response.json({ ok: true }, { headers: OF_WORLD });
}

const proxies = {
  createHttpProxy: createHttpProxy({ baseUrl: await serve({ after }, take), securityToken: TOKEN }),
  createFunctionProxy: createFunctionProxy({ workflowEntrypoint: take, securityToken: TOKEN }),
};

const message = () => ({
  id: 'a//./b',
  idempotencyKey: 'step_1',
  queueName: '__wkf_step_a//./b',
  data: bytes('{"stepId":"step_1"}'),
  messageId: 'msg_1',
  attempt: 2,
  headers: { traceparent: '00-1', 'x-name': 'value' },
  delaySeconds: 1,
});

for (const [name, proxy] of Object.entries(proxies)) {
  for (const method of /** @type {const} */ (['proxyStep', 'proxyWorkflow'])) {
    test(`${method} of ${name} delivers a message as it is, or refuses it`, async () => {
      await proxy[method](message());
      assert.equal(received.length, 1);
      await forAll(60, changes, async (hostile) => {
        received = [];
        const [given] = /** @type {any[]} */ (changed([message()], hostile));
        const outcome = await attempt(() => proxy[method](given));
        if ('refusal' in outcome) {
          assert.deepEqual(received, [], 'delivered, and refused');
          return;
        }
        const [{ headers, body }] = received;
        const sent =
          typeof given.data === 'string' ? Buffer.from(given.data, 'base64') : given.data;
        assert.ok(body.equals(sent));
        assert.equal(decodeURIComponent(headers.get('x-vqs-queue-name') ?? ''), given.queueName);
        assert.equal(decodeURIComponent(headers.get('x-vqs-message-id') ?? ''), given.messageId);
        assert.equal(headers.get('x-vqs-message-attempt'), String(given.attempt || 1));
        assert.equal(headers.get('x-workflow-secret'), TOKEN);
      });
    });
  }
}
