import { setTimeout as sleep } from 'node:timers/promises';
import { Queue, Worker } from 'bullmq';

/** A step may fail for days, until somebody repairs what it calls. */
const ATTEMPTS = Number.MAX_SAFE_INTEGER;
const LONGEST_PAUSE_MS = 15 * 60 * 1000;
/** BullMQ's order of delayed jobs ends in 2039. What comes too early, the World puts back. */
const LONGEST_DELAY_MS = 365 * 24 * 60 * 60 * 1000;
/**
 * As long as a World gives its own queue. What still runs then keeps its lock while this process lives;
 * where Redis is away, BullMQ holds the process, which must be ended with `process.exit()`.
 */
const CLOSE_LIMIT_MS = 10_000;

/**
 * A queue driver on BullMQ.
 *
 * @param {object} options
 * @param {import('@workflow/world-postgres').WkfProxy} options.proxy where deliveries go
 * @param {string} [options.url] of Redis
 * @param {string} [options.name] of the two queues, `<name>-steps` and `<name>-workflows`: no colons
 * @param {string} [options.prefix] of all keys in Redis
 * @param {number} [options.concurrency] deliveries at the same time, for steps and workflows each
 * @param {number} [options.lockMs] after which the jobs of a killed worker run elsewhere; renewed while
 *   a delivery runs, however long, unless its code blocks the event loop for this time
 * @param {number} [options.pushLimitMs] after which whoever starts a workflow is told that Redis is away
 * @param {(error: Error) => void} [options.onError]
 * @returns {import('@workflow/world-postgres').QueueDriver}
 */
export function createBullMQQueue({
  proxy,
  url = 'redis://127.0.0.1:6379',
  name = 'workflow',
  prefix = 'bull',
  concurrency = 10,
  lockMs = 30_000,
  pushLimitMs = 10_000,
  onError = console.error,
}) {
  const names = { steps: `${name}-steps`, workflows: `${name}-workflows` };
  /** @type {Map<string, Queue>} */
  const queues = new Map();
  /** @type {Worker[]} */
  const workers = [];

  /** Connects on the first push: a driver that is merely created opens nothing. @param {string} name */
  function queue(name) {
    let queue = queues.get(name);
    if (!queue) {
      queue = new Queue(name, { prefix, connection: { url } });
      queue.on('error', onError);
      queues.set(name, queue);
    }
    return queue;
  }

  /** @param {string} name */
  const push =
    (name) =>
    /** @param {import('@workflow/world-postgres').MessageData} message */
    async (message) => {
      const { idempotencyKey, delaySeconds = 0 } = message;
      const stored = queue(name).add(message.id, message, {
        attempts: ATTEMPTS,
        backoff: { type: 'custom' },
        // Holds from now until the job has completed or failed for good. A `jobId` would hold for as
        // long as a failed job is kept, and takes no colons and no numbers.
        ...(idempotencyKey !== undefined && { deduplication: { id: `key ${idempotencyKey}` } }),
        delay: Math.min(Math.ceil(delaySeconds * 1000), LONGEST_DELAY_MS),
        removeOnComplete: true,
        stackTraceLimit: 1,
      });
      await withLimit(stored, pushLimitMs);
    };

  /**
   * @param {string} name
   * @param {import('@workflow/world-postgres').WkfProxy['proxyStep']} send
   */
  function work(name, send) {
    const worker = new Worker(
      name,
      async (job) => {
        await send({ ...job.data, attempt: job.attemptsMade + 1 });
      },
      {
        prefix,
        connection: { url },
        concurrency,
        lockDuration: lockMs,
        stalledInterval: lockMs,
        // By default, a job whose worker died twice is given up.
        maxStalledCount: Number.MAX_SAFE_INTEGER,
        settings: {
          backoffStrategy: (attempts) => Math.min(1000 * 2 ** (attempts - 1), LONGEST_PAUSE_MS),
        },
      },
    );
    worker.on('error', onError);
    workers.push(worker);
  }

  return {
    pushStep: push(names.steps),
    pushFlow: push(names.workflows),
    /** Workers connect when they can: an app starts while Redis is away. */
    async start() {
      work(names.steps, (message) => proxy.proxyStep(message));
      work(names.workflows, (message) => proxy.proxyWorkflow(message));
    },
    async close() {
      const ended = Promise.all(workers.map((worker) => worker.close()));
      await Promise.race([ended, sleep(CLOSE_LIMIT_MS, undefined, { ref: false })]);
      await Promise.all([...queues.values()].map((queue) => queue.close()));
    },
  };
}

/**
 * @param {Promise<unknown>} promise
 * @param {number} ms
 */
async function withLimit(promise, ms) {
  const timer = new AbortController();
  const limit = sleep(ms, undefined, timer).then(() => {
    throw new Error(`Redis did not answer within ${ms} ms`);
  });
  try {
    await Promise.race([promise, limit]);
  } finally {
    limit.catch(() => {});
    promise.catch(() => {});
    timer.abort();
  }
}
