import { setTimeout as sleep } from 'node:timers/promises';
import {
  ENDLESS_MS,
  firstBegins,
  HEARTBEAT_MS,
  heldBy,
  repeatedly,
  startRuns,
  withServer,
} from './place.mjs';

const RUNS = 5;
/** Shorter than the pause between two looks at the queue that nobody asked for. */
const NAP_MS = 2000;
/** What `close()` gives to running deliveries. */
const DRAIN_MS = 10_000;

/** Ends the process by `process.exit()`, without a word to the World. */
const exitAtOnce = `--import=data:text/javascript,${encodeURIComponent(
  "process.once('SIGTERM', () => process.exit())",
)}`;

/**
 * @typedef {object} Leave
 * @property {unknown[]} args of the workflow `sequential`
 * @property {number} allowed milliseconds that the process may use before it hands over
 * @property {Record<string, string>} [env]
 */

/** @param {import('./place.mjs').Extent} extent @param {Leave} leave */
const leaving = (extent, { args, allowed, env }) =>
  withServer(({ url }) =>
    repeatedly(
      extent,
      async (place) => {
        const leaver = await place.app({ env });
        const runIds = await startRuns(leaver, RUNS, 'sequential', args);
        const staying = await place.app();
        const held = await heldBy(place, runIds, leaver);
        await sleep(Math.random() * HEARTBEAT_MS);
        const at = Date.now();
        const gone = leaver.kill('SIGTERM');
        const begins = await firstBegins(place, held, at, staying);
        await gone;
        return Math.max(...begins) - at - allowed;
      },
      url,
    ),
  );

/** Runs that sleep, and are looked after by the process that leaves. @param {import('./place.mjs').Extent} extent */
const leavingSleepers = (extent) =>
  withServer(({ url }) =>
    repeatedly(
      extent,
      async (place) => {
        const { database, ended } = place;
        const leaver = await place.app();
        const warmUp = await startRuns(leaver, 1, 'sequential', [1]);
        const staying = await place.app();
        await ended(warmUp);
        const runIds = await startRuns(leaver, RUNS, 'naps', [1, NAP_MS]);
        const due = await place.until(runIds, async () => {
          const { rows } = await database.pool.query(
            `SELECT start_after FROM ${database.queueSchema}.job WHERE state = 'created' AND start_after > now()`,
          );
          return rows.length === RUNS && Math.max(...rows.map((row) => row.start_after.getTime()));
        });
        const gone = leaver.kill('SIGTERM');
        const begins = await firstBegins(place, runIds, 0, staying);
        await gone;
        return Math.max(...begins) - Number(due);
      },
      url,
    ),
  );

/** @param {import('./place.mjs').Extent} extent @returns {Promise<import('./place.mjs').Figure[]>} */
export async function handedOver(extent) {
  const goal = { worst: 1000 };
  return [
    {
      what: 'SIGTERM, `close()`: runs of short steps',
      from: 'SIGTERM',
      to: 'each of its runs has begun its next step elsewhere (steps of 50 ms end where they run)',
      goal,
      samples: await leaving(extent, { args: [200, 50], allowed: 0 }),
    },
    {
      what: 'SIGTERM, `close()`: steps that outlast the drain',
      from: `the end of the ${DRAIN_MS / 1000} s`,
      to: 'the last of its steps begins elsewhere',
      goal,
      samples: await leaving(extent, { args: [1, ENDLESS_MS], allowed: DRAIN_MS }),
    },
    {
      what: 'SIGTERM, `close()`: runs that sleep',
      from: 'the end of a sleep after SIGTERM',
      to: `each of ${RUNS} runs has begun its next step elsewhere`,
      goal,
      samples: await leavingSleepers(extent),
    },
    {
      what: 'SIGTERM, `process.exit()` without `close()`',
      from: 'SIGTERM',
      to: 'the last of its steps begins elsewhere',
      goal,
      samples: await leaving(extent, {
        args: [1, ENDLESS_MS],
        allowed: 0,
        env: { NODE_OPTIONS: exitAtOnce },
      }),
    },
  ];
}
