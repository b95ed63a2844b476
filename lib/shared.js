/**
 * What all Worlds of a process share. The package is loaded twice in a Next.js app, bundled from
 * instrumentation.ts and natively by the SDK, so this lives on `globalThis`.
 */
const KEY = Symbol.for('@workflow/world-postgres//shared');

/** @typedef {{ value: unknown, users: number, dispose: () => Promise<void> | void }} Entry */

/** @returns {Map<unknown, Entry>} */
function entries() {
  const holder = /** @type {Record<symbol, Map<unknown, Entry> | undefined>} */ (globalThis);
  holder[KEY] ??= new Map();
  return holder[KEY];
}

/**
 * Takes the value that others of the same key use, or makes it. The last release disposes of it.
 * @template T
 * @param {unknown} key
 * @param {() => T} create
 * @param {(value: T) => Promise<void> | void} dispose
 * @returns {{ value: T, release: () => Promise<void> }}
 */
export function share(key, create, dispose) {
  const all = entries();
  let entry = all.get(key);
  if (!entry) {
    const value = create();
    entry = { value, users: 0, dispose: () => dispose(value) };
    all.set(key, entry);
  }
  entry.users += 1;
  const held = entry;
  let released = false;
  return {
    value: /** @type {T} */ (held.value),
    async release() {
      if (released) return;
      released = true;
      held.users -= 1;
      if (held.users > 0) return;
      all.delete(key);
      await held.dispose();
    },
  };
}

/** The warnings that this process has logged already. */
const TOLD = Symbol.for('@workflow/world-postgres//told');

/**
 * Whether this is the first time in this process: for warnings that are given once.
 * @param {string} what
 */
export function isFirst(what) {
  const holder = /** @type {Record<symbol, Set<string> | undefined>} */ (globalThis);
  holder[TOLD] ??= new Set();
  const first = !holder[TOLD].has(what);
  holder[TOLD].add(what);
  return first;
}

/** Numbers for functions that are part of a key. */
const IDENTITIES = Symbol.for('@workflow/world-postgres//identities');

/**
 * The same text for the same function, and another one for any other. None has one of its own: a default,
 * which each copy of this package has, is one for all of them.
 * @param {Function | undefined} value
 */
export function identityOf(value) {
  if (typeof value !== 'function') return '';
  const holder =
    /** @type {Record<symbol, { of: WeakMap<Function, number>, count: number } | undefined>} */ (
      globalThis
    );
  holder[IDENTITIES] ??= { of: new WeakMap(), count: 0 };
  const identities = holder[IDENTITIES];
  if (!identities.of.has(value)) {
    identities.count += 1;
    identities.of.set(value, identities.count);
  }
  return String(identities.of.get(value));
}
