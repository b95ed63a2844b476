export { createQStashQueue } from './lib/qstash.js';
export {
  createPostgresUpstashWorld,
  createPostgresUpstashWorld as createWorld,
} from './lib/upstash.js';
