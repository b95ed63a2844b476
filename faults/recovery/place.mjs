import { fixture } from '../../__test__/sdk/fixture.mjs';
import { startPostgres } from '../../scripts/support/postgres.mjs';

/** @typedef {import('../../__test__/support/app.mjs').App} App */
/** @typedef {Awaited<ReturnType<typeof fixture>>} Place */
/** @typedef {import('../../__test__/support/database.mjs').Test} Scope */
/** @typedef {{ repetitions: number, atOnce: number, outageSeconds: number }} Extent */
/**
 * @typedef {object} Figure
 * @property {string} what
 * @property {string} from what counts as the begin
 * @property {string} to and as the end
 * @property {{ median?: number, worst?: number }} goal milliseconds
 * @property {number[]} samples milliseconds
 */
/** @typedef {Omit<Figure, 'samples'>} Definition */

/** Between two signs of life of a worker: its end falls anywhere in between. */
export const HEARTBEAT_MS = 2000;
/** A step of this length ends in no measurement. */
export const ENDLESS_MS = 3_600_000;

/**
 * A test's `after`, outside of a test.
 *
 * @template T
 * @param {(scope: Scope) => Promise<T>} body
 */
export async function scoped(body) {
  /** @type {(() => Promise<void>)[]} */
  const cleanups = [];
  try {
    return await body({ after: (cleanup) => void cleanups.push(cleanup) });
  } finally {
    for (const cleanup of cleanups) await cleanup();
  }
}

/** A PostgreSQL of a measurement's own. @template T @param {(server: import('../../scripts/support/postgres.mjs').Postgres) => Promise<T>} body */
export async function withServer(body) {
  const server = await startPostgres({ settings: { max_connections: 1000 } });
  try {
    return await body(server);
  } finally {
    await server.stop();
  }
}

/**
 * @template T
 * @param {Extent} extent
 * @param {(place: Place, scope: Scope, n: number) => Promise<T>} body in schemas of its own
 * @param {string} url
 */
export async function repeatedly({ repetitions, atOnce }, body, url) {
  return inTurns(repetitions, atOnce, (n) =>
    scoped(async (scope) => body(await fixture(scope, { url }), scope, n)),
  );
}

/**
 * @template T
 * @param {number} count
 * @param {number} atOnce
 * @param {(n: number) => Promise<T>} body
 */
export async function inTurns(count, atOnce, body) {
  /** @type {T[]} */
  const results = [];
  let next = 0;
  const lane = async () => {
    while (next < count) {
      const n = next++;
      results[n] = await body(n);
    }
  };
  await Promise.all(Array.from({ length: Math.min(atOnce, count) }, lane));
  return results;
}

/** @param {App} app @param {number} count @param {string} name @param {unknown[]} args @returns {Promise<string[]>} */
export const startRuns = (app, count, name, args) =>
  Promise.all(Array.from({ length: count }, () => app.call('start', name, args)));

/**
 * When a step of each of these runs first began after `since`, and where; waits for it.
 *
 * @param {Pick<Place, 'ledger' | 'until'>} place
 * @param {string[]} runIds
 * @param {number} since
 * @param {App} [where] nowhere else counts
 */
export async function firstBegins({ ledger, until }, runIds, since, where) {
  return until(runIds, async () => {
    const begins = (await ledger()).filter(
      ({ phase, at, pid }) => phase === 'begin' && at >= since && (!where || pid === where.pid),
    );
    const first = runIds.map((runId) => begins.find((entry) => entry.runId === runId));
    return first.every((entry) => entry !== undefined) ? first.map((entry) => entry.at) : undefined;
  });
}

/**
 * Waits until all of these runs are at a step; those whose step is executed by `app`, of which there
 * must be some.
 *
 * @param {Place} place
 * @param {string[]} runIds
 * @param {App} app
 */
export async function heldBy(place, runIds, app) {
  await firstBegins(place, runIds, 0);
  const entries = await place.ledger();
  const held = runIds.filter(
    (runId) => entries.findLast((entry) => entry.runId === runId)?.pid === app.pid,
  );
  if (held.length === 0) throw new Error(`process ${app.pid} executes nothing`);
  return held;
}
