import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { freePort } from './postgres.mjs';

/**
 * Why tests that need Redis must be skipped on this machine; false where it is installed, or where
 * REDIS_REQUIRED says that they must not be skipped.
 *
 * @returns {string | false}
 */
export function withoutRedis() {
  if (process.env.REDIS_REQUIRED) return false;
  if (spawnSync('redis-server', ['--version']).status === 0) return false;
  return 'redis-server is not on the PATH: apt-get install redis-server, or brew install redis';
}

/**
 * A Redis of our own on a free loopback port that keeps nothing, gone when this process ends.
 *
 * @param {{ port?: number }} [options]
 * @returns {Promise<{ url: string, port: number, stop: () => Promise<void> }>}
 */
export async function startRedis({ port = 0 } = {}) {
  const directory = await mkdtemp(path.join(tmpdir(), 'redis-'));
  port ||= await freePort();
  const settings = { port, bind: '127.0.0.1', dir: directory, save: '', appendonly: 'no' };
  const args = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, `${value}`]);
  // The shell stays for one thing: when this process is gone, however it ended, its input is at its
  // end, and so is the server.
  const script = 'redis-server "$@" & cat >/dev/null; kill $!; wait $!; rm -rf "$0"';
  const shell = spawn('sh', ['-c', script, directory, ...args], {
    detached: true,
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  let output = '';
  shell.stdout.setEncoding('utf8').on('data', (text) => {
    output = (output + text).slice(-10_000);
  });
  const exited = once(shell, 'exit');
  const stop = async () => {
    shell.stdin.end();
    await exited;
    await rm(directory, { recursive: true, force: true });
  };
  for (const deadline = Date.now() + 30_000; !(await accepts(port)); await sleep(20)) {
    if (Date.now() < deadline) continue;
    await stop();
    throw new Error(`redis-server did not start\n${output}`);
  }
  // A test that forgets to stop it may end all the same.
  shell.unref();
  for (const stream of [shell.stdin, shell.stdout]) {
    /** @type {import('node:net').Socket} */ (/** @type {unknown} */ (stream)).unref();
  }
  return { url: `redis://127.0.0.1:${port}`, port, stop };
}

/** @param {number} port @returns {Promise<boolean>} */
function accepts(port) {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.on('connect', () => resolve(true)).on('error', () => resolve(false));
    socket.on('connect', () => socket.destroy());
  });
}
