import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { root } from './app.mjs';

/**
 * @typedef {object} ProgramOptions
 * @property {Record<string, string | undefined>} env
 * @property {'module' | 'commonjs'} [type]
 * @property {string[]} [flags] of Node
 * @property {number} [timeout] in milliseconds
 */

/**
 * Runs a program in a process of its own, in the folder of the package, which it can import by name.
 *
 * @param {string} program
 * @param {ProgramOptions} options
 */
export async function runProgram(program, { env, type = 'module', flags = [], timeout = 60_000 }) {
  const args = [...flags, `--input-type=${type}`, '--eval', program];
  const child = spawn(process.execPath, args, {
    cwd: root,
    env: { PATH: process.env.PATH, ...env },
    timeout,
  });
  let output = '';
  let errors = '';
  child.stdout.setEncoding('utf8').on('data', (text) => {
    output += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text) => {
    errors += text;
  });
  const [code, signal] = await once(child, 'close');
  return { code, signal, output, errors };
}

/** The JSON that a program prints. @param {Parameters<typeof runProgram>} args */
export async function printed(...args) {
  const { code, signal, output, errors } = await runProgram(...args);
  assert.deepEqual([code, signal], [0, null], errors + output);
  return JSON.parse(output);
}
