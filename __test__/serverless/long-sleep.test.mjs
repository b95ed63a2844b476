// Time is the stand-in's, so the SDK runs in this process.
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { startQStash } from '../../scripts/support/qstash.mjs';
import { serve, until } from '../qstash/fixture.mjs';
import { fixture } from '../sdk/fixture.mjs';
import { wiretap } from '../storage/wiretap.mjs';
import { buildApp, root, workflowIds } from '../support/app.mjs';

const DAY_MS = 86_400_000;
const TARGET = 'https://app.example';

const { check, database } = await fixture({ after }, { foreignQueue: true });
const tap = await wiretap({ after }, database.url);

/** @type {{ path: string, statements: number }[]} */
const deliveries = [];
const directory = await buildApp();
const app = await serve({ after }, async (request) => {
  const path = new URL(request.url).pathname;
  const { POST } = await import(`${directory}/${path.endsWith('/flow') ? 'flow' : 'step'}.cjs`);
  const before = tap.count();
  const response = await POST(request);
  deliveries.push({ path, statements: tap.count() - before });
  return response;
});
const qstash = await startQStash(
  { after },
  { impatient: true, route: (url) => url.replace(TARGET, app) },
);

test('a sleep of 30 days costs a delivery a week, and none of them a replay', async (t) => {
  process.chdir(root);
  Object.assign(process.env, database.env, qstash.env(TARGET), {
    WORKFLOW_TARGET_WORLD: '@workflow/world-postgres/upstash',
    WORKFLOW_POSTGRES_URL: tap.url,
  });
  const { start } = await import('workflow/api');
  const { getWorld } = await import('workflow/runtime');
  t.after(async () => getWorld().close?.());
  const { nap } = await workflowIds();
  t.mock.method(Date, 'now', qstash.now);

  const begin = qstash.now();
  const { runId } = await start({ workflowId: nap }, [30 * DAY_MS]);
  await until(async () => {
    // Not the World, whose statements are counted.
    const { rows } = await database.pool.query(
      `SELECT status FROM ${database.schema}.workflow_runs`,
    );
    return qstash.isIdle() && rows[0].status === 'completed';
  });

  const slept = qstash.now() - begin;
  assert.ok(slept >= 30 * DAY_MS && slept < 31 * DAY_MS, `${slept / DAY_MS} days`);
  assert.deepEqual(
    deliveries.map(({ statements }) => (statements === 0 ? 'early' : 'replay')),
    ['replay', 'early', 'early', 'early', 'early', 'replay'],
  );
  assert.deepEqual(qstash.dead, []);
  await check();
});
