// A World that stores nothing: the floor of the benchmark. What a run costs in it is the cost of the
// SDK and of loopback HTTP. It checks only what the workflows of the benchmark need to be right.
import { Agent, request } from 'node:http';

/** @typedef {Record<string, any>} Entity */
/** @typedef {{ run: Entity, events: Entity[], steps: Map<string, Entity>, waits: Map<string, Entity> }} Log */
/** @typedef {{ chunks: Uint8Array[], closed: boolean, readers: Set<() => void> }} Stream */
/**
 * @typedef {object} Message
 * @property {string} id
 * @property {string} key one message per key waits or is delivered at a time
 * @property {string} queueName
 * @property {string} body
 * @property {number} attempt
 * @property {boolean} delivering
 * @property {number} due
 * @property {number} [again] when to deliver it once more, asked for while it was being delivered
 * @property {NodeJS.Timeout} [timer]
 */

const SPEC_VERSION = 3;
const STEP = /^__(?:\w+_)?wkf_step_/;
const concurrency = Number(process.env.WORKFLOW_POSTGRES_WORKER_CONCURRENCY ?? 10);

// The SDK makes two Worlds of one process: one that stores, one that receives.
/** @type {Map<string, Log>} */
const logs = new Map();
/** @type {Map<string, Entity>} */
const hooks = new Map();
/** @type {Map<string, Stream>} */
const streams = new Map();
/** @type {Map<string, Message>} */
const messages = new Map();
/** @type {Message[]} */
const ready = [];
const agent = new Agent({ keepAlive: true, maxSockets: concurrency });
let lastNumber = 0;
let delivering = 0;
let started = false;

export function createWorld() {
  return {
    specVersion: SPEC_VERSION,
    streamFlushIntervalMs: 0,
    getDeploymentId: async () => 'floor',
    runs: { get: async (/** @type {string} */ runId) => logOf(runId).run },
    events: { create, list },
    hooks: { getByToken },
    queue,
    createQueueHandler,
    writeToStream: async (
      /** @type {string} */ name,
      /** @type {string} */ _runId,
      /** @type {Uint8Array} */ chunk,
    ) => append(name, [chunk]),
    writeToStreamMulti: async (
      /** @type {string} */ name,
      /** @type {string} */ _runId,
      /** @type {Uint8Array[]} */ chunks,
    ) => append(name, chunks),
    closeStream,
    readFromStream,
    getStreamInfo,
    async start() {
      started = true;
      deliverReady();
    },
    async close() {
      started = false;
      agent.destroy();
    },
  };
}

/** @param {string} name of the error, by which the SDK knows it @param {string} message */
const failure = (name, message) => Object.assign(new Error(message), { name });

/** @param {string} prefix */
const newId = (prefix) => `${prefix}_${String(++lastNumber).padStart(26, '0')}`;

/** @param {string} runId */
function logOf(runId) {
  const log = logs.get(runId);
  if (!log) throw failure('WorkflowRunNotFoundError', `no run ${runId}`);
  return log;
}

/**
 * What each event does to what it is about. They give the entity, under its name in the answer.
 *
 * @type {Record<string, (log: Log, event: Entity) => Entity>}
 */
