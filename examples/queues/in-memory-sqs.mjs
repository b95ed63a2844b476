import { randomUUID } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';

/** SQS takes no longer ones. What comes too early, the World puts back. */
const LONGEST_DELAY_SECONDS = 900;
const LONGEST_BODY = 2 ** 20;
const LONGEST_POLL_SECONDS = 20;
const LONGEST_PAUSE_SECONDS = 900;
/** As long as a World gives its own queue. What still runs then becomes visible to others again. */
const CLOSE_LIMIT_MS = 10_000;

/**
 * @typedef {object} Sqs the part of `SQS` of `@aws-sdk/client-sqs` that the driver calls
 * @property {(input: { QueueUrl: string, MessageBody: string, DelaySeconds?: number }) => Promise<unknown>} sendMessage
 * @property {(input: { QueueUrl: string, WaitTimeSeconds?: number, VisibilityTimeout?: number, MessageSystemAttributeNames?: 'ApproximateReceiveCount'[] }, options?: { abortSignal?: AbortSignal }) => Promise<{ Messages?: SqsMessage[] }>} receiveMessage
 * @property {(input: { QueueUrl: string, ReceiptHandle: string | undefined, VisibilityTimeout: number }) => Promise<unknown>} changeMessageVisibility
 * @property {(input: { QueueUrl: string, ReceiptHandle: string | undefined }) => Promise<unknown>} deleteMessage
 */
/** @typedef {{ Body?: string, ReceiptHandle?: string, Attributes?: { ApproximateReceiveCount?: string } }} SqsMessage */

/**
 * A queue driver on two SQS standard queues, without a dead-letter queue. `sqs` is an `SQS` of
 * `@aws-sdk/client-sqs`, or the one below.
 *
 * Idempotency keys are left alone: a FIFO queue would drop for five minutes what has the key of a
 * message that has long been executed.
 *
 * @param {object} options
 * @param {Sqs} options.sqs
 * @param {string} options.stepQueueUrl
 * @param {string} options.flowQueueUrl
 * @param {import('@workflow/world-postgres').WkfProxy} options.proxy where deliveries go
 * @param {number} [options.concurrency] deliveries at the same time, for steps and workflows each
 * @param {number} [options.visibilitySeconds] after which the messages of a killed worker run elsewhere
 * @param {(error: unknown) => void} [options.onError]
 * @returns {import('@workflow/world-postgres').QueueDriver}
 */
export function createSqsQueue({
  sqs,
  stepQueueUrl,
  flowQueueUrl,
  proxy,
  concurrency = 10,
  visibilitySeconds = 30,
  onError = console.error,
}) {
  const closing = new AbortController();
  // Every lane listens to it.
  setMaxListeners(0, closing.signal);
  /** @type {Promise<void>[]} */
  const lanes = [];

  /** @param {string} QueueUrl */
  const push =
    (QueueUrl) =>
    /** @param {import('@workflow/world-postgres').MessageData} message */
    async (message) => {
      const delay = Math.ceil(message.delaySeconds ?? 0);
      await sqs.sendMessage({
        QueueUrl,
        MessageBody: JSON.stringify(message),
        DelaySeconds: Math.min(delay, LONGEST_DELAY_SECONDS),
      });
    };

  /**
   * Receives one message after the other.
   * @param {string} QueueUrl
   * @param {import('@workflow/world-postgres').WkfProxy['proxyStep']} send
   */
  async function lane(QueueUrl, send) {
    while (!closing.signal.aborted) {
      try {
        const { Messages = [] } = await sqs.receiveMessage(
          {
            QueueUrl,
            WaitTimeSeconds: LONGEST_POLL_SECONDS,
            VisibilityTimeout: visibilitySeconds,
            MessageSystemAttributeNames: ['ApproximateReceiveCount'],
          },
          { abortSignal: closing.signal },
        );
        for (const message of Messages) await deliver(QueueUrl, send, message);
      } catch (error) {
        if (closing.signal.aborted) return;
        onError(error);
        await sleep(1000);
      }
    }
  }

  /**
   * @param {string} QueueUrl
   * @param {import('@workflow/world-postgres').WkfProxy['proxyStep']} send
   * @param {SqsMessage} received
   */
  async function deliver(QueueUrl, send, { Body = '', ReceiptHandle, Attributes }) {
    const attempt = Number(Attributes?.ApproximateReceiveCount ?? 1);
    /** @param {number} VisibilityTimeout */
    const hide = (VisibilityTimeout) =>
      sqs.changeMessageVisibility({ QueueUrl, ReceiptHandle, VisibilityTimeout });
    // A step may run for hours; SQS itself ends this after twelve.
    const heartbeat = setInterval(
      () => hide(visibilitySeconds).catch(onError),
      visibilitySeconds * 500,
    );
    try {
      await send({ ...JSON.parse(Body), attempt });
    } catch {
      clearInterval(heartbeat);
      // The proxy's side has told why.
      await hide(Math.min(2 ** (attempt - 1), LONGEST_PAUSE_SECONDS));
      return;
    } finally {
      clearInterval(heartbeat);
    }
    await sqs.deleteMessage({ QueueUrl, ReceiptHandle });
  }

  return {
    pushStep: push(stepQueueUrl),
    pushFlow: push(flowQueueUrl),
    async start() {
      for (let i = 0; i < concurrency; i++) {
        lanes.push(lane(stepQueueUrl, (message) => proxy.proxyStep(message)));
        lanes.push(lane(flowQueueUrl, (message) => proxy.proxyWorkflow(message)));
      }
    },
    async close() {
      closing.abort();
      await Promise.race([Promise.all(lanes), sleep(CLOSE_LIMIT_MS, undefined, { ref: false })]);
    },
  };
}

