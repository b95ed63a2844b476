import { callSync, invalid, worldError } from './errors.js';
import { reading } from './input.js';
import { native } from './native.js';
import { rootCertificates } from './roots.js';

/** Options that the core understands, and their types; the rest (queueFactory, entrypoints) is JavaScript's. */
const OPTIONS = {
  connectionString: 'string',
  listenConnectionString: 'string',
  securityToken: 'string',
  schema: 'string',
  queueSchema: 'string',
  maxPoolSize: 'number',
  statementCache: 'boolean',
  jobPrefix: 'string',
  queueConcurrency: 'number',
  queueConcurrencyLimit: 'number',
  keepCompleted: 'boolean',
  maxLostLeases: 'number',
  baseUrl: 'string',
  httpProxy: 'string',
  port: 'number',
  namespace: 'string',
  listen: 'boolean',
  idleTimeoutSeconds: 'number',
  qstash: 'object',
};
const QSTASH_OPTIONS = {
  token: 'string',
  targetUrl: 'string',
  currentSigningKey: 'string',
  nextSigningKey: 'string',
  baseUrl: 'string',
  retries: 'number',
  retryDelay: 'string',
  maxDelaySeconds: 'number',
};
const VARIABLES = /^(WORKFLOW_|QSTASH_|DATABASE_URL$|PORT$|NODE_ENV$)/;

/**
 * Resolves options against the environment of this moment.
 * @param {object} options
 */
export function configure(options) {
  if (typeof options !== 'object' || options === null) {
    throw invalid('The options must be an object');
  }
  const { known, qstash } = reading(() => ({
    known: pick(options, OPTIONS),
    qstash: pick(Object(Reflect.get(options, 'qstash')), QSTASH_OPTIONS),
  }));
  checkTypes(known, OPTIONS, '');
  checkTypes(qstash, QSTASH_OPTIONS, 'qstash.');
  const given = JSON.stringify({ ...known, ...(known.qstash && { qstash }) });
  const environment = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => VARIABLES.test(name)),
  );
  const { Configuration, trust } = native();
  const configuration = callSync(() => new Configuration(given, JSON.stringify(environment)));
  if (configuration.needsRoots) trust(rootCertificates());
  return configuration;
}

/**
 * The options of these names that are given.
 * @param {object} options
 * @param {Record<string, string>} types
 * @returns {Record<string, any>}
 */
function pick(options, types) {
  const isGiven = (/** @type {[string, unknown]} */ [name, value]) =>
    Object.hasOwn(types, name) && value !== undefined && value !== null;
  return Object.fromEntries(Object.entries(options).filter(isGiven));
}

/**
 * An option of another type is named, and never quoted: it may be a password.
 * @param {Record<string, unknown>} options
 * @param {Record<string, string>} types
 * @param {string} prefix
 */
function checkTypes(options, types, prefix) {
  for (const [name, value] of Object.entries(options)) {
    const type = types[name];
    if (typeof value === type) continue;
    throw worldError({
      name: 'WorkflowWorldError',
      status: 500,
      code: 'CONFIGURATION',
      message: `The option ${prefix}${name} must be of type ${type}, not ${typeof value}`,
    });
  }
}
