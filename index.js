export { events, hooks, runs, steps, streams } from './lib/drizzle.js';
export { createPgBossFunctionProxyQueue, createPgBossHttpProxyQueue } from './lib/pgboss.js';
export { createFunctionProxy, createHttpProxy } from './lib/proxies.js';
export { createQStashQueue } from './lib/qstash.js';
export { createPostgresUpstashWorld } from './lib/upstash.js';
export { createWorld } from './lib/world.js';
