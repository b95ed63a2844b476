import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Queue, UnrecoverableError, Worker } from 'bullmq';
import { createBullMQQueue } from '../../examples/queues/bullmq.mjs';
import { createHttpProxy } from '../../index.js';
import { freePort } from '../../scripts/support/postgres.mjs';
import { startRedis, withoutRedis } from '../../scripts/support/redis.mjs';
import { testQueueDriver } from '../../testing.js';
import { testDatabase } from '../support/database.mjs';

/** @typedef {import('../../testing.js').DriverTarget} DriverTarget */
/** @typedef {import('../../index.js').MessageData} MessageData */

const skip = withoutRedis();
const redis = skip ? undefined : await startRedis();
after(() => redis?.stop());
const { url: connectionString, schema } = await testDatabase({ after });

/** Expires several times within the suite's long delivery. */
const lockMs = 2000;
const onError = () => {};

/** @type {Record<string, (target: DriverTarget) => import('../../index.js').WkfProxy>} */
const proxies = {
  HTTP: ({ baseUrl, securityToken }) => createHttpProxy({ baseUrl, securityToken }),
  functions: ({ proxy }) => proxy,
};

describe('BullMQ', { skip }, () => {
  for (const [name, proxyOf] of Object.entries(proxies)) {
    testQueueDriver(
      `by ${name}`,
      (target) =>
        createBullMQQueue({
          url: redis?.url,
          name: target.queue,
          proxy: proxyOf(target),
          lockMs,
          pushLimitMs: 60_000,
          onError,
        }),
      {
        connectionString,
        schema,
        createUnreachableDriver: async ({ proxy }) =>
          createBullMQQueue({
            url: `redis://127.0.0.1:${await freePort()}`,
            proxy,
            pushLimitMs: 2000,
            onError,
          }),
      },
    );
  }

  describe('in trouble', { concurrency: true }, () => {
    /** @param {import('node:test').TestContext} t @param {{ name?: string, url?: string }} [options] */
    function place(t, { name = `bullmq-${randomUUID()}`, url = redis?.url } = {}) {
      /** @type {MessageData[]} */
      const delivered = [];
      const proxyStep = async (/** @type {MessageData} */ message) => {
        delivered.push(message);
        return new Response();
      };
      const proxy = { proxyStep, proxyWorkflow: proxyStep };
      const driver = createBullMQQueue({ url, name, proxy, lockMs, onError });
      t.after(() => driver.close?.());
      return { name, driver, delivered };
    }

    test('executes what killed its worker three times', async (t) => {
      const { name, driver, delivered } = place(t);
      await driver.pushStep(message());
      for (let i = 0; i < 3; i++) {
        const file = fileURLToPath(new URL('bullmq-worker.mjs', import.meta.url));
        const worker = fork(file, [/** @type {string} */ (redis?.url), name, `${lockMs}`]);
        t.after(() => worker.kill('SIGKILL'));
        await once(worker, 'message');
        worker.kill('SIGKILL');
        await once(worker, 'exit');
      }
      await driver.start();
      await until(() => delivered.length > 0);
      assert.equal(delivered[0].attempt, 1);
    });

    test('gives the key of a job that failed for good to the next one', async (t) => {
      const { name, driver, delivered } = place(t);
      const queue = new Queue(`${name}-steps`, { connection: { url: redis?.url } });
      t.after(() => queue.close());
      await driver.pushStep(message({ idempotencyKey: 'key', delaySeconds: 3600 }));
      // As an operator does who gives up a job by hand.
      const [job] = await queue.getDelayed();
      await job.promote();
      const operator = new Worker(
        `${name}-steps`,
        async () => {
          throw new UnrecoverableError('given up');
        },
        { connection: { url: redis?.url } },
      );
      await until(() => queue.getFailedCount());
      await operator.close();
      const again = message({ idempotencyKey: 'key' });
      await driver.pushStep(again);
      await driver.start();
      await until(() => delivered.length > 0);
      assert.equal(delivered[0].messageId, again.messageId);
    });

    test('works when Redis comes, and when it comes again', async (t) => {
      const port = await freePort();
      const { driver, delivered } = place(t, { url: `redis://127.0.0.1:${port}` });
      await driver.start();
      await assert.rejects(driver.pushStep(message()), /Redis/);
      /** @type {Awaited<ReturnType<typeof startRedis>> | undefined} */
      let server;
      t.after(() => server?.stop());
      for (let i = 0; i < 2; i++) {
        await server?.stop();
        server = await startRedis({ port });
        const sent = message();
        await until(() =>
          driver.pushStep(sent).then(
            () => true,
            () => false,
          ),
        );
        await until(() => delivered.some(({ messageId }) => messageId === sent.messageId));
      }
    });
  });
});

/** @param {Partial<MessageData>} [more] @returns {MessageData} */
function message(more) {
  return {
    id: 's',
    queueName: '__wkf_step_s',
    messageId: `msg_${randomUUID()}`,
    attempt: 1,
    data: Buffer.from('{}').toString('base64'),
    ...more,
  };
}

/** @param {() => unknown} condition */
async function until(condition) {
  for (const deadline = Date.now() + 60_000; !(await condition()); await sleep(20)) {
    assert.ok(Date.now() < deadline, `this did not come true: ${condition}`);
  }
}