/**
 * SQS as its documentation allows it to be, at its worst: messages come in any order, come twice, and
 * come back after they were deleted.
 *
 * @param {object} [options]
 * @param {number} [options.seed] the same one, the same misfortunes
 * @param {number} [options.misfortune] from 0 to 1: how probable each of them is
 * @param {boolean} [options.delays] whether DelaySeconds is heeded
 * @returns {Sqs}
 */
export function createInMemorySqs({ seed = 1, misfortune = 0.2, delays = true } = {}) {
  const random = generator(seed);
  const unlucky = () => random() < misfortune;

  /** @typedef {{ body: string, visibleAt: number, receives: number }} Stored */
  /** @type {Map<string, Map<string, Stored>>} */
  const queues = new Map();
  /** @param {string} url */
  function queue(url) {
    const messages = queues.get(url) ?? new Map();
    queues.set(url, messages);
    return messages;
  }
  const after = (/** @type {number} */ seconds) => performance.now() + seconds * 1000;

  return {
    async sendMessage({ QueueUrl, MessageBody, DelaySeconds = 0 }) {
      const allowed = Number.isInteger(DelaySeconds) && DelaySeconds >= 0;
      if (!allowed || DelaySeconds > LONGEST_DELAY_SECONDS) throw refusal('DelaySeconds');
      if (Buffer.byteLength(MessageBody) > LONGEST_BODY) throw refusal('MessageBody');
      const visibleAt = after(delays ? DelaySeconds : 0);
      queue(QueueUrl).set(randomUUID(), { body: MessageBody, visibleAt, receives: 0 });
    },

    async receiveMessage(
      { QueueUrl, WaitTimeSeconds = 0, VisibilityTimeout = 30 },
      { abortSignal } = {},
    ) {
      for (const deadline = after(WaitTimeSeconds); ; ) {
        abortSignal?.throwIfAborted();
        const visible = [...queue(QueueUrl)].filter(
          ([, { visibleAt }]) => visibleAt <= performance.now(),
        );
        if (visible.length > 0) {
          const [handle, message] = visible[Math.floor(random() * visible.length)];
          message.receives += 1;
          // Another server of the queue may not know yet that it was received.
          if (!unlucky()) message.visibleAt = after(VisibilityTimeout);
          const Attributes = { ApproximateReceiveCount: String(message.receives) };
          return { Messages: [{ Body: message.body, ReceiptHandle: handle, Attributes }] };
        }
        if (performance.now() >= deadline) return {};
        await sleep(10, undefined, { signal: abortSignal });
      }
    },

    async changeMessageVisibility({ QueueUrl, ReceiptHandle = '', VisibilityTimeout }) {
      const message = queue(QueueUrl).get(ReceiptHandle);
      if (!message) throw refusal('ReceiptHandle');
      message.visibleAt = after(VisibilityTimeout);
    },

    async deleteMessage({ QueueUrl, ReceiptHandle = '' }) {
      // A server that was away when a message was deleted brings it back.
      if (!unlucky()) queue(QueueUrl).delete(ReceiptHandle);
    },
  };
}

/** @param {string} parameter */
function refusal(parameter) {
  return Object.assign(new Error(`The value of ${parameter} is not allowed`), {
    name: 'InvalidParameterValue',
  });
}

/** Numbers from 0 to 1, the same ones for the same seed (mulberry32). @param {number} seed */
function generator(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let bits = Math.imul(state ^ (state >>> 15), 1 | state);
    bits = (bits + Math.imul(bits ^ (bits >>> 7), 61 | bits)) ^ bits;
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
}
