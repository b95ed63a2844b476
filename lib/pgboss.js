import { configure } from './configuration.js';
import { shareCore } from './core.js';
import { call, callSync } from './errors.js';
import { toCore } from './messages.js';
import { native } from './native.js';
import { share } from './shared.js';

/** A World tells a driver of ours its own options; what the driver was given itself comes first. */
export const BIND = Symbol.for('@workflow/world-postgres//bind');

/** How long close() lets running deliveries finish before it hands them back. */
const DRAIN_MS = 10_000;
/** A process that is exiting may not be held up: hand the leases back, or let them expire. */
const EXIT_MS = 1_000;

/**
 * The built-in driver: jobs in pg-boss's tables, delivered over HTTP.
 * @param {import('../index.js').PgBossHttpProxyQueueOptions} [options]
 * @returns {import('../index.js').QueueDriver}
 */
export function createPgBossHttpProxyQueue(options = {}) {
  /** @type {object} */
  let inherited = {};
  /** @type {ReturnType<typeof open> | undefined} */
  let opened;
  let started = false;

  function use() {
    opened ??= open({ ...inherited, ...defined(options) });
    return { configuration: opened.configuration, queue: opened.queue.value };
  }

  function handBackOnExit() {
    use().queue.handBack(EXIT_MS);
  }

  /** @param {'step' | 'flow'} kind */
  const push =
    (kind) =>
    /** @param {import('../index.js').MessageData} message */
    async (message) => {
      const { request, body } = toCore(kind, message);
      return (await call(use().queue.push(request, body))) ?? undefined;
    };

  const driver = {
    pushStep: push('step'),
    pushFlow: push('flow'),
    async start() {
      const { configuration, queue } = use();
      callSync(() => configuration.checkStart());
      await call(queue.start());
      if (started) return;
      started = true;
      // Next ends its process by itself on SIGTERM: its leases must not have to expire.
      process.once('exit', handBackOnExit);
    },
    async close() {
      if (!opened) return;
      const { queue, core } = opened;
      process.off('exit', handBackOnExit);
      await queue.release();
      await core.release();
    },
    /** @param {object} worldOptions */
    [BIND](worldOptions) {
      inherited = worldOptions;
    },
  };
  return driver;
}

/** @param {import('../index.js').PgBossHttpProxyQueueOptions} options */
function open(options) {
  const configuration = configure(options);
  const core = shareCore(configuration, options.log);
  const queue = share(
    `queue ${configuration.queueKey}`,
    () => callSync(() => new (native().PgBossQueue)(core.value, configuration)),
    (value) => call(value.close(DRAIN_MS)),
  );
  return { configuration, core, queue };
}

/** @param {object} options */
function defined(options) {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}
