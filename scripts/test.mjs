// Everything that must hold, from a fresh clone on: `npm test`. One name of a suite, or several, run
// just those: `npm test -- storage sdk`.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { checkPrerequisites } from './support/prerequisites.mjs';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));
checkPrerequisites();
const { positionals: wanted } = parseArgs({ allowPositionals: true });

if (!existsSync('node_modules')) run('npm', ['install', '--no-audit', '--no-fund']);
if (wanted.length === 0) {
  run('cargo', ['fmt', '--check']);
  run('cargo', ['clippy', '--all-targets', '--', '-D', 'warnings']);
  run('cargo', ['clippy', '--all-targets', '--features', 'node', '--', '-D', 'warnings']);
}
if (wanted.length === 0 || !existsSync('native')) run('npm', ['run', '--silent', 'build']);
if (wanted.length === 0) run('npm', ['run', '--silent', 'lint']);

const { startPostgres } = await import('./support/postgres.mjs');
const postgres = await startPostgres();
process.env.TEST_POSTGRES_URL = postgres.url;
try {
  // All suites, whatever one of them finds: a run of this takes long.
  const failed = suites().filter(({ name, command, args }) => {
    console.log(`\n=== ${name}`);
    return !succeeds(command, args);
  });
  if (failed.length > 0) {
    process.exitCode = 1;
    console.error(`\nFailed: ${failed.map(({ name }) => name).join(', ')}`);
  }
} finally {
  await postgres.stop();
}

/** Suites that kill things or build apps run alone; the rest share the machine. */
function suites() {
  const alone = ['faults', 'next', 'sdk', 'serverless'];
  const folders = readdirSync('__test__').filter(
    (name) => wanted.length === 0 || wanted.includes(name),
  );
  const files = (/** @type {string} */ folder) =>
    readdirSync(join('__test__', folder))
      .filter((name) => name.endsWith('.test.mjs'))
      .map((name) => join('__test__', folder, name));
  const node = (/** @type {number} */ concurrency, /** @type {string[]} */ paths) => ({
    command: process.execPath,
    args: ['--test', `--test-concurrency=${concurrency}`, ...paths],
  });
  const together = folders.filter((name) => !alone.includes(name)).flatMap(files);
  return [
    ...(wanted.length === 0
      ? [{ name: 'core', command: 'cargo', args: ['test', '--no-fail-fast'] }]
      : []),
    ...(together.length > 0 ? [{ name: 'behaviour', ...node(2, together) }] : []),
    ...folders
      .filter((name) => alone.includes(name))
      .map((name) => ({ name, ...node(1, files(name)) })),
  ];
}

/**
 * @param {string} command
 * @param {string[]} args
 */
function succeeds(command, args) {
  console.log(`\n$ ${command} ${args.join(' ')}`);
  const { status, error } = spawnSync(command, args, { stdio: 'inherit' });
  if (error) throw error;
  return status === 0;
}

/**
 * @param {string} command
 * @param {string[]} args
 */
function run(command, args) {
  if (succeeds(command, args)) return;
  process.exitCode = 1;
  throw new Error(`${command} failed`);
}
