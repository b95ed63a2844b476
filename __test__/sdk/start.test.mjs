import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fixture } from './fixture.mjs';

const driver = { TEST_PATTERN: 'sqs', TEST_SEED: '1' };
const unset = { WORKFLOW_TARGET_WORLD: undefined };

const environments = {
  'WORKFLOW_TARGET_WORLD naming the package': driver,
  'WORKFLOW_TARGET_WORLD unset and routes that are loaded later': {
    ...driver,
    ...unset,
    TEST_LATE_ROUTES: 'true',
  },
};

for (const [how, env] of Object.entries(environments)) {
  test(`start() in a route reaches the driver of the started World, ${how}`, async (t) => {
    const { app: startApp, check, database, ended } = await fixture(t, { foreignQueue: true });
    await database.pool.query(
      `ALTER TABLE ${database.queueSchema}.job ADD CONSTRAINT default_queue CHECK (false) NOT VALID`,
    );
    const app = await startApp({ env });
    const runIds = [
      await app.call('start', 'sequential', [3]),
      await app.call('start', 'naps', [1, 1000]),
      await app.call('start', 'retries', [1, 'not yet', 1000]),
    ];
    assert.deepEqual(await ended(runIds), ['completed', 'completed', 'completed'], app.logs());
    await check();
  });
}

test('a World that starts after the routes of another one says so', async (t) => {
  const { app: startApp } = await fixture(t);
  const app = await startApp({ env: { ...driver, ...unset } });
  assert.match(app.logs(), /WORKFLOW_TARGET_WORLD is not set/);
});
