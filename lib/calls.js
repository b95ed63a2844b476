import { native } from './native.js';

/** @typedef {import('../native/index.cjs').NodeReply} NodeReply */

/**
 * The frequent calls of a core: numbered here, answered together.
 */
export function createCalls() {
  /** @type {Map<number, { resolve: (reply: Partial<NodeReply>) => void, reject: (error: Error) => void }>} */
  const open = new Map();
  let last = 0;
  // Whoever awaits an answer expects the process to live until it comes.
  const keepAlive = setInterval(() => {}, 2 ** 30).unref();

  const calls = new (native().Calls)(() => {
    for (const { call, error, ...reply } of calls.take()) {
      const caller = open.get(call);
      open.delete(call);
      if (error === undefined) caller?.resolve(reply);
      else caller?.reject(new Error(error));
    }
    if (open.size === 0) keepAlive.unref();
  });

  return {
    native: calls,
    /**
     * @param {(call: number) => void} start
     * @returns {Promise<Partial<NodeReply>>}
     */
    make(start) {
      last = (last + 1) % 2 ** 32;
      const call = last;
      start(call);
      return new Promise((resolve, reject) => {
        if (open.size === 0) keepAlive.ref();
        open.set(call, { resolve, reject });
      });
    },
    close: () => clearInterval(keepAlive),
  };
}
