// What the benchmark does inside the app's process, beside the SDK: so that no World pays for being
// watched, and all are watched alike. TEST_METHODS names this module to the app's server.
import { Session } from 'node:inspector/promises';
import { getWorld, getWorldHandlers } from '@workflow/core/runtime';
import { getRun, resumeHook, start } from 'workflow/api';

/** @typedef {Record<string, any>} Event */

/** The types of the SDK want each kind of event apart. @returns {any} */
const world = () => getWorld();

const ENDS = new Set(['run_completed', 'run_failed', 'run_cancelled']);
const STEP_EVENTS = ['step_created', 'step_started', 'step_completed'];
const SPEC_VERSION = 3;

/** When runs have ended: the moment at which their World has acknowledged it. */
/** @type {Map<string, number>} */
const ends = new Map();
/** @type {Map<string, (end: number) => void>} */
const waiting = new Map();

/** @param {string} runId @returns {Promise<number>} */
function endOf(runId) {
  const end = ends.get(runId);
  return end === undefined
    ? new Promise((resolve) => waiting.set(runId, resolve))
    : Promise.resolve(end);
}

/** @type {object | undefined} */
let watched;

function watch() {
  const { events } = world();
  if (watched === events) return;
  watched = events;
  const create = events.create.bind(events);
  events.create = async (/** @type {any[]} */ ...args) => {
    const result = await create(...args);
    const [runId, { eventType }] = args;
    if (ENDS.has(eventType)) {
      const end = performance.now();
      ends.set(runId, end);
      waiting.get(runId)?.(end);
      waiting.delete(runId);
    }
    return result;
  };
}

/** On the clock of `stamped` of the workflows. */
const now = () => performance.timeOrigin + performance.now();

/** As the SDK reads a log: page by page, of the size that the World prefers. @param {string} runId */
async function log(runId) {
  /** @type {Event[]} */
  const events = [];
  /** @type {string | undefined} */
  let cursor;
  for (;;) {
    const page = await world().events.list({ runId, pagination: { sortOrder: 'asc', cursor } });
    events.push(...page.data);
    if (!page.hasMore) return events;
    cursor = page.cursor;
  }
}

/** @param {number} times @param {() => Promise<unknown>} operation @returns {Promise<number[]>} milliseconds */
async function timed(times, operation) {
  const all = [];
  for (let n = 0; n < times; n++) {
    const begin = performance.now();
    await operation();
    all.push(performance.now() - begin);
  }
  return all;
}

/** @param {string} prefix @param {number} number */
const idOf = (prefix, number) => `${prefix}_${String(number).padStart(26, '0')}`;
let lastStep = 0;
const payload = new TextEncoder().encode(`devl${JSON.stringify(['x'.repeat(100)])}`);

/** The events of steps one after another, as the SDK creates them. @param {string} runId @param {number} count */
async function appendSteps(runId, count) {
  let correlationId = '';
  for (let n = 0; n < count; n++) {
    const eventType = STEP_EVENTS[n % STEP_EVENTS.length];
    const eventData = {
      stepName: 'step//bench//nothing',
      ...(eventType === 'step_created' && {
        workflowName: 'workflow//bench//none',
        input: payload,
      }),
      ...(eventType === 'step_completed' && {
        workflowName: 'workflow//bench//none',
        result: payload,
      }),
    };
    if (eventType === 'step_created') correlationId = idOf('step', ++lastStep);
    const event = { eventType, correlationId, specVersion: SPEC_VERSION, eventData };
    await world().events.create(runId, event);
  }
}

/** A run that nothing executes. @returns {Promise<string>} */
async function newRun() {
  const { events } = world();
  const eventData = {
    deploymentId: await world().getDeploymentId(),
    workflowName: 'workflow//bench//none',
    input: payload,
    executionContext: {},
  };
  const created = { eventType: 'run_created', specVersion: SPEC_VERSION, eventData };
  const { run } = await events.create(null, created);
  await events.create(run.runId, { eventType: 'run_started', specVersion: SPEC_VERSION });
  return run.runId;
}

/** @type {Set<string>} */
const delivered = new Set();
let allDelivered = () => {};
let expected = 0;

/** For messages that ask for nothing. */
export function createCountingHandler() {
  const handle = async (/** @type {any} */ { stepId }) => {
    delivered.add(stepId);
    if (delivered.size === expected) allDelivered();
  };
  return getWorldHandlers().createQueueHandler('__wkf_step_', handle);
}

