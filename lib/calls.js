import { native } from './native.js';

/** @typedef {import('../native/index.cjs').Calls} NativeCalls */
/** @typedef {Partial<import('../native/index.cjs').NodeReply>} Reply */
/**
 * A call that is not answered yet. `calls` is only held.
 * @typedef {{ resolve: (reply: Reply) => void, reject: (error: Error) => void, calls: NativeCalls }} Call
 */
/** @typedef {{ calls?: WeakRef<NativeCalls> }} Holder */

/**
 * The frequent calls of a core: numbered here, answered together.
 */
export function createCalls() {
  /** @type {Map<number, Call>} */
  const open = new Map();
  let last = 0;
  // Whoever awaits an answer expects the process to live until it comes.
  const keepAlive = setInterval(nothing, 2 ** 30).unref();
  /** @type {Holder} */
  const holder = {};
  const calls = new (native().Calls)(answering(open, keepAlive, holder));
  holder.calls = new WeakRef(calls);

  return {
    native: calls,
    /**
     * @param {(call: number) => void} start
     * @returns {Promise<Reply>}
     */
    make(start) {
      last = (last + 1) % 2 ** 32;
      const call = last;
      start(call);
      return new Promise((resolve, reject) => {
        if (open.size === 0) keepAlive.ref();
        open.set(call, { resolve, reject, calls });
      });
    },
    close: () => clearInterval(keepAlive),
  };
}

/**
 * Settles what was answered. Apart from the rest, because the core holds it: were the calls in its scope,
 * nobody could ever collect them.
 * @param {Map<number, Call>} open
 * @param {NodeJS.Timeout} keepAlive
 * @param {Holder} holder
 */
function answering(open, keepAlive, holder) {
  return () => {
    for (const { call, error, ...reply } of holder.calls?.deref()?.take() ?? []) {
      const caller = open.get(call);
      open.delete(call);
      if (error === undefined) caller?.resolve(reply);
      else caller?.reject(new Error(error));
    }
    if (open.size === 0) keepAlive.unref();
  };
}

function nothing() {}
