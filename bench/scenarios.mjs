import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { root } from '../__test__/support/app.mjs';
import { addRuns, lengthenLog } from './history.mjs';
import { median, percentile } from './statistics.mjs';

/**
 * @typedef {object} Subject a World in a started app
 * @property {import('./worlds.mjs').World} world
 * @property {import('../__test__/support/app.mjs').App} app
 * @property {Awaited<ReturnType<typeof import('./meter.mjs').createMeter>>} meter
 */
/** @typedef {Record<string, number>} Figures */
/**
 * @typedef {object} Scenario
 * @property {string} name
 * @property {boolean} [stores] asks for a World that stores something
 * @property {string} [directory] of the app, where it is not the fixture's
 * @property {(subject: Subject) => Promise<{ figures: Figures, cost?: import('./meter.mjs').Cost }>} measure
 */
/** @typedef {{ name: string, args: unknown[], result: unknown }} Work a workflow of the fixture app */
/** @typedef {{ runIds: string[], seconds: number }} Execution */

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

/** @param {number} steps @param {number} length @returns {Work} */
const produced = (steps, length) => ({
  name: 'produced',
  args: [steps, length],
  result: steps * length,
});

/** @param {number} count @param {number} ms @returns {Work} */
const rests = (count, ms) => ({ name: 'rests', args: [count, ms], result: count });

/** @param {number} chunks @param {number} interval @returns {Work} */
const stamped = (chunks, interval) => ({
  name: 'stamped',
  args: [chunks, interval],
  result: chunks,
});

/** @param {Subject} subject @param {Work} work @param {number} [count] @param {number} [interval] @returns {Promise<Execution>} */
const execute = ({ app }, { name, args }, count = 1, interval = 0) =>
  app.call('execute', name, args, count, interval);

/** @param {Subject} subject @param {Work} work @param {string[]} runIds */
async function verify({ app }, work, runIds) {
  for (const output of await app.call('outputs', runIds)) assert.deepEqual(output, work.result);
}

/** Runs on an idle system, one after another; the median in milliseconds. @param {Subject} subject @param {Work} work @param {number} times */
async function oneByOne(subject, work, times) {
  const all = [];
  const executed = [];
  for (let n = 0; n < times; n++) {
    await sleep(150);
    const { runIds, seconds } = await execute(subject, work);
    all.push(seconds * 1000);
    executed.push(...runIds);
  }
  await verify(subject, work, executed);
  return median(all);
}

/** Runs all at once, and what it cost. @param {Subject} subject @param {Work} work @param {number} count */
async function saturate(subject, work, count) {
  await sleep(300);
  const end = await subject.meter.begin();
  const { runIds, seconds } = await execute(subject, work, count);
  const cost = await end();
  await verify(subject, work, runIds);
  return { seconds, cost };
}

/** @param {Subject} subject @param {Work} work */
async function follow(subject, work) {
  await sleep(150);
  /** @type {{ runId: string, begin: number, chunks: { written: number, read: number }[] }} */
  const { runId, begin, chunks } = await subject.app.call('follow', work.name, work.args);
  await verify(subject, work, [runId]);
  assert.equal(chunks.length, work.result);
  assert.deepEqual(
    chunks,
    chunks.toSorted((a, b) => a.written - b.written),
  );
  const [first, last] = [chunks[0], chunks[chunks.length - 1]];
  return {
    toFirst: first.read - begin,
    perSecond: (chunks.length * 1000) / (last.read - first.written),
    latencies: chunks.map(({ written, read }) => read - written),
  };
}

/** So that code is compiled, connections are open and pages have been written once. @param {Subject} subject */
export async function warmUp(subject) {
  for (const [work, count] of /** @type {[Work, number][]} */ ([
    [sequential(10), 30],
    [fanOut(50), 2],
  ])) {
    await verify(subject, work, (await execute(subject, work, count)).runIds);
  }
  await follow(subject, stamped(50, 0));
}

