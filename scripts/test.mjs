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
  if (wanted.length === 0) run('cargo', ['test', '--quiet']);
  // All suites, whatever one of them finds: a run of this takes long.
  const failed = suites().filter(({ name, concurrency, files }) => {
    console.log(`\n=== ${name}`);
    return !succeeds(process.execPath, ['--test', `--test-concurrency=${concurrency}`, ...files]);
  });
  if (failed.length > 0) {
    process.exitCode = 1;
    console.error(`\nFailed: ${failed.map(({ name }) => name).join(', ')}`);
  }
} finally {
  await postgres.stop();
}

/** Suites that measure or kill things run alone; the rest share the machine. */
function suites() {
  const alone = ['sdk', 'next', 'faults'];
  const folders = readdirSync('__test__').filter(
    (name) => wanted.length === 0 || wanted.includes(name),
  );
  const files = (/** @type {string} */ folder) =>
    readdirSync(join('__test__', folder))
      .filter((name) => name.endsWith('.test.mjs'))
      .map((name) => join('__test__', folder, name));
  const together = folders.filter((name) => !alone.includes(name)).flatMap(files);
  return [
    { name: 'behaviour', concurrency: 2, files: together },
    ...folders
      .filter((name) => alone.includes(name))
      .map((name) => ({ name, concurrency: 1, files: files(name) })),
  ].filter(({ files: list }) => list.length > 0);
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
