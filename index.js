export { createPgBossHttpProxyQueue } from './lib/pgboss.js';
export { createHttpProxy } from './lib/proxies.js';
export { createWorld } from './lib/world.js';
