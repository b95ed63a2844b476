import { configure } from './configuration.js';
import { shareCore } from './core.js';
import { call, callSync, worldError } from './errors.js';
import { encodeEvent, SPEC_VERSION } from './events.js';
import { createForeignDeliveries } from './foreign.js';
import { createQueueHandlerFactory, tokenAuthentication } from './handler.js';
import { createHealth } from './health.js';
import { reading } from './input.js';
import { logToConsole, tell } from './log.js';
import { BIND, createPgBossHttpProxyQueue, defined } from './pgboss.js';
import { AUTHENTICATE } from './qstash.js';
import { createQueue, push } from './queue.js';
import { isFirst } from './shared.js';
import { closeOnSignals } from './signals.js';
import { createStorage } from './storage.js';
import { createStreamer } from './streams.js';

const PACKAGE = '@workflow/world-postgres';
/** Where the SDK keeps its World (`setWorld` of @workflow/core). */
const SDK_WORLDS = [
  Symbol.for('@workflow/world//cache'),
  Symbol.for('@workflow/world//stubbedCache'),
];
/** Lets one World of ours leave its deliveries to another. */
const RECEIVER = Symbol.for(`${PACKAGE}//receiver`);
/** Stored on runs and compared by the SDK: changing it makes re-runs probe through the queue. */
const DEPLOYMENT_ID = 'postgres';
/** Longer than the event of a cancel may have to wait for PostgreSQL. */
const LATE_WAKE_SECONDS = 30;

/**
 * @typedef {import('../index.js').PostgresWorldConfig & { listen?: boolean, idleTimeoutSeconds?: number }} Options
 * @typedef {import('../index.js').QueueDriver & { [BIND]?: (options: object) => object, [AUTHENTICATE]?: (headers: Headers, kind: 'flow' | 'step', foreign: import('./foreign.js').ForeignDeliveries) => import('./handler.js').Sender }} Driver
 */

/**
 * Creates a World. Does no I/O and reads no environment: it is also called by builds, and by the SDK
 * beside the application. Everything is resolved on first use.
 * @param {import('../index.js').PostgresWorldConfig} [options]
 */
export function createWorld(options) {
  return makeWorld(options ?? {}, {
    anonymous: options === undefined,
    deploymentId: () => DEPLOYMENT_ID,
  });
}

/**
 * @param {Options} options
 * @param {object} identity
 * @param {boolean} identity.anonymous made without options, as the SDK does
 * @param {() => string} identity.deploymentId
 */
export function makeWorld(options, { anonymous, deploymentId }) {
  const resources = lazy(() => open(options));
  const { givenLog, streamFlushIntervalMs } = reading(() => ({
    givenLog: options.log,
    streamFlushIntervalMs: options.streamFlushIntervalMs ?? 0,
  }));
  /** @param {import('../index.js').LogLine} line */
  const log = (line) => tell(givenLog ?? resources.peek()?.log ?? logToConsole, line);
  const lifecycle = createLifecycle(resources, () => {
    const unregister = register(world, log);
    const ignoreSignals = options.closeOnSignals ? closeOnSignals(lifecycle.close) : undefined;
    return () => {
      unregister();
      ignoreSignals?.();
    };
  });

  const foreign = createForeignDeliveries((queueName, data, sendOptions) =>
    push(lifecycle.use().driver, queueName, data, sendOptions),
  );
  const authenticateByToken = tokenAuthentication((token) => {
    const { configuration } = lifecycle.use();
    callSync(() => configuration.checkStart());
    return configuration.acceptsToken(token);
  }, foreign.execute);
  /** @type {import('./handler.js').Authenticate} */
  const authenticate = (headers, kind) => {
    const { driver } = lifecycle.use();
    return driver[AUTHENTICATE]?.(headers, kind, foreign) ?? authenticateByToken(headers, kind);
  };

  const storage = createStorage(() => lifecycle.use().core);
  const queue = createQueue(() => lifecycle.use().driver);

  const world = {
    specVersion: SPEC_VERSION,
    // The SDK would wait 10 ms before each write; ours take less, and it writes one chunk at a time.
    streamFlushIntervalMs,
    ...storage,
    runs: { ...storage.runs, create: createRun(storage) },
    events: { ...storage.events, create: createEvent(storage, lifecycle.use, queue) },
    ...createStreamer(() => lifecycle.use().core),
    queue,
    createQueueHandler: createQueueHandlerFactory(
      () => (anonymous ? authority(authenticate) : authenticate),
      log,
    ),
    getDeploymentId: async () => deploymentId(),
    start: lifecycle.start,
    close: lifecycle.close,
    health: createHealth(lifecycle),
    [RECEIVER]: authenticate,
  };
  return world;
}