/** @param {{ ids: Record<string, string> }} app @returns {Record<string, (...args: any[]) => unknown>} */
export function createMethods({ ids }) {
  /** @param {string} name @param {unknown[]} args */
  const started = async (name, args) => (await start({ workflowId: ids[name] }, args)).runId;

  const profiler = new Session();

  return {
    async startProfile() {
      profiler.connect();
      await profiler.post('Profiler.enable');
      await profiler.post('Profiler.start');
    },

    /** What this process's JavaScript did since, as DevTools open it. */
    async stopProfile() {
      const { profile } = await profiler.post('Profiler.stop');
      profiler.disconnect();
      return JSON.stringify(profile);
    },

    /**
     * Starts runs at once, or one after another in such intervals, and waits until all have ended.
     *
     * @param {string} name
     * @param {unknown[]} args
     * @param {number} count
     * @param {number} interval in milliseconds
     */
    async execute(name, args, count, interval) {
      watch();
      const begin = performance.now();
      const runIds = await Promise.all(
        Array.from({ length: count }, async (_, n) => {
          if (interval) await new Promise((resolve) => setTimeout(resolve, n * interval));
          return started(name, args);
        }),
      );
      const last = Math.max(...(await Promise.all(runIds.map(endOf))));
      return { runIds, seconds: (last - begin) / 1000 };
    },

    /** @param {string[]} runIds */
    outputs: (runIds) => Promise.all(runIds.map((runId) => getRun(runId).returnValue)),

    /** From the call that resumes a hook until its run has ended. @param {string} token @param {unknown} value */
    async resume(token, value) {
      watch();
      const begin = performance.now();
      const { runId } = await resumeHook(token, value);
      return { runId, seconds: ((await endOf(runId)) - begin) / 1000 };
    },

    /** @param {string} token */
    async hasHook(token) {
      return world()
        .hooks.getByToken(token)
        .then(
          () => true,
          () => false,
        );
    },

    /** How much later than asked the sleeps of a run ended. @param {string} runId @returns {Promise<number[]>} milliseconds */
    async lateness(runId) {
      const completed = (await log(runId)).filter(
        ({ eventType }) => eventType === 'wait_completed',
      );
      return completed.map(({ createdAt, eventData }) => createdAt - eventData.resumeAt);
    },

    /** Follows a run's stream of moments from its start on. @param {string} name @param {unknown[]} args */
    async follow(name, args) {
      watch();
      const begin = now();
      const runId = await started(name, args);
      /** @type {{ written: number, read: number }[]} */
      const chunks = [];
      for await (const written of getRun(runId).getReadable()) {
        chunks.push({ written: /** @type {number} */ (written), read: now() });
      }
      await endOf(runId);
      return { runId, begin, chunks };
    },

    /** One event after another, into a run that is not ended. @param {number} count */
    async append(count) {
      const runId = await newRun();
      const [total] = await timed(1, () => appendSteps(runId, count));
      return { runId, milliseconds: total / count };
    },

    /** Into several runs at a time. @param {number} runs @param {number} count each */
    async appendTogether(runs, count) {
      const runIds = await Promise.all(Array.from({ length: runs }, newRun));
      const [total] = await timed(1, () =>
        Promise.all(runIds.map((runId) => appendSteps(runId, count))),
      );
      await Promise.all(runIds.map((runId) => getRun(runId).cancel()));
      return (runs * count * 1000) / total;
    },

    /** @param {string} runId @param {number} expected events @param {number} times */
    async listEvents(runId, expected, times) {
      return timed(times, async () => {
        const { length } = await log(runId);
        if (length !== expected) throw new Error(`${length} events instead of ${expected}`);
      });
    },

    /** Messages per second through the queue, from the first call until the last has arrived. @param {number} count */
    async send(count) {
      const first = expected;
      expected += count;
      const arrival = new Promise((resolve) => {
        allDelivered = () => resolve(undefined);
      });
      const [total] = await timed(1, async () => {
        await Promise.all(
          Array.from({ length: count }, (_, n) => {
            const stepId = idOf('step', first + n);
            const workflowRunId = idOf('wrun', 0);
            const message = { workflowName: 'none', workflowRunId, workflowStartedAt: 0, stepId };
            const options = { idempotencyKey: stepId, specVersion: SPEC_VERSION };
            return world().queue('__wkf_step_nothing', message, options);
          }),
        );
        await arrival;
      });
      return (count * 1000) / total;
    },

    /** @param {number} times */
    async listRuns(times) {
      return timed(times, async () => {
        const { data, hasMore } = await world().runs.list({});
        if (data.length === 0 || !hasMore) throw new Error('no runs');
      });
    },
  };
}
