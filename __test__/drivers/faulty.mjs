// Runs the conformance suite over a driver in memory that has the fault given as argument.
import { setTimeout as sleep } from 'node:timers/promises';
import { createFunctionProxy } from '../../index.js';
import { testQueueDriver } from '../../testing.js';

/** @typedef {import('../../index.js').MessageData} MessageData */
/** @typedef {{ kind: 'proxyStep' | 'proxyWorkflow', message: MessageData, key?: string, attempt: number, due: number }} Stored */
/** @typedef {{ waiting: Stored[], keys: Set<string> }} Queue */

const FIRST_PAUSE_MS = 50;
const fault = process.argv[2];
const has = (/** @type {string} */ name) => fault === name;

/** @type {Map<string, Queue>} */
const queues = new Map();

/**
 * @param {import('../../testing.js').DriverTarget} target
 * @returns {import('../../index.js').QueueDriver}
 */
function createDriver({ queue, proxy: given, stepEntrypoint, securityToken }) {
  const proxy = has('ignores the kind')
    ? createFunctionProxy({ workflowEntrypoint: stepEntrypoint, securityToken })
    : given;
  const { waiting, keys } = queues.get(queue) ?? { waiting: [], keys: new Set() };
  queues.set(queue, { waiting, keys });
  /** @type {Set<Promise<void>>} */
  const running = new Set();
  /** @type {NodeJS.Timeout | undefined} */
  let timer;

  /** @param {Stored['kind']} kind */
  const push =
    (kind) =>
    /** @param {MessageData} message */
    async (message) => {
      const { idempotencyKey, delaySeconds = 0 } = message;
      const key = idempotencyKey && `${kind} ${idempotencyKey}`;
      if (key && keys.has(key)) return;
      if (key) keys.add(key);
      const delayMs = has('knows no delays') ? 0 : delaySeconds * 1000;
      waiting.push({ kind, message, key, attempt: 1, due: performance.now() + delayMs });
      if (has('delivers before start') && !timer) setImmediate(claim);
    };

  function claim() {
    const now = performance.now();
    for (const stored of waiting.filter(({ due }) => due <= now)) {
      if (has('delivers one at a time') && running.size > 0) return;
      waiting.splice(waiting.indexOf(stored), 1);
      const delivery = deliver(stored).finally(() => running.delete(delivery));
      running.add(delivery);
    }
  }

  /** @param {Stored} stored */
  async function deliver(stored) {
    const { kind, message, key, attempt } = stored;
    const data = has('changes bytes')
      ? Buffer.from(Buffer.from(/** @type {Uint8Array} */ (message.data)).toString('utf8'))
      : message.data;
    const sent = proxy[kind]({
      ...message,
      data,
      attempt: has('counts no attempts') ? 1 : attempt,
    });
    if (has('forgets what runs long')) {
      const lost = await Promise.race([sent.then(() => false), sleep(2000, true)]).catch(() => {});
      if (lost) waiting.push({ ...stored, due: 0 });
    }
    try {
      await sent;
    } catch {
      if (has('loses what failed') || (has('gives up') && attempt === 3)) return;
      const due = performance.now() + FIRST_PAUSE_MS * 2 ** attempt;
      waiting.push({ ...stored, attempt: attempt + 1, due });
      return;
    }
    if (key && !has('drops a key for ever')) keys.delete(key);
  }

  return {
    pushStep: push('proxyStep'),
    pushFlow: push('proxyWorkflow'),
    async start() {
      timer = setInterval(claim, 5);
    },
    async close() {
      clearInterval(timer);
      if (!has('does not wait for what runs')) await Promise.all(running);
    },
  };
}

testQueueDriver('a driver in memory', createDriver, { limitMs: 15_000, longDeliveryMs: 4000 });
