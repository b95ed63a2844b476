import { testScenarios } from './scenarios.mjs';

await testScenarios('pg-boss, over HTTP to the same process', {
  arrange: (startApp) => startApp(),
});
