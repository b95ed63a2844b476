import assert from 'node:assert/strict';
import test, { after } from 'node:test';
import { createQStashQueue } from '../../index.js';
import { startQStash } from '../../scripts/support/qstash.mjs';
import { queueOptions } from '../qstash/fixture.mjs';
import { bytes, ulid } from '../storage/fixture.mjs';
import { changed, changes } from './creatures.mjs';
import { attempt, forAll } from './hostility.mjs';

/** @type {import('../../scripts/support/qstash.mjs').ApiRequest[]} */
const requests = [];
const qstash = await startQStash(
  { after },
  {
    intercept(request) {
      requests.push(request);
      return { status: 201, body: { messageId: 'msg_of_qstash' } };
    },
  },
);
const driver = createQStashQueue(queueOptions(qstash));

const message = () => ({
  id: 'a//./b',
  queueName: '__wkf_step_a//./b',
  messageId: `msg_${ulid()}`,
  idempotencyKey: 'step_1',
  attempt: 2,
  data: bytes('{"stepId":"step_1"}'),
  headers: { traceparent: '00-1' },
  delaySeconds: 1.5,
});

for (const method of /** @type {const} */ (['pushStep', 'pushFlow'])) {
  test(`${method} publishes a message as it is, or not at all`, async () => {
    requests.length = 0;
    await driver[method](message());
    assert.equal(requests.length, 1);
    await forAll(60, changes, async (hostile) => {
      requests.length = 0;
      const [given] = /** @type {any[]} */ (changed([message()], hostile));
      const outcome = await attempt(() => driver[method](given));
      if ('refusal' in outcome) {
        assert.deepEqual(requests, [], 'published, and refused');
        return;
      }
      const sent = typeof given.data === 'string' ? Buffer.from(given.data, 'base64') : given.data;
      const published = JSON.parse(requests[0].body.toString());
      assert.deepEqual(published.message, JSON.parse(Buffer.from(sent).toString()));
      assert.deepEqual(
        [published.queueName, published.messageId, published.attempt],
        [given.queueName, given.messageId, given.attempt || 1],
      );
    });
  });
}
