import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { freePort } from './postgres.mjs';

/** Another one than that of the PATH, which Debian keeps out of it for ordinary users. */
const program = process.env.PGBOUNCER ?? 'pgbouncer';
const PATH = `${process.env.PATH}:/usr/sbin`;

/** @returns {number[] | undefined} its major and minor version; undefined where it is not installed */
function version() {
  const { stdout } = spawnSync(program, ['--version'], {
    encoding: 'utf8',
    env: { ...process.env, PATH },
  });
  return /PgBouncer (\d+)\.(\d+)/.exec(stdout)?.slice(1).map(Number);
}

/**
 * Why tests that need PgBouncer must be skipped on this machine; false where it is installed, or where
 * PGBOUNCER_REQUIRED says that they must not be skipped.
 *
 * @returns {string | false}
 */
export function withoutPgBouncer() {
  if (process.env.PGBOUNCER_REQUIRED || version()) return false;
  return 'pgbouncer is not installed: apt-get install pgbouncer, or brew install pgbouncer';
}

/** From 1.21 on, clients' prepared statements go with them from one server connection to another. */
export function knowsPreparedStatements() {
  const [major, minor] = version() ?? [0, 0];
  return major > 1 || minor >= 21;
}

/**
 * A PgBouncer of our own in transaction mode on a free loopback port, gone when this process ends. It
 * asks nobody for a password, and gives each transaction the server connection that has rested longest.
 *
 * @param {string} url of the server behind it
 * @param {object} [options]
 * @param {number} [options.servers] connections to it, at most
 * @param {number} [options.preparedStatements] that it keeps track of, where it can
 * @returns {Promise<{ url: string, stop: () => Promise<void> }>}
 */
export async function startPgBouncer(url, { servers = 2, preparedStatements = 0 } = {}) {
  const server = new URL(url);
  const directory = await mkdtemp(path.join(tmpdir(), 'pgbouncer-'));
  const port = await freePort();
  const database = Object.entries({
    host: server.hostname,
    port: server.port || 5432,
    dbname: server.pathname.slice(1),
    user: decodeURIComponent(server.username),
    password: decodeURIComponent(server.password),
  });
  const settings = {
    listen_addr: '127.0.0.1',
    listen_port: port,
    unix_socket_dir: '',
    auth_type: 'any',
    pool_mode: 'transaction',
    default_pool_size: servers,
    min_pool_size: servers,
    server_round_robin: 1,
    max_client_conn: 500,
    ...(knowsPreparedStatements() && { max_prepared_statements: preparedStatements }),
  };
  const lines = [
    '[databases]',
    `* = ${database.map(([name, value]) => `${name}='${`${value}`.replaceAll("'", "''")}'`).join(' ')}`,
    '[pgbouncer]',
    ...Object.entries(settings).map(([name, value]) => `${name} = ${value}`),
  ];
  const file = path.join(directory, 'pgbouncer.ini');
  await writeFile(file, `${lines.join('\n')}\n`, { mode: 0o600 });

  // It refuses to run as root; `nobody` exists wherever root does.
  const user = process.getuid?.() === 0 ? ['-u', 'nobody'] : [];
  // The shell stays for one thing: when this process is gone, however it ended, its input is at its
  // end, and so is the pooler.
  const script = '"$@" & cat >/dev/null; kill $!; wait $!; rm -rf "$0"';
  const shell = spawn('sh', ['-c', script, directory, program, ...user, file], {
    env: { ...process.env, PATH },
    detached: true,
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  let output = '';
  for (const stream of [shell.stdout, shell.stderr]) {
    stream.setEncoding('utf8').on('data', (text) => {
      output = (output + text).slice(-10_000);
    });
  }
  const exited = once(shell, 'exit');
  const stop = async () => {
    shell.ref();
    shell.stdin.end();
    await exited;
    await rm(directory, { recursive: true, force: true });
  };
  for (const deadline = Date.now() + 30_000; !(await accepts(port)); await sleep(20)) {
    if (Date.now() < deadline) continue;
    await stop();
    throw new Error(`pgbouncer did not start\n${output}`);
  }
  // A test that forgets to stop it may end all the same.
  shell.unref();
  for (const stream of [shell.stdin, shell.stdout, shell.stderr]) {
    /** @type {import('node:net').Socket} */ (/** @type {unknown} */ (stream)).unref();
  }
  return { url: `postgres://anybody@127.0.0.1:${port}${server.pathname}`, stop };
}

/** @param {number} port @returns {Promise<boolean>} */
function accepts(port) {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.on('connect', () => resolve(true)).on('error', () => resolve(false));
    socket.on('connect', () => socket.destroy());
  });
}
