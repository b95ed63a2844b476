import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { createWorld } from '../../index.js';
import { describeRun, violations } from '../support/invariants.mjs';

/** @typedef {import('../support/database.mjs').TestDatabase} TestDatabase */
/** @typedef {Record<string, any>} Item what comes back is looked at here, so its types take nothing for granted */
/** @typedef {{ data: Item[], cursor: string | null, hasMore: boolean }} Page */
/** @typedef {{ event: any, run: any, step: any, hook: any, wait: any, events: Item[], cursor: string, hasMore: boolean }} Created */
/** @typedef {(...args: any[]) => Promise<Item>} Get */
/** @typedef {(params?: Item) => Promise<Page>} List */
/**
 * @typedef {Omit<import('../../index.js').PostgresWorld, 'events' | 'runs' | 'steps' | 'hooks' | 'queue'> & {
 *   events: { create: (runId: string | null, event: any, params?: Item) => Promise<Created>, get: Get, list: List, listByCorrelationId: List },
 *   runs: { get: Get, list: List },
 *   steps: { get: Get, list: List },
 *   hooks: { get: Get, getByToken: Get, list: List },
 *   queue: (name: string, message: unknown, options?: Item) => Promise<{ messageId: string }>,
 * }} World
 */

/**
 * A World that was never started: storage alone. Worlds of different pool sizes share nothing, as if
 * each was in a process of its own.
 *
 * @param {TestDatabase} database
 * @param {{ maxPoolSize?: number, connectionString?: string, securityToken?: string }} [options]
 * @returns {World}
 */
export function openWorld(database, options = {}) {
  const { url, schema, queueSchema } = database;
  const world = createWorld({
    connectionString: url,
    schema,
    queueSchema,
    maxPoolSize: 4,
    ...options,
  });
  return /** @type {any} */ (world);
}

/** @param {string} text */
export const bytes = (text) => new TextEncoder().encode(text);

const DIGITS = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';

/** @param {number} [time] */
export function ulid(time = Date.now()) {
  let text = '';
  for (let rest = time; text.length < 10; rest = Math.floor(rest / 32)) {
    text = DIGITS[rest % 32] + text;
  }
  for (const byte of randomBytes(16)) text += DIGITS[byte % 32];
  return text;
}

/** @param {string} id an event id */
export function ulidTime(id) {
  const digits = [...id.slice(id.lastIndexOf('_') + 1).slice(0, 10)];
  return digits.reduce((time, digit) => time * 32 + DIGITS.indexOf(digit), 0);
}

/** @param {Record<string, any>} [more] */
export const runCreated = (more = {}) => ({
  eventType: 'run_created',
  specVersion: 3,
  eventData: {
    deploymentId: 'dpl',
    workflowName: 'workflow//./flow//main',
    input: bytes('input'),
    executionContext: { workflowCoreVersion: '4.8.9' },
  },
  ...more,
});

/**
 * A run, its ids made as the SDK makes them.
 *
 * @param {World} world
 * @param {Record<string, any>} [event] parts of run_created
 */
export async function pendingRun(world, event) {
  const { run } = await world.events.create(null, runCreated(event));
  return run.runId;
}

/** @param {World} world */
export async function runningRun(world) {
  const runId = await pendingRun(world);
  await world.events.create(runId, { eventType: 'run_started', specVersion: 3 });
  return runId;
}

/**
 * @param {string} eventType
 * @param {string} [correlationId]
 * @param {Record<string, any>} [eventData]
 * @returns {Record<string, any>}
 */
export const event = (eventType, correlationId, eventData) => ({
  eventType,
  specVersion: 3,
  ...(correlationId !== undefined && { correlationId }),
  ...(eventData !== undefined && { eventData }),
});

/** @param {string} stepId @param {Record<string, any>} [eventData] */
export const stepCreated = (stepId, eventData) =>
  event('step_created', stepId, {
    stepName: 'step//./a//s',
    workflowName: 'w',
    input: bytes('arguments'),
    ...eventData,
  });

/** @param {World} world @param {string} runId */
export async function pendingStep(world, runId) {
  const stepId = `step_${ulid()}`;
  await world.events.create(runId, stepCreated(stepId));
  return stepId;
}

/** @param {World} world @param {string} runId */
export async function runningStep(world, runId) {
  const stepId = await pendingStep(world, runId);
  await world.events.create(runId, event('step_started', stepId));
  return stepId;
}

/** @param {World} world @param {string} runId @param {{ token?: string, metadata?: Uint8Array, isWebhook?: boolean }} [data] */
export async function liveHook(world, runId, data = {}) {
  const hookId = `hook_${ulid()}`;
  const token = data.token ?? `token-${ulid()}`;
  await world.events.create(
    runId,
    event('hook_created', hookId, { isWebhook: false, ...data, token }),
  );
  return { hookId, token };
}

/** @param {World} world @param {string} runId @param {Date} [resumeAt] */
export async function openWait(world, runId, resumeAt = new Date(Date.now() + 60_000)) {
  const waitId = `wait_${ulid()}`;
  await world.events.create(runId, event('wait_created', waitId, { resumeAt }));
  return { waitId, resumeAt };
}

/**
 * What the promise rejects with.
 *
 * @param {Promise<unknown>} promise
 * @returns {Promise<any>}
 */
export async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  return assert.fail('the call was not refused');
}

/**
 * @param {Promise<unknown>} promise
 * @param {string} name
 * @param {number | undefined} status
 * @returns {Promise<any>}
 */
export async function assertRefused(promise, name, status) {
  const error = await refusal(promise);
  assert.deepEqual([error.name, error.status], [name, status], error.stack);
  assert.ok(error instanceof Error && error.message.length > 0);
  return error;
}

/** @param {World} world @param {string} runId */
export async function logOf(world, runId) {
  /** @type {Item[]} */
  const all = [];
  /** @type {string | null | undefined} */
  let cursor;
  for (;;) {
    /** @type {Page} */
    const page = await world.events.list({ runId, pagination: { cursor } });
    all.push(...page.data);
    if (!page.hasMore) return all;
    cursor = page.cursor;
  }
}

/** @param {World} world @param {string} runId */
export const typesOf = async (world, runId) =>
  (await logOf(world, runId)).map(({ eventType }) => eventType);

/** Rules about messages: these tests work without a queue. */
const OF_THE_QUEUE = /message/;

/**
 * @param {TestDatabase} database
 * @param {string[]} [except] runs that are outside the rules, for they are of spec version 1
 */
export async function assertLogIsSound(database, except = []) {
  const found = (await violations(database)).filter(
    ({ rule, runId }) => !OF_THE_QUEUE.test(rule) && !except.includes(runId),
  );
  if (found.length === 0) return;
  const lines = found.slice(0, 10).map((v) => `${v.rule}: ${v.runId} ${JSON.stringify(v.details)}`);
  assert.fail(
    `${found.length} violations\n${lines.join('\n')}\n${await describeRun(database, found[0].runId)}`,
  );
}
