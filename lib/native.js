import { trace } from './trace.cjs';

/** @typedef {typeof import('../native/index.cjs')} Native */

const PACKAGE = '@workflow/world-postgres';

/** @type {Native | undefined} */
let loaded;

/**
 * Loads the addon on first use: a build that only evaluates routes never needs it.
 *
 * Bundlers must not see this require, or they would try to bundle a binary: `getBuiltinModule` is
 * opaque to them. From the working directory first, so that a bundled copy of this file and the SDK's
 * own copy load the same one.
 * @returns {Native}
 */
export function native() {
  loaded ??= load();
  return loaded;
}

/** @returns {Native} */
function load() {
  const { createRequire } = process.getBuiltinModule('node:module');
  const failures = [];
  for (const base of [() => `${process.cwd()}/index.js`, () => import.meta.url]) {
    try {
      return createRequire(base())(`${PACKAGE}/native`);
    } catch (error) {
      failures.push(error);
    }
  }
  throw new AggregateError(
    failures,
    `The native addon of ${PACKAGE} could not be loaded for ${process.platform}-${process.arch}: ` +
      failures.map((failure) => String(failure).split('\n')[0]).join('; '),
  );
}

// Never called. Kept reachable so that file tracing (`output: 'standalone'`) follows both: Turbopack
// reads trace(), nft follows the import.
Reflect.set(globalThis, Symbol.for(`${PACKAGE}//trace`), [
  trace,
  () =>
    import(/* webpackIgnore: true */ /* turbopackIgnore: true */ '@workflow/world-postgres/native'),
]);
