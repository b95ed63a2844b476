import { createCalls } from './calls.js';
import { call, callSync } from './errors.js';
import { logger } from './log.js';
import { native } from './native.js';
import { identityOf, share } from './shared.js';

/** @typedef {ReturnType<typeof openCore>} Core */
/** @typedef {import('../native/index.cjs').NodeReply} NodeReply */

/**
 * The core of this configuration, which all Worlds and drivers of the process share that log to the same
 * function: what a core has to tell, each of them is told.
 * @param {import('../native/index.cjs').Configuration} configuration
 * @param {(line: import('../index.js').LogLine) => void} [log]
 */
export function shareCore(configuration, log) {
  return share(
    `core ${configuration.coreKey} ${identityOf(log)}`,
    () => openCore(configuration, log),
    (core) => call(core.dispose()),
  );
}

/**
 * A core for one user alone.
 * @param {import('../native/index.cjs').Configuration} configuration
 * @param {(line: import('../index.js').LogLine) => void} [log]
 */
export function openCore(configuration, log) {
  return callSync(() => {
    const calls = createCalls();
    const core = new (native().Core)(configuration, logger(log), calls.native);
    return Object.assign(core, {
      calls,
      /** @param {import('../native/index.cjs').AppendRequest} request */
      append: async (request) =>
        /** @type {NodeReply} */ (await calls.make((call) => core.startAppend(call, request))),
      /** @param {string} name @param {string} runId @param {Uint8Array[]} chunks */
      appendChunks: (name, runId, chunks) =>
        calls.make((call) => core.startAppendChunks(call, name, runId, chunks)),
      async dispose() {
        try {
          await core.close();
        } finally {
          calls.close();
        }
      },
    });
  });
}
