import { testScenarios } from './scenarios.mjs';

await testScenarios(
  'pg-boss, over HTTP from a worker process to a web process that only enqueues',
  {
    async arrange(startApp) {
      const web = await startApp({ start: false });
      await startApp({ env: { TEST_PATTERN: 'worker', TEST_APP_URL: web.url } });
      return web;
    },
  },
);
