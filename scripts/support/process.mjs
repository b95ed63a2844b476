import { spawn } from 'node:child_process';
import { once } from 'node:events';

/**
 * @typedef {object} StartOptions
 * @property {string | URL} [cwd]
 * @property {Record<string, string>} [env] on top of ours
 * @property {boolean} [show] print to our own output, instead of keeping the output
 * @property {AbortSignal} [signal] ends the process
 */
/** @typedef {ReturnType<typeof start>} Started */

/** @param {string} command @param {string[]} args @param {StartOptions} [options] */
export function start(command, args, { cwd, env, show, signal } = {}) {
  const stdio = show ? 'inherit' : 'pipe';
  const child = spawn(command, args, {
    cwd,
    env: { ...process.env, ...env },
    stdio: ['ignore', stdio, stdio],
    shell: process.platform === 'win32' && command === 'npm',
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding('utf8').on('data', (text) => {
      output = (output + text).slice(-20_000);
    });
  }
  const kill = () => child.kill();
  signal?.addEventListener('abort', kill);
  const ended = once(child, 'close')
    .then(([code]) => code)
    .finally(() => signal?.removeEventListener('abort', kill));
  return {
    ended,
    output: () => output.trim(),
    hasEnded: () => child.exitCode !== null || child.signalCode !== null,
    stop: async () => {
      kill();
      const timer = setTimeout(() => child.kill('SIGKILL'), 15_000);
      await ended.finally(() => clearTimeout(timer));
    },
  };
}

/**
 * @param {string} command
 * @param {string[]} args
 * @param {StartOptions} [options]
 * @returns {Promise<string>} what it printed
 */
export async function run(command, args, options) {
  const program = start(command, args, options);
  const code = await program.ended;
  if (code !== 0) throw new Error(`${command} ${args.join(' ')} failed\n${program.output()}`);
  return program.output();
}