/** @type {Scenario[]} */
export const scenarios = [
  {
    name: 'sequential',
    async measure(subject) {
      return {
        figures: {
          runLatency: await oneByOne(subject, sequential(1), 20),
          stepLatency10: (await oneByOne(subject, sequential(10), 5)) / 10,
          stepLatency50: (await oneByOne(subject, sequential(50), 3)) / 50,
          stepLatency200: (await oneByOne(subject, sequential(200), 1)) / 200,
        },
      };
    },
  },
  {
    name: 'load',
    async measure(subject) {
      const [steps, runs] = [10, 100];
      const total = steps * runs;
      await subject.meter.resetPeak();
      const { seconds, cost } = await saturate(subject, sequential(steps), runs);
      return {
        figures: {
          stepsPerSecond: total / seconds,
          nodeCpu: (cost.nodeCpu * 1000) / total,
          peakMemory: (await subject.meter.peak()) / 2 ** 20,
          ...(subject.world.tables && {
            postgresCpu: (cost.postgresCpu * 1000) / total,
            statements: cost.statements / total,
            transactions: cost.transactions / total,
            wal: cost.walBytes / total,
            connectionsUnderLoad: await subject.meter.connections(),
          }),
        },
        cost,
      };
    },
  },
  {
    name: 'short-runs',
    async measure(subject) {
      const runs = 200;
      const { seconds, cost } = await saturate(subject, sequential(1), runs);
      return { figures: { runsPerSecond: runs / seconds }, cost };
    },
  },
  {
    name: 'fan-out',
    async measure(subject) {
      const [width, runs] = [100, 5];
      const { seconds, cost } = await saturate(subject, fanOut(width), runs);
      return {
        figures: {
          fanOutStepsPerSecond: (width * runs) / seconds,
          fanOut: await oneByOne(subject, fanOut(width), 5),
        },
        cost,
      };
    },
  },
  {
    name: 'hook',
    async measure(subject) {
      const { app } = subject;
      const all = [];
      for (let n = 0; n < 20; n++) {
        const token = randomUUID();
        const runId = await app.call('start', 'approval', [token]);
        while (!(await app.call('hasHook', token))) await sleep(20);
        await sleep(100);
        const resumed = await app.call('resume', token, { n });
        assert.equal(resumed.runId, runId);
        assert.deepEqual(await app.call('outputs', [runId]), [{ n }]);
        all.push(resumed.seconds * 1000);
      }
      return { figures: { hookResume: median(all) } };
    },
  },
  {
    name: 'sleep',
    async measure(subject) {
      // The SDK asks its World for whole seconds. Spread over one, so that runs do not wait for each other.
      const [runs, sleeps, ms] = [6, 6, 1000];
      const work = rests(sleeps, ms);
      const { runIds } = await execute(subject, work, runs, ms / runs);
      await verify(subject, work, runIds);
      const all = [];
      for (const runId of runIds) all.push(...(await subject.app.call('lateness', runId)));
      assert.equal(all.length, runs * sleeps);
      return {
        figures: { sleepLateness: median(all), sleepLateness95: percentile(all, 0.95) },
      };
    },
  },
  {
    name: 'stream',
    async measure(subject) {
      const { perSecond } = await follow(subject, stamped(1000, 0));
      const firsts = [];
      for (let n = 0; n < 5; n++) firsts.push((await follow(subject, stamped(1, 0))).toFirst);
      const { latencies } = await follow(subject, stamped(150, 20));
      return {
        figures: {
          chunksPerSecond: perSecond,
          firstChunk: median(firsts),
          chunkLatency: median(latencies),
          chunkLatency95: percentile(latencies, 0.95),
        },
      };
    },
  },
  {
    name: 'payload',
    stores: true,
    async measure(subject) {
      const [steps, runs] = [5, 2];
      const work = produced(steps, 2 ** 20);
      const { seconds, cost } = await saturate(subject, work, runs);
      const total = steps * runs;
      return {
        figures: {
          walOfPayload: cost.walBytes / total / 2 ** 20,
          payloadLatency: (seconds * 1000) / steps,
        },
        cost,
      };
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
          idleCpu: ((cost.nodeCpu + cost.postgresCpu) * 1000) / cost.seconds,
          ...(subject.world.tables && {
            idleStatements: cost.statements / cost.seconds,
            connections: await subject.meter.connections(),
          }),
        },
        cost,
      };
    },
  },
  {
    name: 'storage',
    stores: true,
    async measure(subject) {
      const { app, meter, world } = subject;
      const [events, times, runs] = [1000, 10, 100_000];
      // Two events are those of the run itself.
      const { runId, milliseconds } = await app.call('append', events - 2);
      const appends = await app.call('appendTogether', 10, 150);
      const short = await app.call('listEvents', runId, events, 10);
      await lengthenLog(meter.query, world, runId, { events, times });
      const long = await app.call('listEvents', runId, events * times, 5);
      await app.call('cancel', runId);
      const { runIds } = await execute(subject, sequential(1));
      await addRuns(meter.query, world, runIds[0], runs);
      const pages = await app.call('listRuns', 20);
      return {
        figures: {
          append: milliseconds,
          appendsPerSecond: appends,
          listEvents1k: median(short),
          listEvents10k: median(long),
          listRuns: median(pages),
        },
      };
    },
  },
  {
    name: 'queue',
    stores: true,
    directory: path.join(root, 'bench/queue-app'),
    async measure({ app }) {
      await app.call('send', 200);
      return { figures: { messagesPerSecond: await app.call('send', 2000) } };
    },
  },
];
