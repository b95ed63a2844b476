import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { fixture, repeated } from './fixture.mjs';
import { largest, seed, unreliableQStash } from './qstash.mjs';
import { testScenarios } from './scenarios.mjs';

const pattern = `QStash, which repeats, loses and reorders (TEST_SEED=${seed})`;
const { qstash, arrange } = await unreliableQStash({ after }, 1);

// Begins first, for it takes longer than all the rest.
const SLEEPS = 60;
const sleeper = await unreliableQStash({ after }, 2);
const { app, check, ended, ledger } = await fixture({ after }, { foreignQueue: true });
const instance = await sleeper.arrange(app);
const sleeping = await instance.call('start', 'naps', [SLEEPS, 1000]);

await testScenarios(pattern, { arrange, foreignQueue: true, largest });

test('and has really done so', () => {
  const repetitions = qstash.deliveries.filter(({ retried }) => retried > 0);
  const ids = qstash.deliveries.map(({ messageId }) => messageId);
  assert.ok(repetitions.length > 10, `${repetitions.length} of ${ids.length}`);
  assert.ok(new Set(ids).size < ids.length - repetitions.length);
});

test(`a loop of ${SLEEPS} sleeps ends, over two instances`, async (t) => {
  assert.deepEqual(await ended([sleeping]), ['completed']);
  assert.equal(await instance.call('result', sleeping), (SLEEPS * (SLEEPS + 1)) / 2);
  await check();
  const { deliveries } = sleeper.qstash;
  const messages = new Set(deliveries.map(({ messageId }) => messageId));
  // A start; and each time a wake, a step, a wake by the step, and what duplicates of them cause.
  assert.ok(messages.size < 6 * SLEEPS, `${messages.size} messages`);
  t.diagnostic(`${messages.size} messages, ${deliveries.length} deliveries`);
  t.diagnostic(`${repeated(await ledger()).length} steps executed by both instances`);
});
