import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { fixture, repeated } from '../../__test__/sdk/fixture.mjs';
import { freePort } from '../../scripts/support/postgres.mjs';
import { httpRelay } from '../http-relay.mjs';
import { firstBegins, inTurns, scoped, startRuns, withServer } from './place.mjs';

const RUNS = 5;
/** Shorter than the outage, and long enough for a slow machine to see that all sleep. */
const NAP_MS = 20_000;
/** Below those that systems give to whoever asks for any port: ours are free for minutes. */
const FIRST_PORT = 20_000;

/**
 * How a target is down: nobody listens, or a gateway in front of it says so.
 * @typedef {{ what: string, down: (target: import('../http-relay.mjs').HttpRelay) => void, up: (target: import('../http-relay.mjs').HttpRelay) => unknown }} Manner
 */
/** @type {Manner[]} */
const manners = [
  {
    what: 'connections are refused',
    down(target) {
      target.refuse();
      target.cut();
    },
    up: (target) => target.accept(),
  },
  {
    what: 'its gateway answers 503',
    down: (target) => target.behave(503),
    up: (target) => target.behave('pass'),
  },
];

/**
 * A worker that delivers to a target of its own.
 *
 * @param {import('./place.mjs').Scope} scope
 * @param {string} url
 * @param {number} n
 */
async function subject(scope, url, n) {
  const place = await fixture(scope, { url });
  let routes = '';
  const target = await httpRelay(scope, () => routes, { port: await freePort(FIRST_PORT + n) });
  const app = await place.app({ env: { TEST_PATTERN: 'worker', TEST_APP_URL: target.url } });
  routes = app.url;
  return { ...place, app, target };
}

/** @param {{ database: import('../../__test__/support/database.mjs').TestDatabase }} place */
async function jobs({ database: { pool, queueSchema } }) {
  const { rows } = await pool.query(
    `SELECT group_id AS run, name, state::text, retry_count, start_after, output FROM ${queueSchema}.job`,
  );
  return rows;
}

/**
 * @param {import('./place.mjs').Extent} extent
 * @param {() => void} onDown called when all targets are down: for long, nothing happens then
 * @returns {Promise<import('./place.mjs').Figure[]>}
 */
export async function targetBack({ repetitions, atOnce, outageSeconds }, onDown) {
  const rows = await withServer(({ url }) =>
    scoped(async (scope) => {
      const places = await inTurns(manners.length * repetitions, atOnce, async (n) => ({
        ...(await subject(scope, url, n)),
        manner: manners[n % manners.length],
      }));
      // All of them sleep when the target goes, and are due before it is back.
      const runs = await Promise.all(
        places.map(async (place) => {
          const { app, until, ledger, manner, target } = place;
          const runIds = await startRuns(app, RUNS, 'naps', [2, NAP_MS]);
          await until(runIds, async () => (await ledger()).length === 2 * RUNS);
          await until(runIds, async () => {
            const asleep = (await jobs(place)).filter(({ state }) => state === 'created');
            return asleep.length === RUNS;
          });
          manner.down(target);
          return runIds;
        }),
      );
      onDown();
      await sleep(outageSeconds * 500);
      const later = await Promise.all(
        places.map(({ app }) => startRuns(app, RUNS, 'stepwise', ['later'])),
      );
      await sleep(outageSeconds * 500);
      for (const [n, place] of places.entries()) {
        const waiting = await jobs(place);
        const report = `${place.manner.what}\n${JSON.stringify(waiting, null, 1)}\n${place.app.logs()}`;
        assert.deepEqual(
          waiting.map(({ run }) => run).sort(),
          [...runs[n], ...later[n]].sort(),
          `each run has a message: ${report}`,
        );
        assert.ok(
          waiting.every(({ state, retry_count }) => state === 'created' && retry_count === 0),
          `no attempt was spent: ${report}`,
        );
        assert.equal((await place.ledger()).length, 2 * RUNS, report);
      }
      return inTurns(places.length, 1, async (n) => {
        const { manner, target, app, check, ended, ledger } = places[n];
        const runIds = [...runs[n], ...later[n]];
        const at = Date.now();
        await manner.up(target);
        const begins = await firstBegins(places[n], runIds, at);
        const statuses = await ended(runIds);
        assert.deepEqual(new Set(statuses), new Set(['completed']), app.logs());
        assert.deepEqual(repeated(await ledger()), []);
        await check();
        return { manner, first: Math.min(...begins) - at, all: Math.max(...begins) - at };
      });
    }),
  );
  return manners.flatMap((manner) => {
    const own = rows.filter((row) => row.manner === manner);
    const definition = {
      what: `HTTP target down for ${outageSeconds / 60} min: ${manner.what}`,
      from: 'it is back',
      goal: { worst: 5000 },
    };
    return [
      { ...definition, to: 'the first step begins', samples: own.map(({ first }) => first) },
      {
        ...definition,
        to: `all of ${2 * RUNS} waiting runs have begun their step; nothing failed, no attempt spent`,
        samples: own.map(({ all }) => all),
      },
    ];
  });
}