/**
 * `events.create`, with one thing more: a cancelled run may have a message that waits for the end of
 * its sleep, days ahead. In our own queue a wake pulls it forward, finds the run ended, and the message
 * is gone. One is sent before, should this process die in between or the queue take nothing after.
 * @param {ReturnType<typeof createStorage>} storage
 * @param {() => { driver: Driver }} use
 * @param {ReturnType<typeof createQueue>} queue
 * @returns {ReturnType<typeof createStorage>['events']['create']}
 */
function createEvent(storage, use, queue) {
  return async (runId, event, params) => {
    const cancels = reading(
      // For what cannot be appended, nothing is sent.
      () => event?.eventType === 'run_cancelled' && encodeEvent(runId, event, params) !== undefined,
    );
    const wakes = cancels && BIND in use().driver;
    if (runId && wakes) {
      // What is wrong with the run, the event will be told.
      const run = await storage.runs.get(runId, { resolveData: 'none' }).catch(() => undefined);
      if (run && !run.completedAt) {
        await queue(
          `__wkf_workflow_${run.workflowName}`,
          { runId },
          { delaySeconds: LATE_WAKE_SECONDS },
        );
      }
    }
    const result = await storage.events.create(runId, event, params);
    if (wakes && result.event && result.run) {
      await queue(`__wkf_workflow_${result.run.workflowName}`, { runId }).catch(() => {});
    }
    return result;
  };
}

/**
 * The second seed's `runs.create`: the event that creates a run, and the run. It does not start it.
 * @param {ReturnType<typeof createStorage>} storage
 */
function createRun(storage) {
  /** @param {import('../upstash.js').NewRun} newRun */
  return async (newRun) => {
    const { runId, ...event } = reading(() => {
      const { runId, deploymentId, workflowName, input, executionContext, specVersion } = newRun;
      return {
        runId,
        eventType: 'run_created',
        specVersion,
        eventData: { deploymentId, workflowName, input, executionContext },
      };
    });
    const { run } = await storage.events.create(runId, event);
    return run;
  };
}

/** @param {Options} given */
function open(given) {
  const options = defined(given);
  const driver = createDriver(options.queueFactory ?? createPgBossHttpProxyQueue);
  // What only one of the two was given, the World or its driver, holds for both.
  const driverOptions = driver[BIND]?.(options);
  const { jobPrefix } = { ...options, ...driverOptions };
  // The queues that serve a run are the driver's, whatever this World was told.
  const settings = { ...driverOptions, ...options, jobPrefix };
  const configuration = configure(settings);
  const { log } = settings;
  const core = shareCore(configuration, log);
  if (!(AUTHENTICATE in driver)) warnOfToken(configuration, log);
  return { configuration, core, driver, log };
}

/**
 * Also in a process that is never started: it receives deliveries all the same.
 * @param {import('../native/index.cjs').Configuration} configuration
 * @param {(line: import('../index.js').LogLine) => void} [log]
 */
function warnOfToken({ tokenWeakness }, log = logToConsole) {
  if (tokenWeakness && isFirst(tokenWeakness)) tell(log, { level: 'warn', message: tokenWeakness });
}

/**
 * @param {() => unknown} factory
 * @returns {Driver}
 */
function createDriver(factory) {
  const driver = /** @type {any} */ (typeof factory === 'function' ? factory() : undefined);
  const missing = ['pushStep', 'pushFlow', 'start'].filter(
    (name) => typeof Object(driver)[name] !== 'function',
  );
  if (missing.length === 0) return driver;
  const what = driver instanceof Promise ? 'a promise of a driver, not' : 'something else than';
  throw worldError({
    name: 'WorkflowWorldError',
    status: 500,
    code: 'CONFIGURATION',
    message:
      typeof factory === 'function'
        ? `queueFactory returned ${what} a QueueDriver: it lacks ${missing.join(', ')}`
        : `queueFactory must be a function that returns a QueueDriver, not ${typeof factory}`,
  });
}

