// In the place of the compiled steps: what a World's queue delivers is counted, and nothing else.
const handler = import('../inside.mjs').then(({ createCountingHandler }) =>
  createCountingHandler(),
);

exports.POST = async (/** @type {Request} */ request) => (await handler)(request);