const transitions = {
  run_created: ({ run }) => ({ run }),
  run_started(log, { createdAt }) {
    log.run = { ...log.run, status: 'running', startedAt: createdAt, updatedAt: createdAt };
    const { events, run } = log;
    return { run, events: [...events], cursor: events[events.length - 1].eventId, hasMore: false };
  },
  run_completed: (log, event) => endRun(log, event, 'completed'),
  run_failed: (log, event) => endRun(log, event, 'failed'),
  run_cancelled: (log, event) => endRun(log, event, 'cancelled'),
  step_created({ run, steps }, { correlationId, eventData, createdAt }) {
    if (steps.has(correlationId)) throw failure('EntityConflictError', `${correlationId} exists`);
    const { stepName, input } = eventData;
    const step = { runId: run.runId, stepId: correlationId, stepName, input, status: 'pending' };
    steps.set(correlationId, { ...step, attempt: 0, createdAt, updatedAt: createdAt });
    return { step: steps.get(correlationId) };
  },
  step_started: (log, event) =>
    changeStep(log, event, ({ attempt, startedAt = event.createdAt }) => ({
      status: 'running',
      attempt: attempt + 1,
      startedAt,
      retryAfter: undefined,
    })),
  step_completed: (log, event) =>
    changeStep(log, event, () => ({
      status: 'completed',
      output: event.eventData.result,
      completedAt: event.createdAt,
    })),
  step_failed: (log, event) =>
    changeStep(log, event, () => ({ status: 'failed', completedAt: event.createdAt })),
  step_retrying: (log, event) => changeStep(log, event, () => ({ status: 'pending' })),
  hook_created({ run }, { correlationId, eventData, specVersion, createdAt }) {
    const { token, metadata, isWebhook } = eventData;
    if (hooks.has(token)) throw failure('EntityConflictError', `${token} is taken`);
    const nobody = { ownerId: '', projectId: '', environment: '' };
    const hook = { ...nobody, runId: run.runId, hookId: correlationId, token, metadata, isWebhook };
    hooks.set(token, { ...hook, specVersion, createdAt });
    return { hook };
  },
  hook_received(_log, { eventData }) {
    const hook = hooks.get(eventData.token);
    if (!hook) throw failure('HookNotFoundError', eventData.token);
    return { hook };
  },
  hook_disposed(_log, { eventData }) {
    if (!hooks.delete(eventData.token)) throw failure('HookNotFoundError', eventData.token);
    return {};
  },
  wait_created({ waits }, { correlationId, eventData }) {
    if (waits.has(correlationId)) throw failure('EntityConflictError', `${correlationId} exists`);
    const wait = { waitId: correlationId, status: 'waiting', resumeAt: eventData.resumeAt };
    waits.set(correlationId, wait);
    return { wait };
  },
  wait_completed({ waits }, { correlationId }) {
    const wait = waits.get(correlationId);
    if (wait?.status !== 'waiting')
      throw failure('EntityConflictError', `${correlationId} is over`);
    waits.set(correlationId, { ...wait, status: 'completed' });
    return { wait: waits.get(correlationId) };
  },
};

/** @param {Log} log @param {Entity} event @param {(step: Entity) => Entity} change */
function changeStep({ steps }, { correlationId, createdAt }, change) {
  const step = steps.get(correlationId);
  if (!step || step.completedAt) throw failure('EntityConflictError', `${correlationId} is over`);
  const changed = { ...step, ...change(step), updatedAt: createdAt };
  steps.set(correlationId, changed);
  return { step: changed };
}

/** @param {Log} log @param {Entity} event @param {string} status */
function endRun(log, { eventData, createdAt }, status) {
  const { output, error } = eventData ?? {};
  log.run = { ...log.run, status, output, error, completedAt: createdAt, updatedAt: createdAt };
  for (const { token, runId } of hooks.values()) {
    if (runId === log.run.runId) hooks.delete(token);
  }
  return { run: log.run };
}

/** @param {string} runId @param {Entity} data of the event that says so */
function createRun(runId, { specVersion, eventData }) {
  const createdAt = new Date();
  const { deploymentId, workflowName, input, executionContext } = eventData;
  const about = { runId, deploymentId, workflowName, input, executionContext, specVersion };
  /** @type {Log} */
  const log = {
    run: { ...about, status: 'pending', createdAt, updatedAt: createdAt },
    events: [],
    steps: new Map(),
    waits: new Map(),
  };
  logs.set(runId, log);
  return log;
}

