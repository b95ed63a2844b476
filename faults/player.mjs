import { setTimeout as sleep } from 'node:timers/promises';

/** @typedef {import('./workload.mjs').Run} Run */
/** @typedef {ReturnType<typeof player>} Player */

/** What a call on a run that has ended is answered with. */
const OVER = [409, 410];

/**
 * The calls of a client in one scene. Each is repeated until it has an answer, or `signal` ends the scene.
 *
 * @param {{ client: import('../__test__/support/app.mjs').App, runs: Run[], scene: Run['scene'], signal: AbortSignal, tokens: () => string }} options
 */
export function player({ client, runs, scene, signal, tokens }) {
  const over = new Promise((_resolve, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason));
  });
  over.catch(() => {});

  /** @template T @param {() => Promise<T>} attempt @param {number} [pause] @returns {Promise<T>} */
  const insist = async (attempt, pause = 500) => {
    for (;;) {
      signal.throwIfAborted();
      try {
        return await Promise.race([attempt(), /** @type {Promise<never>} */ (over)]);
      } catch {
        await sleep(signal.aborted ? 0 : pause);
      }
    }
  };
  /** Asks until the answer is truthy. @template T @param {() => Promise<T>} ask @param {number} [pause] */
  const until = (ask, pause) =>
    insist(async () => (await ask()) || Promise.reject(new Error('not yet')), pause);

  /** @param {string} kind @param {string} workflow @param {unknown[]} args @param {Run['accepts']} accepts */
  const startOnce = async (kind, workflow, args, accepts) => {
    const runId = /** @type {string} */ (await client.call('start', workflow, args));
    /** @type {Run} */
    const run = { kind, runId, since: Date.now(), accepts, scene };
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

    /**
     * Resumes each hook of the run once, some time after it has appeared, until the run has ended.
     *
     * @param {Run} run
     * @param {() => number} pause before a hook is resumed, in milliseconds
     */
    async callBack({ runId }, pause) {
      /** @type {Set<string>} */
      const called = new Set();
      await until(async () => {
        /** @type {{ token: string }[]} */
        const hooks = await client.call('hooks', runId);
        for (const { token } of hooks) {
          if (called.has(token)) continue;
          called.add(token);
          // The branch may have gone on without it.
          void sleep(pause()).then(() => client.call('resumeHook', token, 1).catch(() => {}));
        }
        return (await client.call('run', runId)).completedAt;
      }, 100);
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
