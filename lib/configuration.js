import { callSync, invalid } from './errors.js';
import { native } from './native.js';

/** Options that the core understands; the rest (queueFactory, entrypoints) is JavaScript's. */
const OPTIONS = [
  'connectionString',
  'listenConnectionString',
  'securityToken',
  'schema',
  'queueSchema',
  'maxPoolSize',
  'statementCache',
  'jobPrefix',
  'queueConcurrency',
  'keepCompleted',
  'baseUrl',
  'port',
  'namespace',
  'listen',
  'idleTimeoutSeconds',
  'qstash',
];
const VARIABLES = /^(WORKFLOW_|QSTASH_|DATABASE_URL$|PORT$|NODE_ENV$)/;

/**
 * Resolves options against the environment of this moment.
 * @param {object} options
 */
export function configure(options) {
  if (typeof options !== 'object' || options === null) {
    throw invalid('The options must be an object');
  }
  const given = Object.fromEntries(
    Object.entries(options).filter(
      ([name, value]) => OPTIONS.includes(name) && value !== undefined,
    ),
  );
  const environment = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => VARIABLES.test(name)),
  );
  const { Configuration } = native();
  return callSync(() => new Configuration(JSON.stringify(given), JSON.stringify(environment)));
}
