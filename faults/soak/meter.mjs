import { readdir, readFile } from 'node:fs/promises';

/** @typedef {import('../recovery/place.mjs').Place} Place */
/** @typedef {Record<string, number>} Sample by the names of `metrics`, and `minutes` */
/** @typedef {{ postmaster: number, heap: string }} Sources */

const MB = 1e6;

/** @param {number | string} pid @param {string} field of /proc/<pid>/status, in kB */
async function memory(pid, field) {
  const text = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  return (Number(text.match(new RegExp(`^${field}:\\s+(\\d+)`, 'm'))?.[1] ?? 0) * 1024) / MB;
}

/** @param {number} parent */
async function childrenOf(parent) {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const parents = await Promise.all(
    pids.map(async (pid) => {
      const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
      return Number(text.slice(text.lastIndexOf(')') + 2).split(' ')[1]);
    }),
  );
  return pids.filter((_, n) => parents[n] === parent);
}

/**
 * What a process and its database are at, now.
 *
 * @param {Place} place
 * @param {import('../../__test__/support/app.mjs').App} app
 * @param {Sources} sources
 */
export function createMeter({ database }, app, { postmaster, heap }) {
  const { pool, schema, queueSchema } = database;
  let heapLines = 0;
  let since = new Date();

  /** The least of what was in use since the last time: what the collector leaves. */
  async function liveHeap() {
    const lines = (await readFile(heap, 'utf8')).trimEnd().split('\n');
    const fresh = lines.slice(heapLines).map(Number);
    heapLines = lines.length;
    return Math.min(...fresh) / MB;
  }

  async function tables() {
    const { rows } = await pool.query(
      `SELECT s.schemaname, s.relname, n_live_tup, n_dead_tup, pg_indexes_size(relid) AS indexes,
         pg_table_size(relid) AS bytes
       FROM pg_stat_user_tables s WHERE schemaname = ANY ($1)`,
      [[schema, queueSchema]],
    );
    /** @param {(row: any) => boolean} which @param {string} column */
    const sum = (which, column) =>
      rows.filter(which).reduce((total, row) => total + Number(row[column]), 0);
    /** pg-boss keeps jobs in partitions. @param {any} row */
    const isJob = ({ schemaname, relname }) =>
      schemaname === queueSchema && relname.startsWith('job') && relname !== 'job_dependency';
    /** @param {string} name */
    const named =
      (name) =>
      (/** @type {any} */ { relname }) =>
        relname === `workflow_${name}`;
    return {
      jobMb: sum(isJob, 'bytes') / MB,
      jobIndexMb: sum(isJob, 'indexes') / MB,
      jobDead: sum(isJob, 'n_dead_tup'),
      stepsDead: sum(named('steps'), 'n_dead_tup'),
      runsDead: sum(named('runs'), 'n_dead_tup'),
      stepsBytes: sum(named('steps'), 'bytes') + sum(named('steps'), 'indexes'),
      runsBytes: sum(named('runs'), 'bytes') + sum(named('runs'), 'indexes'),
      eventsBytes: sum(named('events'), 'bytes') + sum(named('events'), 'indexes'),
    };
  }

  async function latencies() {
    const now = new Date();
    const { rows } = await pool.query(
      `SELECT percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (
         ORDER BY extract(epoch FROM completed_at - created_at) * 1000) AS ms, count(*)::int
       FROM ${schema}.workflow_runs WHERE completed_at >= $1 AND completed_at < $2`,
      [since, now],
    );
    const seconds = (now.getTime() - since.getTime()) / 1000;
    since = now;
    const [{ ms, count }] = rows;
    const [p50, p95] = ms ?? [0, 0];
    return { p50, p95, runsPerSecond: count / seconds };
  }

  async function counts() {
    const { rows } = await pool.query(
      `SELECT
         (SELECT count(*)::int FROM ${queueSchema}.job WHERE state <= 'active') AS queued,
         (SELECT count(*)::int FROM ${schema}.workflow_runs) AS runs,
         (SELECT count(*)::int FROM pg_stat_activity WHERE application_name = 'workflow-world-postgres'
            AND datname = current_database()) AS connections`,
    );
    return rows[0];
  }

  /** @param {number} minutes @returns {Promise<Sample>} */
  return async function sample(minutes) {
    const [rss, handles, backends, heapMb] = await Promise.all([
      memory(app.pid, 'VmRSS'),
      readdir(`/proc/${app.pid}/fd`),
      childrenOf(postmaster).then((pids) => Promise.all(pids.map((pid) => memory(pid, 'RssAnon')))),
      liveHeap(),
    ]);
    return {
      minutes,
      rss,
      heapMb,
      handles: handles.length,
      backendsMb: backends.reduce((total, mb) => total + mb, 0),
      ...(await counts()),
      ...(await tables()),
      ...(await latencies()),
    };
  };
}
