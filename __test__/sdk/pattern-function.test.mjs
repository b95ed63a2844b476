import { testScenarios } from './scenarios.mjs';

await testScenarios('pg-boss, by functions of the same process', {
  arrange: (startApp) => startApp({ env: { TEST_PATTERN: 'function' } }),
});
