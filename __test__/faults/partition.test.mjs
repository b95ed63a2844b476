import assert from 'node:assert/strict';
import { appendFile } from 'node:fs/promises';
import path from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { startPostgres } from '../../scripts/support/postgres.mjs';
import { eventually, fixture } from '../sdk/fixture.mjs';
import { namespace, whyNoNamespaces } from '../support/namespace.mjs';

delete process.env.WORKFLOW_POSTGRES_URL;
const skip = (await whyNoNamespaces()) ?? false;
/**
 * The kernel retransmits 12.6 s and 25.4 s after the cut, and new connections come about 1, 3 and 7 s after
 * their first try. A World gives up a connection after 10 s of silence. So after the shorter partition a
 * repetition overtakes what it repeats; after the longer one, leases and calls have been given up.
 */
const PARTITIONS_MS = [10_700, 14_000];

for (const ms of PARTITIONS_MS) {
  test(
    `requests that the kernel delivers late, after a partition of ${ms / 1000} s, are recognised`,
    {
      skip,
      timeout: 240_000,
    },
    (t) => partition(t, ms),
  );
}

/** @param {import('node:test').TestContext} t @param {number} ms */
async function partition(t, ms) {
  /** @type {(() => Promise<void>)[]} */
  const cleanups = [];
  t.after(async () => {
    for (const cleanup of cleanups) await cleanup();
  });
  const scope = { after: (/** @type {() => Promise<void>} */ it) => void cleanups.push(it) };

  const server = await startPostgres({ settings: { listen_addresses: '*' } });
  const port = /** @type {number} */ (server.port);
  const place = await fixture(scope, { url: server.url });
  const network = await namespace(scope);
  scope.after(() => server.stop());
  const { pool } = place.database;
  await appendFile(
    path.join(/** @type {string} */ (server.dataDir), 'pg_hba.conf'),
    `host all all ${network.inside}/32 scram-sha-256\n`,
  );
  await pool.query('SELECT pg_reload_conf()');

  const url = new URL(server.url);
  url.hostname = network.outside;
  const env = { TEST_PATTERN: 'function' };
  const cutOff = await place.app({
    env: { ...env, WORKFLOW_POSTGRES_URL: url.href, WORKFLOW_POSTGRES_POOL_SIZE: '10' },
    network,
  });
  /** @type {string[]} Each chunk is the moment of its writing, so that no two are equal. */
  const writers = await Promise.all(
    Array.from({ length: 8 }, () => cutOff.call('start', 'stamped', [400, 15])),
  );
  const tokens = Array.from({ length: 8 }, (_, n) => `partition-${n}`);
  /** @type {string[]} */
  const readers = await Promise.all(
    tokens.map((token) => cutOff.call('start', 'collect', [token])),
  );
  await eventually(async () => {
    const hooks = await Promise.all(readers.map((runId) => cutOff.call('hooks', runId)));
    const events = await Promise.all(writers.map((runId) => cutOff.call('events', runId)));
    return (
      hooks.every(({ length }) => length > 0) &&
      events.every((all) =>
        all.some((/** @type {any} */ { eventType }) => eventType === 'step_started'),
      )
    );
  });

  let over = false;
  const sending = tokens.map(async (token) => {
    for (let value = 1; !over; value++) {
      await cutOff.call('resumeHook', token, { value }).catch(() => {});
    }
  });
  await sleep(500);
  await network.cut(port);
  const neighbour = await place.app({ env });
  await sleep(ms);
  await network.heal(port);
  const late = await network.unconfirmed(port);
  assert.ok(late > 0, 'no request was under way when the network was cut');
  over = true;
  await Promise.all(sending);
  await eventually(async () => (await network.unconfirmed(port)) === 0);

  await Promise.all(
    tokens.map((token) => neighbour.call('resumeHook', token, { value: 0, last: true })),
  );
  const runIds = [...writers, ...readers];
  assert.deepEqual(new Set(await place.ended(runIds)), new Set(['completed']));
  for (const runId of writers) {
    /** @type {number[]} */
    const chunks = await neighbour.call('readStream', runId);
    const twice = chunks.filter((chunk, n) => chunks.indexOf(chunk) !== n);
    assert.deepEqual(twice, [], `chunks of ${runId} that are there twice`);
  }
  for (const runId of readers) {
    /** @type {number[]} */
    const values = await neighbour.call('result', runId);
    assert.deepEqual(values, [...new Set(values)], `payloads of ${runId}`);
  }
  await place.check();
}
