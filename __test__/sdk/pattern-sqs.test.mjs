import { testScenarios } from './scenarios.mjs';

const seed = process.env.TEST_SEED ?? String(Date.now() % 2 ** 31);

await testScenarios(
  `a queue like SQS that repeats and reorders, by functions (TEST_SEED=${seed})`,
  {
    arrange: (startApp) => startApp({ env: { TEST_PATTERN: 'sqs', TEST_SEED: seed } }),
    foreignQueue: true,
    // SQS takes messages of 1 MB, and base64 may be applied three times.
    largest: 393_216,
  },
);
