import { setTimeout as sleep } from 'node:timers/promises';

/** @typedef {import('./workload.mjs').Run} Run */
/** @typedef {ReturnType<typeof player>} Player */

/** What a call on a run that has ended is answered with. */
const OVER = [409, 410];

/**
 * What a client does, against all odds: until it has an answer.
 *
 * @param {{ client: import('../__test__/support/app.mjs').App, runs: Run[], signal: AbortSignal, tokens: () => string }} options
 */
export function player({ client, runs, signal, tokens }) {
  /** @template T @param {() => Promise<T>} attempt @returns {Promise<T>} */
  const insist = async (attempt) => {
    for (;;) {
      try {
        return await attempt();
      } catch (error) {
        if (signal.aborted) throw error;
        await sleep(500);
      }
    }
  };
  /** Asks until the answer is truthy. @template T @param {() => Promise<T>} ask */
  const until = (ask) => insist(async () => (await ask()) || Promise.reject(new Error('not yet')));

  /** @param {string} kind @param {string} workflow @param {unknown[]} args @param {Run['accepts']} accepts */
  const startOnce = async (kind, workflow, args, accepts) => {
    const runId = /** @type {string} */ (await client.call('start', workflow, args));
    /** @type {Run} */
    const run = { kind, runId, since: Date.now(), accepts };
    runs.push(run);
    return run;
  };
  /** @type {typeof startOnce} */
  const start = (...args) => insist(() => startOnce(...args));

  return {
    tokens,
    insist,

    start,

    /**
     * A try whose answer was lost may have been accepted: each has a token of its own, lest they meet.
     *
     * @param {string} kind
     * @param {string} workflow whose first argument is a token
     * @param {unknown[]} rest of its arguments
     * @param {(token: string) => Run['accepts']} accepts
     */
    async startWithToken(kind, workflow, rest, accepts) {
      return insist(async () => {
        const token = tokens();
        return { token, run: await startOnce(kind, workflow, [token, ...rest], accepts(token)) };
      });
    },

    /** Until one of its hooks has the token. @param {Run} run @param {string} token */
    hook: ({ runId }, token) =>
      until(async () => {
        const hooks = await client.call('hooks', runId);
        return hooks.some((/** @type {{ token: string }} */ hook) => hook.token === token);
      }),

    /**
     * @param {string} token
     * @param {unknown} payload
     * @returns {Promise<{ accepted: boolean, tries: number }>} a try that failed may have been accepted
     */
    async resume(token, payload) {
      let tries = 0;
      const accepted = await insist(async () => {
        tries++;
        return client.call('resumeHook', token, payload).then(
          () => true,
          (error) => (error.name === 'HookNotFoundError' ? false : Promise.reject(error)),
        );
      });
      return { accepted, tries };
    },

    /** @param {Run} run */
    ends: ({ runId }) => until(async () => (await client.call('run', runId)).completedAt),

    /** Whether it was accepted; a run that has ended refuses. @param {Run} run @returns {Promise<boolean>} */
    cancel: ({ runId }) =>
      insist(() =>
        client.call('cancel', runId).then(
          () => true,
          (error) => (OVER.includes(error.status) ? false : Promise.reject(error)),
        ),
      ),

    /** Reads along; goes on where a reader failed. @param {Run} run @param {number[][]} parts */
    async follow(run, parts) {
      const live = /** @type {unknown[]} */ ([]);
      run.stream = { parts, live };
      await insist(async () => {
        const { values, error } = await client.call('followStream', run.runId, live.length);
        live.push(...values);
        if (error) throw new Error(error);
      });
    },
  };
}