/**
 * @param {{ get: () => ReturnType<typeof open>, peek: () => ReturnType<typeof open> | undefined }} resources
 * @param {() => () => void} announce tells the process of the World; returns what undoes that
 */
function createLifecycle(resources, announce) {
  /** @type {Promise<void> | undefined} */
  let started;
  /** @type {Promise<void> | undefined} */
  let closing;
  let closed = false;
  /** @type {NodeJS.Timeout | undefined} */
  let keepAlive;
  let withdraw = () => {};

  function use() {
    if (closed) throw closedError();
    const { configuration, core, driver } = resources.get();
    return { configuration, core: core.value, driver };
  }

  async function start() {
    const { configuration, core, driver } = use();
    if (!(AUTHENTICATE in driver)) callSync(() => configuration.checkStart());
    // Before anything takes its time: what the app sends meanwhile belongs to this World already.
    withdraw = announce();
    await call(core.check());
    await driver.start();
    // The core's threads do not hold Node's event loop; a started World does, until closed.
    keepAlive = setInterval(() => {}, 2 ** 30);
  }

  async function close() {
    // Not before start() has settled: it would start what was just stopped.
    await started?.catch(() => {});
    const opened = resources.peek();
    try {
      // What is still running when the drain ends, others may start then.
      opened?.core.value.renewSteps(false);
      // Deliveries that drain still report to this World: it is closed only after them.
      await opened?.driver.close?.();
    } finally {
      closed = true;
      withdraw();
      clearInterval(keepAlive);
      // Other Worlds of this process may go on with the same core.
      opened?.core.value.renewSteps(true);
      await opened?.core.release();
    }
  }

  return {
    use,
    isStarted: () => keepAlive !== undefined && !closing,
    /** @returns {Promise<void>} */
    start() {
      if (closing) return Promise.reject(closedError());
      started ??= start().catch((error) => {
        started = undefined;
        withdraw();
        throw error;
      });
      return started;
    },
    /** @returns {Promise<void>} */
    close() {
      closing ??= close();
      return closing;
    },
  };
}

function closedError() {
  return worldError({
    name: 'WorkflowWorldError',
    status: 500,
    code: 'CLOSED',
    message: 'This World is closed; create a new one with createWorld()',
  });
}

/**
 * Makes a World the one that the SDK uses, so that `queue()` calls reach its driver, unless the SDK
 * was told to use another package's.
 * @param {object} world
 * @param {(line: import('../index.js').LogLine) => void} log
 */
function register(world, log) {
  const target = process.env.WORKFLOW_TARGET_WORLD;
  // A module of the app may have made this World for the SDK.
  if (Reflect.get(globalThis, SDK_WORLDS[0]) === world) return () => {};
  if (target && target !== PACKAGE && !target.startsWith(`${PACKAGE}/`)) {
    log({
      level: 'warn',
      message: `The SDK uses another World than this one: WORKFLOW_TARGET_WORLD is ${JSON.stringify(target)}, not ${JSON.stringify(PACKAGE)}`,
    });
    return () => {};
  }
  const handlersOf = Reflect.get(globalThis, SDK_WORLDS[1]);
  if (handlersOf && !(RECEIVER in handlersOf)) {
    log({
      level: 'warn',
      message: `WORKFLOW_TARGET_WORLD is not set, and the SDK was loaded before this World was started: routes that were loaded too are another World's, which executes what anybody sends and may lose waits. Set it to ${JSON.stringify(PACKAGE)}`,
    });
  }
  for (const symbol of SDK_WORLDS) Reflect.set(globalThis, symbol, world);
  return () => {
    for (const symbol of SDK_WORLDS) {
      if (Reflect.get(globalThis, symbol) === world) Reflect.deleteProperty(globalThis, symbol);
    }
  };
}

/**
 * Who receives the deliveries to a World without options: the one that was started, if it is one of
 * ours. The SDK makes its handlers from such a World, while the started one may know another token
 * and have another queue.
 * @param {import('./handler.js').Authenticate} self
 * @returns {import('./handler.js').Authenticate}
 */
function authority(self) {
  return Reflect.get(globalThis, SDK_WORLDS[0])?.[RECEIVER] ?? self;
}

/**
 * @template T
 * @param {() => T} create
 */
function lazy(create) {
  /** @type {T | undefined} */
  let value;
  return {
    get() {
      value ??= create();
      return value;
    },
    peek: () => value,
  };
}
