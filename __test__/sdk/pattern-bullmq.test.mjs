import { after, test } from 'node:test';
import { startRedis, withoutRedis } from '../../scripts/support/redis.mjs';
import { testScenarios } from './scenarios.mjs';

const pattern = 'BullMQ on Redis, over HTTP';
const skip = withoutRedis();
if (skip) {
  test(pattern, { skip });
} else {
  const redis = await startRedis();
  after(() => redis.stop());
  await testScenarios(pattern, {
    arrange: (startApp) => startApp({ env: { TEST_PATTERN: 'bullmq', TEST_REDIS_URL: redis.url } }),
    foreignQueue: true,
  });
}
