import { worldError } from './errors.js';
import { tables } from './tables.js';

const ORM = 'drizzle-orm';

/** @typedef {import('../schema.js').WorkflowSchema} Tables */

/** @type {Tables | undefined} */
let loaded;

// Drizzle knows its objects by global symbols, so these work with whichever copy of it the app uses.
export const runs = lazy('runs');
export const events = lazy('events');
export const steps = lazy('steps');
export const hooks = lazy('hooks');
export const streams = lazy('streams');

/**
 * A table that needs drizzle-orm only once it is touched: most apps do not have it.
 * @template {keyof Tables} Name
 * @param {Name} name
 * @returns {Tables[Name]}
 */
function lazy(name) {
  /** @returns {any} */
  const table = () => {
    loaded ??= tables(drizzle());
    return loaded[name];
  };
  /** @type {any} */
  const standIn = {};
  return new Proxy(standIn, {
    get: (_, key) => Reflect.get(table(), key),
    has: (_, key) => Reflect.has(table(), key),
    ownKeys: () => Reflect.ownKeys(table()),
    getOwnPropertyDescriptor: (_, key) => Reflect.getOwnPropertyDescriptor(table(), key),
    getPrototypeOf: () => Reflect.getPrototypeOf(table()),
  });
}

/**
 * Bundlers must not see this require, or every app would need drizzle-orm.
 * @returns {typeof import('drizzle-orm/pg-core')}
 */
function drizzle() {
  const { createRequire } = process.getBuiltinModule('node:module');
  let missing;
  for (const base of [() => import.meta.url, () => `${process.cwd()}/index.js`]) {
    try {
      return createRequire(base())(`${ORM}/pg-core`);
    } catch (error) {
      if (/** @type {NodeJS.ErrnoException} */ (error).code !== 'MODULE_NOT_FOUND') throw error;
      missing = error;
    }
  }
  throw worldError(
    {
      name: 'WorkflowWorldError',
      code: 'NOT_INSTALLED',
      message:
        'runs, events, steps, hooks and streams of @workflow/world-postgres are Drizzle tables and ' +
        `need ${ORM}: npm install ${ORM} (in a bundled app, import them from ` +
        '@workflow/world-postgres/schema, which the bundler follows)',
    },
    missing,
  );
}
