import { after } from 'node:test';
import { largest, seed, unreliableQStash } from './qstash.mjs';
import { testScenarios } from './scenarios.mjs';

const { arrange } = await unreliableQStash({ after }, 2);
await testScenarios(
  `QStash, which repeats, loses and reorders, to two instances (TEST_SEED=${seed})`,
  {
    arrange,
    foreignQueue: true,
    largest,
  },
);
