import { ENDLESS_MS, firstBegins, heldBy, repeatedly, startRuns, withServer } from './place.mjs';

const RUNS = 5;
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
        const at = Date.now();
        const gone = leaver.kill('SIGTERM');
        const begins = await firstBegins(place, held, at, staying);
        await gone;
        return Math.max(...begins) - at - allowed;
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
