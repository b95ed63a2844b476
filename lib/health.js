import { call } from './errors.js';

/**
 * @typedef {import('../index.js').WorldHealth} WorldHealth
 * @typedef {{ core: import('../native/index.cjs').Core, driver: import('../index.js').QueueDriver }} Parts
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
      return { healthy: false, started, database: unreachable(error), notifications: 'idle' };
    }
    const { core, driver } = parts;
    const [database, queue] = await Promise.all([databaseHealth(core), queueHealth(driver)]);
    return {
      healthy: database.database.reachable && queue?.healthy !== false,
      started,
      ...database,
      ...(queue && { queue }),
    };
  };
}

/** @param {import('../native/index.cjs').Core} core */
async function databaseHealth(core) {
  try {
    const { roundTripMs, notifications } = JSON.parse(await call(core.health()));
    return { database: { reachable: true, roundTripMs }, notifications };
  } catch (error) {
    return { database: unreachable(error), notifications: /** @type {const} */ ('idle') };
  }
}

/**
 * @param {import('../index.js').QueueDriver} driver
 * @returns {Promise<import('../index.js').QueueHealth | undefined>}
 */
async function queueHealth(driver) {
  try {
    return await driver.health?.();
  } catch (error) {
    return { healthy: false, error: messageOf(error) };
  }
}

/** @param {unknown} error */
function unreachable(error) {
  return { reachable: false, error: messageOf(error) };
}

/** @param {unknown} error */
function messageOf(error) {
  return error instanceof Error ? error.message : String(error);
}
