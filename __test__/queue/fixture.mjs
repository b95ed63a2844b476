import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { createWorld } from '../../index.js';
import { setup } from '../../lib/setup.js';
import { ulid } from '../storage/fixture.mjs';

/** @typedef {import('../support/database.mjs').TestDatabase} TestDatabase */
/** @typedef {import('../storage/fixture.mjs').World} World */
/** @typedef {(message: any, meta: any) => Promise<any> | any} Handler */

export const TOKEN = 'token-of-the-tests';

/** @template T @param {() => T | Promise<T>} look @returns {Promise<NonNullable<T>>} */
export async function until(look) {
  for (const deadline = Date.now() + 60_000; ; await sleep(20)) {
    const found = await look();
    if (found) return found;
    assert.ok(Date.now() < deadline, `this did not come true: ${look}`);
  }
}

/** A promise and what resolves it. */
export function gate() {
  let open = () => {};
  const opened = new Promise((resolve) => {
    open = () => resolve(undefined);
  });
  return { open, opened };
}

/** The mark of each answer of a World's handler. */
export const OF_WORLD = { 'x-workflow-world': 'postgres' };

/** Whether a request asks if deliveries would be taken. @param {Request | import('node:http').IncomingMessage} request */
export const isProbe = ({ headers }) =>
  new Headers(/** @type {any} */ (headers)).has('x-workflow-probe');

/**
 * A function in the place of a World's handler: it answers probes, and its answers have the mark.
 * @param {(request: Request) => any} answer
 */
export function asWorld(answer) {
  return (/** @type {Request} */ request) => {
    const answered = isProbe(request) ? Response.json({ ok: true }) : answer(request);
    return answered instanceof Response ? marked(answered) : Promise.resolve(answered).then(marked);
  };
}

/** @param {any} answer */
function marked(answer) {
  if (answer instanceof Response) answer.headers.set('x-workflow-world', 'postgres');
  return answer;
}

/** Whether a message is in the queue no more. @param {TestDatabase} database @param {string} messageId */
export async function isGone(database, messageId) {
  const { rows } = await database.pool.query(
    `SELECT FROM ${database.queueSchema}.job WHERE data ->> 'messageId' = $1`,
    [messageId],
  );
  return rows.length === 0;
}

/**
 * Queues of a test's own, and what makes Worlds for them. Another pool size is another core, as if in
 * another process.
 *
 * @param {import('node:test').TestContext} t
 * @param {TestDatabase} database
 */
export function place(t, { url, schema, queueSchema }) {
  const jobPrefix = `t${ulid()}_`;
  let poolSize = 4;
  /** @param {Record<string, unknown>} options */
  return async (options) => {
    // As `workflow-postgres-setup --job-prefix` does.
    await setup({ connectionString: url, schema, queueSchema, jobPrefix, ...options });
    const world = createWorld({
      connectionString: url,
      schema,
      queueSchema,
      jobPrefix,
      securityToken: TOKEN,
      maxPoolSize: poolSize++,
      ...options,
    });
    t.after(() => world.close());
    return /** @type {World} */ (/** @type {any} */ (world));
  };
}

/**
 * Routes as the SDK makes them.
 *
 * @param {{ step?: Handler, flow?: Handler, token?: string, namespace?: string }} handlers
 */
export function routes({ step, flow, token = TOKEN, namespace = '' }) {
  const { createQueueHandler } = createWorld({ securityToken: token });
  const nothing = async () => {};
  return {
    step: createQueueHandler(/** @type {any} */ (`__${namespace}wkf_step_`), step ?? nothing),
    flow: createQueueHandler(/** @type {any} */ (`__${namespace}wkf_workflow_`), flow ?? nothing),
  };
}
