import { execFile, fork } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { deserialize, serialize } from 'node:v8';

export const root = fileURLToPath(new URL('../..', import.meta.url));
const app = path.join(root, '__test__/sdk/app');
const cache = path.join(root, '__test__/sdk/.cache');

/**
 * @typedef {object} App
 * @property {string} url
 * @property {number} pid
 * @property {<T = any>(method: string, ...args: unknown[]) => Promise<T>} call of server.mjs
 * @property {(signal?: NodeJS.Signals) => Promise<void>} kill and wait for the exit
 * @property {() => Promise<void>} stop in order: the World is closed first
 * @property {() => string} logs
 * @property {() => boolean} running
 * @property {() => string} exit how it ended
 */

/** The `workflow` command of the SDK. */
export const cli = path.join(root, 'node_modules/workflow/bin/run.js');

/** @param {string} directory @returns {Promise<string[]>} */
async function contentsOf(directory) {
  const names = (await readdir(directory)).sort();
  return Promise.all(
    names.map(async (name) => name + (await readFile(path.join(directory, name), 'utf8'))),
  );
}

/**
 * Compiles the workflows of the fixture with the SDK's own build command, once per content.
 *
 * @returns {Promise<string>} directory with flow.cjs, step.cjs, webhook.mjs and workflows.mjs
 */
export async function buildApp() {
  const sources = path.join(app, 'workflows');
  const sdk = await readFile(path.join(path.dirname(cli), '../package.json'), 'utf8');
  const self = await readFile(fileURLToPath(import.meta.url), 'utf8');
  const key = createHash('sha256').update([...(await contentsOf(sources)), sdk, self].join('\0'));
  const built = path.join(cache, key.digest('hex').slice(0, 16));
  if (await readFile(path.join(built, 'workflows.mjs')).catch(() => undefined)) return built;

  await mkdir(cache, { recursive: true });
  const work = await mkdtemp(path.join(cache, 'build-'));
  await cp(sources, path.join(work, 'workflows'), { recursive: true });
  const { WORKFLOW_TARGET_WORLD: _, ...env } = process.env;
  await promisify(execFile)(process.execPath, [cli, 'build'], { cwd: work, env });

  const output = path.join(work, '.well-known/workflow/v1');
  // The command writes CommonJS and ES modules under one extension.
  await rename(path.join(output, 'flow.js'), path.join(work, 'flow.cjs'));
  await rename(path.join(output, 'step.js'), path.join(work, 'step.cjs'));
  await rename(path.join(output, 'webhook.js'), path.join(work, 'webhook.mjs'));
  const { workflows } = JSON.parse(await readFile(path.join(output, 'manifest.json'), 'utf8'));
  const ids = Object.fromEntries(
    Object.values(workflows)
      .flatMap((file) => Object.entries(file))
      .map(([name, { workflowId }]) => [name, workflowId]),
  );
  await writeFile(path.join(work, 'workflows.mjs'), `export const ids = ${JSON.stringify(ids)};\n`);
  // Another test process may have been faster.
  await rename(work, built).catch(() => rm(work, { recursive: true }));
  return built;
}

/** @returns {Promise<Record<string, string>>} workflow ids by function name */
export async function workflowIds() {
  return (await import(path.join(await buildApp(), 'workflows.mjs'))).ids;
}

/**
 * Starts a process that serves the compiled workflows and, unless `start` is false, works.
 *
 * @param {object} options
 * @param {Record<string, string | undefined>} options.env
 * @param {boolean} [options.start]
 * @param {number} [options.port]
 * @param {string} [options.directory] of compiled workflows, where they are not the fixture's
 * @param {import('./namespace.mjs').Namespace} [options.network] where the process lives
 * @returns {Promise<App>}
 */
export async function startApp({ env, start = true, port = 0, directory, network }) {
  const child = fork(path.join(app, 'server.mjs'), [directory ?? (await buildApp())], {
    cwd: root,
    env: {
      ...process.env,
      ...env,
      PORT: String(port),
      TEST_START: String(start),
      ...(network && { TEST_HOST: '0.0.0.0' }),
    },
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    ...(network && { execPath: 'ip', execArgv: [...network.exec, process.execPath] }),
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding('utf8').on('data', (text) => {
      output = (output + text).slice(-100_000);
    });
  }
  const exit = once(child, 'exit');
  const running = () => child.exitCode === null && child.signalCode === null;

  const [message] = await Promise.race([once(child, 'message'), exit]);
  if (typeof message?.port !== 'number') throw new Error(`the app did not start\n${output}`);
  const url = `http://${network?.inside ?? '127.0.0.1'}:${message.port}`;

  /** @param {NodeJS.Signals} signal */
  const end = async (signal) => {
    if (running()) child.kill(signal);
    await exit;
  };
  return {
    url,
    pid: /** @type {number} */ (child.pid),
    async call(method, ...args) {
      const response = await fetch(`${url}/rpc`, {
        method: 'POST',
        body: serialize({ method, args }),
      });
      const { value, error } = deserialize(new Uint8Array(await response.arrayBuffer()));
      if (error) throw Object.assign(new Error(error.message), error);
      return value;
    },
    kill: (signal = 'SIGKILL') => end(signal),
    stop: () => end('SIGTERM'),
    logs: () => output,
    running,
    exit: () => child.signalCode ?? `code ${child.exitCode}`,
  };
}
