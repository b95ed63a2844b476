import { call, messageOf } from './errors.js';

/** Who asks wants an answer soon. */
const PATIENCE_MS = 4_000;

/**
 * @typedef {import('../index.js').WorldHealth} WorldHealth
 * @typedef {{ core: import('./core.js').Core, driver: import('../index.js').QueueDriver }} Parts
 */

/**
 * The `health()` of a World: never throws, so that a probe always has something to answer.
 * @param {{ use: () => Parts, isStarted: () => boolean }} lifecycle
 */
export function createHealth({ use, isStarted }) {
  /** @returns {Promise<WorldHealth>} */
  return async function health() {
    const started = isStarted();
    /** @type {Parts} */
    let parts;
    try {
      parts = use();
    } catch (error) {
      const database = { reachable: false, error: messageOf(error) };
      return { healthy: false, started, database, notifications: 'idle' };
    }
    const { core, driver } = parts;
    const [database, queue] = await Promise.all([databaseHealth(core), queueHealth(driver)]);
    return {
      healthy:
        database.database.error === undefined &&
        database.error === undefined &&
        queue?.healthy !== false,
      started,
      ...database,
      ...(queue && { queue }),
    };
  };
}

/** @param {import('./core.js').Core} core */
async function databaseHealth(core) {
  const { notifications, problem, ...database } = JSON.parse(await call(core.health()));
  return { ...(problem && { error: problem }), database, notifications };
}

/**
 * A driver may ask the database too, or a broker that is away.
 * @param {import('../index.js').QueueDriver} driver
 * @returns {Promise<import('../index.js').QueueHealth | undefined>}
 */
async function queueHealth(driver) {
  /** @type {NodeJS.Timeout | undefined} */
  let timer;
  const late = new Promise((resolve) => {
    const error = `The queue driver did not answer within ${PATIENCE_MS / 1000} s`;
    timer = setTimeout(resolve, PATIENCE_MS, { healthy: false, error });
  });
  try {
    return await Promise.race([driver.health?.(), late]);
  } catch (error) {
    return { healthy: false, error: messageOf(error) };
  } finally {
    clearTimeout(timer);
  }
}
