import { startQStash } from '../../scripts/support/qstash.mjs';

/** @typedef {import('../support/app.mjs').App} App */
/** @typedef {Awaited<ReturnType<typeof import('./fixture.mjs').fixture>>['app']} StartApp */

/** Under which QStash knows the app. */
const TARGET = 'https://app.example';
const LONGEST_RETRY_MS = 500;
/** Of what it is asked to publish, too, it refuses some, and says of some more not that it took them. */
const FAULTS = {
  duplicate: 0.2,
  failBefore: 0.05,
  failAfter: 0.05,
  reorder: 0.3,
  refuse: 0.03,
  lose: 0.03,
};

export const seed = Number(process.env.TEST_SEED ?? Date.now() % 2 ** 31);
/** QStash takes messages of 1 MB, and base64 may be applied twice. */
export const largest = 524_288;

/**
 * A QStash that repeats 20 % of its deliveries, loses 10 % and reorders them, and an app of instances that
 * take turns, none of them started: the SDK's routes are all that there is.
 *
 * @param {import('../../scripts/support/qstash.mjs').Test} t
 * @param {number} count of instances
 */
export async function unreliableQStash(t, count) {
  /** @type {App[]} */
  const instances = [];
  let turn = 0;
  const qstash = await startQStash(t, {
    faults: { seed, ...FAULTS },
    route: (url) => url.replace(TARGET, instances[turn++ % instances.length].url),
  });
  const hurry = setInterval(() => {
    // As somebody would who looks after it.
    for (const { status, ...message } of qstash.dead.splice(0)) {
      if (status !== 0) throw new Error(`answered ${status}: ${message.answer}`);
      qstash.waiting.add({ ...message, retried: 0, due: qstash.now() });
    }
    // The pauses between repetitions are up to 13 minutes.
    for (const message of qstash.waiting) {
      if (message.retried > 0) message.due = Math.min(message.due, qstash.now() + LONGEST_RETRY_MS);
    }
    qstash.advance(0);
  }, LONGEST_RETRY_MS);
  t.after(() => clearInterval(hurry));

  /** @param {StartApp} startApp */
  const startInstance = (startApp) =>
    startApp({
      env: { WORKFLOW_TARGET_WORLD: '@workflow/world-postgres/upstash', ...qstash.env(TARGET) },
      start: false,
    });

  return {
    qstash,
    /** The test may replace them. */
    instances,
    startInstance,
    /** @param {StartApp} startApp @returns {Promise<App>} one of the instances */
    async arrange(startApp) {
      const all = Array.from({ length: count }, () => startInstance(startApp));
      instances.push(...(await Promise.all(all)));
      return instances[0];
    },
  };
}
