import { configure } from './configuration.js';
import { shareCore } from './core.js';
import { createEntrypoints, readStart } from './entrypoints.js';
import { call, callSync, describe } from './errors.js';
import { addExitTask, removeExitTask } from './exit.js';
import { isOfWorld } from './handler.js';
import { reading } from './input.js';
import { logToConsole } from './log.js';
import { toCore } from './messages.js';
import { native } from './native.js';
import { identityOf, share } from './shared.js';

/** A World and a driver of ours tell each other their options; each prefers what it was given itself. */
export const BIND = Symbol.for('@workflow/world-postgres//bind');

/** How often the worker is told that the event loop turns (`LOOP_TICK` of the core). */
const TICK_MS = 500;
/** How long close() lets running deliveries finish before it hands them back. */
const DRAIN_MS = 10_000;
/** A process that is exiting may not be held up: hand the leases back, or let them expire. */
const EXIT_MS = 1_000;
/** Of an answer, no more than this can mean anything. */
const LONGEST_ANSWER = 65_536;

/**
 * @typedef {import('../index.js').QueueDriver} QueueDriver
 * @typedef {(request: import('../native/index.cjs').DeliveryRequest) => Promise<import('../native/index.cjs').DeliveryAnswer>} Entrypoint
 */

/**
 * The default driver: jobs in pg-boss's tables, delivered over HTTP.
 * @param {import('../index.js').PgBossHttpProxyQueueOptions} [options]
 * @returns {QueueDriver}
 */
export function createPgBossHttpProxyQueue(options = {}) {
  return createDriver(options);
}

/**
 * The same jobs, delivered to functions of this process.
 * @param {import('../index.js').PgBossFunctionProxyQueueOptions} options
 * @returns {QueueDriver}
 */
export function createPgBossFunctionProxyQueue(options) {
  const invoke = createEntrypoints(options);
  /** A promise that nothing can settle any more would be collected, and its message delivered again. */
  const running = new Set();

  /** @type {Entrypoint} */
  async function execute({ kind, headers, body, ticket }) {
    try {
      if (ticket && !native().beginDelivery(ticket)) throw new Error('The delivery was withdrawn');
      const route = kind === 'step' ? 'step' : 'flow';
      const response = await invoke(route, JSON.parse(headers), body);
      const answer = await readStart(response, LONGEST_ANSWER);
      return { status: response.status, body: answer, ofWorld: isOfWorld(response) };
    } catch (error) {
      return { status: 500, body: describe(error), ofWorld: false };
    }
  }

  return createDriver(options, (request) => {
    const delivery = execute(request);
    running.add(delivery);
    return delivery.finally(() => running.delete(delivery));
  });
}

/**
 * @param {import('../index.js').PgBossQueueOptions} options
 * @param {Entrypoint} [entrypoint]
 */
function createDriver(options, entrypoint) {
  /** @type {import('../index.js').PgBossQueueOptions} */
  let inherited = {};
  /** @type {ReturnType<typeof open> | undefined} */
  let opened;
  /** @type {NodeJS.Timeout | undefined} */
  let ticking;

  function use() {
    opened ??= open({ ...inherited, ...defined(options) }, entrypoint);
    const { configuration, queue, core } = opened;
    return { configuration, queue: queue.value, calls: core.value.calls };
  }

  function handBack() {
    opened?.core.value.handBackSteps(EXIT_MS);
    use().queue.handBack(EXIT_MS);
  }

  function tick() {
    const { user, system } = process.cpuUsage();
    use().queue.tick(user + system);
  }

  /** @param {'step' | 'flow'} kind */
  const push =
    (kind) =>
    /** @param {import('../index.js').MessageData} message */
    async (message) => {
      const { request, body } = toCore(kind, message);
      const { queue, calls } = use();
      const pushing = callSync(() =>
        calls.make((number) => queue.startPush(number, request, body)),
      );
      const { json = 'null' } = await call(pushing);
      return JSON.parse(json) ?? undefined;
    };

  const driver = {
    pushStep: push('step'),
    pushFlow: push('flow'),
    async start() {
      const { configuration, queue } = use();
      callSync(() => configuration.checkStart());
      if (entrypoint) warnOfDevelopment(options.log ?? inherited.log);
      tick();
      ticking ??= setInterval(tick, TICK_MS).unref();
      await call(queue.start(entrypoint));
      // Next ends its process by itself on SIGTERM: its leases must not have to expire.
      addExitTask(handBack);
    },
    async close() {
      if (!opened) return;
      const { queue, core } = opened;
      removeExitTask(handBack);
      await queue.release();
      clearInterval(ticking);
      await core.release();
    },
    async health() {
      const { targetReachable, targetError, oldestDueMs, worker, problems } = JSON.parse(
        await call(use().queue.health()),
      );
      return {
        healthy: worker === null || (targetReachable && !targetError && problems.length === 0),
        ...(problems.length > 0 && { error: problems.join('; ') }),
        worker: worker ? 'running' : 'stopped',
        ...(targetReachable !== null && { targetReachable }),
        ...(targetError && { targetError }),
        oldestDueMs: oldestDueMs ?? 0,
        ...(worker && { deliveries: worker }),
      };
    },
    /** @param {import('../index.js').PostgresWorldConfig} worldOptions */
    [BIND](worldOptions) {
      inherited = worldOptions;
      return defined(options);
    },
  };
  return driver;
}

/**
 * @param {import('../index.js').PgBossQueueOptions} options
 * @param {Entrypoint} [entrypoint]
 */
function open(options, entrypoint) {
  const configuration = configure(options);
  const core = shareCore(configuration, options.log);
  const create = () => callSync(() => new (native().PgBossQueue)(core.value, configuration));
  /** @param {ReturnType<typeof create>} value */
  const dispose = (value) => call(value.close(DRAIN_MS));
  // Functions are this driver's own; whoever delivers to the same URL may share.
  const key = entrypoint ?? `queue ${configuration.queueKey} ${identityOf(options.log)}`;
  return { configuration, core, queue: share(key, create, dispose) };
}

/** @param {((line: import('../index.js').LogLine) => void) | undefined} log */
function warnOfDevelopment(log = logToConsole) {
  if (process.env.NODE_ENV !== 'development') return;
  log({
    level: 'warn',
    message:
      'The function proxy runs the workflow code that was loaded when this process started: edits are not seen, ' +
      'and steps run outside of the request scope of a framework. Use the HTTP proxy (the default) in development.',
  });
}

/**
 * @template {object} T
 * @param {T} options
 * @returns {Partial<T>}
 */
export function defined(options) {
  const entries = reading(() => Object.entries(options));
  return /** @type {Partial<T>} */ (
    Object.fromEntries(entries.filter(([, value]) => value !== undefined))
  );
}
