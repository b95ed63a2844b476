import { callSync, invalid } from './errors.js';
import { reading } from './input.js';
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
  'queueConcurrencyLimit',
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
  const given = reading(() =>
    JSON.stringify(
      Object.fromEntries(Object.entries(options).filter(([name]) => OPTIONS.includes(name))),
      refuseFunctions,
    ),
  );
  const environment = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => VARIABLES.test(name)),
  );
  const { Configuration } = native();
  return callSync(() => new Configuration(given, JSON.stringify(environment)));
}

/**
 * JSON would leave them out, and the default would be taken.
 * @param {string} name
 * @param {unknown} value
 */
function refuseFunctions(name, value) {
  if (typeof value === 'function' || typeof value === 'symbol') {
    throw invalid(`The option ${name} cannot be a ${typeof value}`);
  }
  return value;
}
