import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { parseArgs } from 'node:util';
import { configure } from './configuration.js';
import { openCore } from './core.js';
import { call, worldError } from './errors.js';

const USAGE = `Usage: workflow-postgres-setup [--schema NAME] [--queue-schema NAME] [--job-prefix PREFIX]

Creates or updates the tables of @workflow/world-postgres: safe to repeat, and to run from several
processes at once. Reads .env; the database is WORKFLOW_POSTGRES_URL, or DATABASE_URL, or
postgres://world:world@localhost:5432/world. Options have environment variables of the same meaning:
WORKFLOW_POSTGRES_SCHEMA, WORKFLOW_POSTGRES_QUEUE_SCHEMA, WORKFLOW_POSTGRES_JOB_PREFIX. Where the app
has WORKFLOW_QUEUE_NAMESPACE set, so must this command.`;

/**
 * The command. Returns its exit code.
 * @param {string[]} args
 */
export async function main(args) {
  try {
    const { values } = parseArgs({
      args,
      options: {
        help: { type: 'boolean', short: 'h' },
        schema: { type: 'string' },
        'queue-schema': { type: 'string' },
        'job-prefix': { type: 'string' },
      },
    });
    if (values.help) {
      console.log(USAGE);
      return 0;
    }
    // What is set already wins over the file.
    if (existsSync('.env')) process.loadEnvFile('.env');
    const options = {
      schema: values.schema,
      queueSchema: values['queue-schema'],
      jobPrefix: values['job-prefix'],
    };
    await setup(options, console.log);
    return 0;
  } catch (error) {
    console.error(`Setup failed: ${error instanceof Error ? error.message : String(error)}`);
    return 1;
  }
}

/**
 * Sets a database up.
 * @param {object} [options] those of createWorld()
 * @param {(line: string) => void} [report] told what was done
 */
export async function setup(options = {}, report = () => {}) {
  const configuration = configure(options);
  report(`Database: ${configuration.redactedConnectionString}`);
  const core = openCore(configuration);
  try {
    const { schema, created, applied, version } = JSON.parse(await call(core.migrate()));
    report(
      applied.length > 0
        ? `Schema "${schema}": ${created ? 'created' : 'updated'} (${applied.join(', ')})`
        : `Schema "${schema}": up to date (version ${version})`,
    );
    await installPgBoss(core, configuration.queueSchema, report);
    const queues = await call(core.createQueues());
    report(`Queues: ${queues.join(', ')}`);
    report('Ready.');
  } finally {
    await core.dispose();
  }
}

/**
 * pg-boss's tables come from pg-boss itself; only its SQL is taken, and run over our connection.
 * @param {import('./core.js').Core} core
 * @param {string} schema
 * @param {(line: string) => void} report
 */
async function installPgBoss(core, schema, report) {
  const { getConstructionPlans, getMigrationPlans } = await import('pg-boss');
  const known = createRequire(import.meta.url)('pg-boss/package.json').pgboss.schema;
  const found = await queueSchema(core);
  if (found.kind === 'absent') {
    const script = getConstructionPlans(schema, { createSchema: !found.schema });
    const made = await call(core.installQueueSchema(script));
    report(
      `Schema "${schema}": ${made ? 'filled' : 'filled by another process'} (pg-boss ${known})`,
    );
  }
  const { kind, version, ours } = await queueSchema(core);
  if (kind === 'foreign') {
    throw worldError({
      name: 'WorkflowWorldError',
      status: 500,
      code: 'NOT_SET_UP',
      message: `Schema "${schema}" exists, but pg-boss is not in it: nothing was changed there. Choose another name with WORKFLOW_POSTGRES_QUEUE_SCHEMA, or remove schema "${schema}" if nothing needs it.`,
    });
  }
  if (version < known && ours) {
    // A transaction, and after it indexes that are built concurrently, each a statement of its own.
    for (const part of getMigrationPlans(schema, version).split(/^(?=-- inlined from )/m)) {
      await call(core.migrateQueueSchema(part));
    }
    report(`Schema "${schema}": updated from pg-boss ${version} to ${known}`);
  } else if (version !== known) {
    report(
      `Schema "${schema}": ${ours ? 'made by a newer' : 'of your own'} pg-boss (${version}; this package brings ${known}), left as it is`,
    );
  } else if (found.kind !== 'absent') {
    report(`Schema "${schema}": up to date (pg-boss ${known})`);
  }
}

/** @param {import('./core.js').Core} core */
async function queueSchema(core) {
  return JSON.parse(await call(core.queueSchema()));
}
