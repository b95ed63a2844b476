import { createHash } from 'node:crypto';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import pg from 'pg';

/**
 * What a window of time has cost. CPU in seconds.
 *
 * @typedef {object} Cost
 * @property {number} seconds
 * @property {number} nodeCpu of the app's process, all threads
 * @property {number} postgresCpu of all processes of the server, without those that only measure
 * @property {number} foreignCpu of whatever else runs on this machine
 * @property {number} statements as clients send them
 * @property {number} transactions that write, subtransactions included
 * @property {number} walBytes without the images of pages that were written first since a checkpoint
 * @property {Statement[]} top the most expensive statements
 * @property {WalRecord[]} wal the kinds of records with the most bytes
 */
/** @typedef {{ query: string, calls: number, seconds: number }} Statement */
/** @typedef {{ record: string, count: number, bytes: number, images: number }} WalRecord */

/** Linux gives the CPU times of /proc to user space in this unit. */
const ticksPerSecond = 100;
const observer = 'observer';

/**
 * Watches one database from a role and a connection of its own, which no figure contains.
 *
 * @param {object} options
 * @param {string} options.url of the database
 * @param {number} options.postmaster
 * @param {number} options.app pid
 */
export async function createMeter({ url, postmaster, app }) {
  const client = new pg.Client({
    connectionString: String(Object.assign(new URL(url), { username: observer })),
  });
  await client.connect();
  await client.query('CREATE EXTENSION IF NOT EXISTS pg_stat_statements');
  await client.query('CREATE EXTENSION IF NOT EXISTS pg_walinspect');
  const { rows } = await client.query('SELECT pg_backend_pid() AS pid');
  const own = rows[0].pid;

  async function cpu() {
    const [machine, node, postgres] = await Promise.all([
      machineTicks(),
      processTicks(app),
      serverTicks(postmaster, own),
    ]);
    const { user, system } = process.cpuUsage();
    const benchmark = ((user + system) / 1e6) * ticksPerSecond;
    return { machine, node, postgres, benchmark };
  }

  async function counters() {
    const { rows } = await client.query({
      name: 'counters',
      text: `SELECT pg_current_wal_lsn() AS lsn, pg_current_wal_lsn() - '0/0' AS wal,
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xid`,
    });
    const [{ lsn, wal, xid }] = rows;
    return { lsn, wal: Number(wal), xid: Number(xid) };
  }

  async function statements() {
    const { rows } = await client.query(
      `SELECT query, calls::float8, total_exec_time / 1000 AS seconds FROM pg_stat_statements
        WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND userid <> current_user::regrole ORDER BY total_exec_time DESC`,
    );
    return /** @type {Statement[]} */ (rows);
  }

  /** @param {string} from @param {string} to */
  async function walRecords(from, to) {
    const { rows } = await client.query(
      `SELECT "resource_manager/record_type" AS record, count::float8, record_size::float8 AS bytes,
          fpi_size::float8 AS images
        FROM pg_get_wal_stats($1, $2, true) WHERE count > 0 ORDER BY record_size DESC`,
      [from, to],
    );
    return /** @type {WalRecord[]} */ (rows);
  }

  return {
    /** The cost from now on, until the function that this gives is called. */
    async begin() {
      await client.query('SELECT pg_stat_statements_reset()');
      const [before, cpuBefore] = [await counters(), await cpu()];
      const start = performance.now();
      return async () => {
        const seconds = (performance.now() - start) / 1000;
        const [cpuAfter, after, all] = [await cpu(), await counters(), await statements()];
        const records = after.wal > before.wal ? await walRecords(before.lsn, after.lsn) : [];
        const images = records.reduce((sum, { images }) => sum + images, 0);
        /** @param {keyof typeof cpuBefore} of */
        const used = (of) => (cpuAfter[of] - cpuBefore[of]) / ticksPerSecond;
        /** @type {Cost} */
        const cost = {
          seconds,
          nodeCpu: used('node'),
          postgresCpu: used('postgres'),
          foreignCpu: used('machine') - used('node') - used('postgres') - used('benchmark'),
          statements: all.reduce((sum, { query, calls }) => sum + (isCheck(query) ? 0 : calls), 0),
          transactions: after.xid - before.xid,
          walBytes: after.wal - before.wal - images,
          top: all.slice(0, 40),
          wal: records.slice(0, 20),
        };
        return cost;
      };
    },

    async connections() {
      const { rows } = await client.query(
        `SELECT count(*)::int FROM pg_stat_activity
          WHERE datname = current_database() AND usename <> current_user`,
      );
      return /** @type {number} */ (rows[0].count);
    },

    /** Forgets the peak of the app's memory so far. */
    resetPeak: () => writeFile(`/proc/${app}/clear_refs`, '5'),

    /** The most memory that the app has had since, in bytes. */
    async peak() {
      const status = await readFile(`/proc/${app}/status`, 'utf8');
      return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024;
    },

    /** @param {string} text @param {unknown[]} [values] */
    query: async (text, values) => (await client.query(text, values)).rows,

    close: () => client.end(),
  };
}

/** @param {import('pg').Client} admin */
export async function createObserver(admin) {
  await admin.query(`CREATE ROLE ${observer} LOGIN SUPERUSER PASSWORD 'world'`);
}

/**
 * How long this machine takes for the same work now, in milliseconds: it is not always equally fast, which
 * no count of CPU time tells.
 */
export function pace() {
  const bytes = new Uint8Array(2 ** 27);
  const begin = performance.now();
  createHash('sha256').update(bytes).digest();
  return performance.now() - begin;
}

/** Whether the server has sent it to itself: a foreign key whose check was deferred. @param {string} query */
const isCheck = (query) => /^SELECT (1|\$\d+) FROM ONLY /.test(query);

/** User, nice and system time of the whole machine, and what its host gave to others. */
async function machineTicks() {
  const [line] = (await readFile('/proc/stat', 'utf8')).split('\n');
  const [user, nice, system, , , , , steal = 0] = line.split(/\s+/).slice(1).map(Number);
  return user + nice + system + steal;
}

/** @param {number | string} pid */
async function stat(pid) {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8');
  const [, ppid, ...rest] = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const [utime, stime, cutime, cstime] = rest.slice(9, 13).map(Number);
  return { ppid: Number(ppid), ticks: utime + stime, childTicks: cutime + cstime };
}

/** @param {number} pid */
const processTicks = async (pid) => (await stat(pid)).ticks;

/** The live processes of the server, and those that have ended. @param {number} postmaster @param {number} without */
async function serverTicks(postmaster, without) {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const processes = await Promise.all(
    pids.map(async (pid) => ({ pid: Number(pid), ...(await stat(pid).catch(() => undefined)) })),
  );
  let total = 0;
  for (const { pid, ppid, ticks = 0, childTicks = 0 } of processes) {
    if (pid === postmaster) total += ticks + childTicks;
    else if (ppid === postmaster && pid !== without) total += ticks;
  }
  return total;
}