/** @param {string} runId @param {Entity} data */
async function create(runId, data) {
  const { eventType } = data;
  if (eventType === 'run_created') {
    if (logs.has(runId)) throw failure('EntityConflictError', `${runId} exists`);
    createRun(runId, data);
  }
  const log = logOf(runId);
  const { run, events } = log;
  if (eventType === 'run_started' && run.status === 'running') {
    return { run, events: [...events], cursor: events[events.length - 1].eventId, hasMore: false };
  }
  if (run.completedAt && (eventType === 'run_started' || eventType === 'step_started')) {
    throw failure('RunExpiredError', `${runId} has ended`);
  }
  if (run.completedAt && !eventType.startsWith('step_')) {
    throw failure('EntityConflictError', `${runId} has ended`);
  }
  /** @type {Entity} */
  const event = { ...data, runId, eventId: newId('wevt'), createdAt: new Date() };
  if (eventType === 'run_started') delete event.eventData;
  // The answer to run_started contains the log, with this event in it.
  events.push(event);
  try {
    return { event, ...transitions[eventType](log, event) };
  } catch (error) {
    events.splice(events.indexOf(event), 1);
    throw error;
  }
}

/** @param {{ runId: string, pagination?: { cursor?: string } }} params */
async function list({ runId, pagination }) {
  const { events } = logOf(runId);
  const cursor = pagination?.cursor;
  const data = cursor ? events.filter(({ eventId }) => eventId > cursor) : [...events];
  return { data, cursor: data[data.length - 1]?.eventId ?? null, hasMore: false };
}

/** @param {string} token */
async function getByToken(token) {
  const hook = hooks.get(token);
  if (!hook) throw failure('HookNotFoundError', token);
  // The SDK puts into it what it has decoded.
  return { ...hook };
}

/**
 * @param {string} queueName
 * @param {Entity} message
 * @param {{ idempotencyKey?: string, delaySeconds?: number }} [options]
 */
async function queue(queueName, message, { idempotencyKey, delaySeconds = 0 } = {}) {
  const id = newId('msg');
  const key = idempotencyKey ?? (message.replayDivergence ? id : (message.runId ?? id));
  const due = Date.now() + delaySeconds * 1000;
  const same = messages.get(key);
  if (same && idempotencyKey) return { messageId: same.id };
  const body = JSON.stringify(message, tagBytes);
  if (!same) {
    /** @type {Message} */
    const added = { id, key, queueName, body, attempt: 1, delivering: false, due };
    messages.set(key, added);
    schedule(added, due);
    return { messageId: id };
  }
  same.body = body;
  if (same.delivering) same.again = Math.min(same.again ?? due, due);
  else if (due < same.due) schedule(same, due);
  return { messageId: same.id };
}

/** @param {Message} message @param {number} due */
function schedule(message, due) {
  clearTimeout(message.timer);
  message.due = due;
  const wait = due - Date.now();
  const isDue = () => {
    ready.push(message);
    deliverReady();
  };
  if (wait > 0) message.timer = setTimeout(isDue, wait);
  else isDue();
}

function deliverReady() {
  while (started && delivering < concurrency) {
    const message = ready.shift();
    if (!message) return;
    delivering += 1;
    message.delivering = true;
    deliver(message)
      .catch(() => undefined)
      .then((answer) => settle(message, answer))
      .finally(() => {
        delivering -= 1;
        deliverReady();
      });
  }
}

/** @param {Message} message @param {{ timeoutSeconds?: number } | undefined} answer */
function settle(message, answer) {
  message.delivering = false;
  const { again } = message;
  delete message.again;
  let next = again;
  if (!answer) {
    next = Date.now() + 1000 * 2 ** Math.min(message.attempt, 10);
    message.attempt += 1;
  } else {
    message.attempt = 1;
    const { timeoutSeconds } = answer;
    if (timeoutSeconds !== undefined) {
      next = Math.min(again ?? Number.POSITIVE_INFINITY, Date.now() + timeoutSeconds * 1000);
    }
  }
  if (next === undefined) messages.delete(message.key);
  else schedule(message, next);
}

