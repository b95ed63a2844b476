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

/** @param {import('./place.mjs').Extent} extent @returns {Promise<import('./place.mjs').Figure[]>} */
export async function killed(extent) {
  const samples = await withServer(({ url }) =>
    repeatedly(
      extent,
      async (place) => {
        const victim = await place.app();
        const runIds = await startRuns(victim, RUNS, 'sequential', [1, ENDLESS_MS]);
        const survivor = await place.app();
        const held = await heldBy(place, runIds, victim);
        await sleep(Math.random() * HEARTBEAT_MS);
        const at = Date.now();
        await victim.kill('SIGKILL');
        return Math.max(...(await firstBegins(place, held, at, survivor))) - at;
      },
      url,
    ),
  );
  return [
    {
      what: 'Worker killed',
      from: 'kill -9',
      to: 'the last of its steps begins in another process',
      goal: { median: 10_000, worst: 15_000 },
      samples,
    },
  ];
}
