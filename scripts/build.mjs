// Builds the native addon into native/: `npm run build`, or `npm run build:debug` while developing.
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { checkPrerequisites } from './support/prerequisites.mjs';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));
checkPrerequisites();
const { values } = parseArgs({ options: { debug: { type: 'boolean', default: false } } });

const fresh = join('target', 'native');
rmSync(fresh, { recursive: true, force: true });
const { status } = spawnSync(
  process.execPath,
  [
    'node_modules/@napi-rs/cli/dist/cli.js',
    'build',
    '--platform',
    ...(values.debug ? [] : ['--release']),
    ...['--features', 'node'],
    ...['--output-dir', fresh],
    ...['--js', 'index.cjs'],
    ...['--dts', 'index.d.cts'],
  ],
  { stdio: 'inherit' },
);
if (status !== 0) process.exit(status ?? 1);
// Renamed, not copied: a process that runs the old binary keeps its file.
mkdirSync('native', { recursive: true });
for (const file of readdirSync(fresh)) renameSync(join(fresh, file), join('native', file));