/** @param {Message} message @returns {Promise<{ timeoutSeconds?: number } | undefined>} */
function deliver({ id, queueName, body, attempt }) {
  return new Promise((resolve, reject) => {
    const outgoing = request(
      {
        agent,
        host: '127.0.0.1',
        port: process.env.PORT,
        path: `/.well-known/workflow/v1/${STEP.test(queueName) ? 'step' : 'flow'}`,
        method: 'POST',
        headers: {
          'content-type': 'application/json',
          'content-length': Buffer.byteLength(body),
          'x-vqs-queue-name': encodeURIComponent(queueName),
          'x-vqs-message-id': id,
          'x-vqs-message-attempt': attempt,
        },
      },
      (incoming) => {
        let text = '';
        incoming.setEncoding('utf8');
        incoming.on('data', (part) => {
          text += part;
        });
        incoming.on('end', () =>
          resolve(incoming.statusCode === 200 ? JSON.parse(text) : undefined),
        );
        incoming.on('error', reject);
      },
    );
    outgoing.on('error', reject);
    outgoing.end(body);
  });
}

/**
 * @param {string} _prefix
 * @param {(message: unknown, meta: object) => Promise<void | { timeoutSeconds: number }>} handler
 */
function createQueueHandler(_prefix, handler) {
  /** @param {Request} request */
  return async (request) => {
    const { headers } = request;
    const text = await request.text();
    const meta = {
      queueName: decodeURIComponent(headers.get('x-vqs-queue-name') ?? ''),
      messageId: headers.get('x-vqs-message-id'),
      attempt: Number(headers.get('x-vqs-message-attempt')),
    };
    try {
      const message = text.includes('"__type"') ? JSON.parse(text, untagBytes) : JSON.parse(text);
      return Response.json((await handler(message, meta)) ?? { ok: true });
    } catch (error) {
      return Response.json(String(error), { status: 500 });
    }
  };
}

/** @param {string} _key @param {unknown} value */
function tagBytes(_key, value) {
  if (!(value instanceof Uint8Array)) return value;
  const { buffer, byteOffset, byteLength } = value;
  const data = Buffer.from(buffer, byteOffset, byteLength).toString('base64');
  return { __type: 'Uint8Array', data };
}

/** @param {string} _key @param {any} value */
function untagBytes(_key, value) {
  return value?.__type === 'Uint8Array' ? new Uint8Array(Buffer.from(value.data, 'base64')) : value;
}

/** @param {string} name */
function streamOf(name) {
  const stream = streams.get(name) ?? { chunks: [], closed: false, readers: new Set() };
  streams.set(name, stream);
  return stream;
}

/** @param {string} name @param {Uint8Array[]} chunks */
function append(name, chunks) {
  const stream = streamOf(name);
  if (!stream.closed) stream.chunks.push(...chunks);
  for (const wake of stream.readers) wake();
}

/** @param {string} name */
async function closeStream(name) {
  const stream = streamOf(name);
  stream.closed = true;
  for (const wake of stream.readers) wake();
}

/** @param {string} name @param {number} [startIndex] */
async function readFromStream(name, startIndex = 0) {
  const stream = streamOf(name);
  let next = startIndex < 0 ? Math.max(0, stream.chunks.length + startIndex) : startIndex;
  let wake = () => {};
  return new ReadableStream(
    {
      async pull(controller) {
        while (next >= stream.chunks.length && !stream.closed) {
          await new Promise((resolve) => {
            wake = () => resolve(undefined);
            stream.readers.add(wake);
          });
          stream.readers.delete(wake);
        }
        // A copy: the SDK transfers the memory of a chunk away.
        if (next < stream.chunks.length) controller.enqueue(stream.chunks[next++].slice());
        else controller.close();
      },
      cancel() {
        stream.readers.delete(wake);
      },
    },
    { highWaterMark: 0 },
  );
}

/** @param {string} name */
async function getStreamInfo(name) {
  const { chunks, closed } = streamOf(name);
  return { tailIndex: chunks.length - 1, done: closed };
}
