import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';

/**
 * @typedef {object} Subject a World in a started app
 * @property {import('../__test__/support/app.mjs').App} app
 * @property {Awaited<ReturnType<typeof import('./meter.mjs').createMeter>>} meter
 */
/** @typedef {Record<string, number>} Figures */
/**
 * @typedef {object} Scenario
 * @property {string} name
 * @property {(subject: Subject) => Promise<{ figures: Figures, cost?: import('./meter.mjs').Cost }>} measure
 */
/** @typedef {{ name: string, args: unknown[], result: unknown }} Work a workflow of the fixture app */

/** @param {number} steps @returns {Work} */
const sequential = (steps) => ({
  name: 'sequential',
  args: [steps],
  result: (steps * (steps + 1)) / 2,
});

/** @param {number} width @returns {Work} */
const fanOut = (width) => ({
  name: 'fanOut',
  args: [width],
  result: ((width - 1) * width * (2 * width - 1)) / 6,
});

/** @param {number} chunks @returns {Work} */
const counting = (chunks) => ({ name: 'counting', args: [chunks], result: chunks });

/**
 * Starts runs at once and waits until all have ended, by a look at the table: the SDK's own way asks
 * the World once a second per run.
 *
 * @param {Subject} subject
 * @param {Work} work
 * @param {number} [count]
 * @returns {Promise<string[]>}
 */
async function execute({ app, meter }, { name, args }, count = 1) {
  const target = (await meter.endedRuns()) + count;
  const deadline = Date.now() + 300_000;
  const runIds = await Promise.all(
    Array.from({ length: count }, () => app.call('start', name, args)),
  );
  while ((await meter.endedRuns()) < target) {
    if (Date.now() > deadline) throw new Error(`${count} × ${name}: not all ended\n${app.logs()}`);
    await sleep(count > 1 ? 25 : 5);
  }
  return runIds;
}

/** @param {Subject} subject @param {Work} work @param {string[]} runIds */
async function verify({ app }, work, runIds) {
  for (const runId of runIds) assert.deepEqual(await app.call('result', runId), work.result);
}

/** Runs one after another; the seconds of one. @param {Subject} subject @param {Work} work @param {number} times */
async function oneByOne(subject, work, times) {
  let total = 0;
  const runIds = [];
  for (let n = 0; n < times; n++) {
    await sleep(300);
    const start = performance.now();
    runIds.push(...(await execute(subject, work)));
    total += performance.now() - start;
  }
  await verify(subject, work, runIds);
  return total / times / 1000;
}

/** @param {Subject} subject @param {number} chunks */
async function streamSeconds(subject, chunks) {
  const work = counting(chunks);
  const start = performance.now();
  const runId = await subject.app.call('start', work.name, work.args);
  const read = await subject.app.call('readStream', runId);
  const seconds = (performance.now() - start) / 1000;
  assert.deepEqual(read, [...Array(chunks).keys()]);
  await verify(subject, work, [runId]);
  return seconds;
}

/** So that code is compiled, connections are open and pages have been written once. @param {Subject} subject */
export async function warmUp(subject) {
  await verify(subject, sequential(10), await execute(subject, sequential(10), 30));
  await verify(subject, fanOut(50), await execute(subject, fanOut(50)));
  await streamSeconds(subject, 50);
}

/** @type {Scenario[]} */
export const scenarios = [
  {
    name: 'sequential',
    async measure(subject) {
      const steps = 50;
      const seconds = await oneByOne(subject, sequential(steps), 3);
      return { figures: { stepLatency: (seconds * 1000) / steps } };
    },
  },
  {
    name: 'load',
    async measure(subject) {
      const [steps, runs] = [10, 100];
      const end = await subject.meter.begin();
      const runIds = await execute(subject, sequential(steps), runs);
      const cost = await end();
      await verify(subject, sequential(steps), runIds);
      const total = steps * runs;
      return {
        figures: {
          stepsPerSecond: total / cost.seconds,
          nodeCpu: (cost.nodeCpu * 1000) / total,
          postgresCpu: (cost.postgresCpu * 1000) / total,
          statements: cost.statements / total,
          transactions: cost.transactions / total,
          wal: cost.walBytes / total,
        },
        cost,
      };
    },
  },
  {
    name: 'fan-out',
    async measure(subject) {
      return { figures: { fanOut: (await oneByOne(subject, fanOut(100), 3)) * 1000 } };
    },
  },
  {
    name: 'stream',
    async measure(subject) {
      const chunks = 1000;
      return { figures: { chunksPerSecond: chunks / (await streamSeconds(subject, chunks)) } };
    },
  },
  {
    name: 'idle',
    async measure(subject) {
      await sleep(1000);
      const end = await subject.meter.begin();
      await sleep(10_000);
      const cost = await end();
      return {
        figures: {
          idleStatements: cost.statements / cost.seconds,
          idleCpu: ((cost.nodeCpu + cost.postgresCpu) * 1000) / cost.seconds,
          connections: await subject.meter.connections(),
        },
        cost,
      };
    },
  },
];
