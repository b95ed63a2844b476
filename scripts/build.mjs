// Builds the native addon into native/: `npm run build`, or `npm run build:debug` while developing.
import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { checkPrerequisites } from './support/prerequisites.mjs';

checkPrerequisites();
const { values } = parseArgs({ options: { debug: { type: 'boolean', default: false } } });
// A binary of another build left behind would be packed, or loaded, in place of the new one.
rmSync('native', { recursive: true, force: true });
const build = spawnSync(
  process.execPath,
  [
    'node_modules/@napi-rs/cli/dist/cli.js',
    'build',
    '--platform',
    ...(values.debug ? [] : ['--release']),
    ...['--features', 'node'],
    ...['--output-dir', 'native'],
    ...['--js', 'index.cjs'],
    ...['--dts', 'index.d.cts'],
  ],
  { stdio: 'inherit' },
);
process.exit(build.status ?? 1);
