import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { fixture } from '../../__test__/sdk/fixture.mjs';
import { firstBegins, inTurns, scoped, startRuns, withServer } from './place.mjs';

const RUNS = 5;
const OUTAGE_MS = 10_000;
/** Each lane has a server of its own. */
const LANES = 4;

/** When a server takes connections. @param {string} url */
async function accepts(url) {
  for (;;) {
    const client = new pg.Client(url);
    try {
      await client.connect();
      return Date.now();
    } catch {
      await sleep(5);
    } finally {
      await client.end().catch(() => {});
    }
  }
}

/** @param {import('./place.mjs').Extent} extent @returns {Promise<import('./place.mjs').Figure[]>} */
export async function databaseBack({ repetitions }) {
  const lanes = Math.min(LANES, repetitions);
  const samples = await inTurns(lanes, lanes, (lane) =>
    withServer((server) =>
      scoped(async (scope) => {
        const place = await fixture(scope, { url: server.url });
        const app = await place.app();
        const samples = [];
        for (let n = lane; n < repetitions; n += lanes) {
          const runIds = await startRuns(app, RUNS, 'sequential', [200, 100]);
          await firstBegins(place, runIds, 0);
          await server.halt();
          await sleep(OUTAGE_MS);
          const [at] = await Promise.all([accepts(server.url), server.resume()]);
          const fresh = await app.call('start', 'stepwise', ['after the outage']);
          const [first] = await firstBegins(place, [fresh], at);
          const resumed = await firstBegins(place, runIds, at);
          samples.push({ fresh: first - at, resumed: Math.max(...resumed) - at });
          await Promise.all(runIds.map((runId) => app.call('cancel', runId)));
          await place.ended(runIds);
        }
        await place.check();
        return samples;
      }),
    ),
  );
  const what = `PostgreSQL away for ${OUTAGE_MS / 1000} s`;
  const [from, goal] = ['it accepts connections', { worst: 2000 }];
  return [
    {
      what,
      from,
      to: 'the step of a run that is started now begins',
      goal,
      samples: samples.flat().map(({ fresh }) => fresh),
    },
    {
      what,
      from,
      to: `each of ${RUNS} runs in flight has begun its next step`,
      goal,
      samples: samples.flat().map(({ resumed }) => resumed),
    },
  ];
}
