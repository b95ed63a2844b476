export { events, hooks, runs, steps, streams } from './lib/drizzle.js';
export { createPgBossFunctionProxyQueue, createPgBossHttpProxyQueue } from './lib/pgboss.js';
export { createFunctionProxy, createHttpProxy } from './lib/proxies.js';
export { createWorld } from './lib/world.js';
