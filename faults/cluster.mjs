import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { relay } from '../__test__/support/relay.mjs';
import { startPostgres } from '../scripts/support/postgres.mjs';
import { moment } from './random.mjs';

/** @typedef {Awaited<ReturnType<typeof startCluster>>} Cluster */
/** @typedef {Awaited<ReturnType<typeof relay>>} Line */
/** @typedef {Pick<import('../scripts/support/postgres.mjs').Standby, 'url' | 'port' | 'restart' | 'halt' | 'resume' | 'standby'> & { discard?: () => Promise<void> }} Server */
/**
 * From when on WAL may have been written that no standby got, and until when clients may have been
 * answered by the server that wrote it. By `moment()`.
 *
 * @typedef {{ from: number, to: number }} Loss
 */
/**
 * @typedef {object} Failover
 * @property {'fast' | 'immediate'} mode how the primary ends. A fast end sends all WAL to the standby first.
 * @property {number} outageMs between the end of the primary and the promotion
 * @property {number} [lagMs] how long before its end the primary sends no WAL any more: its end is lost
 * @property {boolean} early clients reach the standby before it is promoted
 * @property {() => void} [down] called when the primary has ended
 * @property {(loss: Loss) => void} [lost] called when clients have left the primary and WAL is lost
 */

/** A running server can be copied within this, and a copy follows within this, or never. */
const STANDBY_MS = 30_000;
/** Clients that reach the standby before its promotion do so for this long. */
const EARLY_MS = 1500;
/** Commits of this many ms before the standby was cut off may not have reached it. */
const FLIGHT_MS = 500;

/**
 * A PostgreSQL that can fail over to a standby. All clients reach it over lines (relays) that lead to
 * whichever server is the primary.
 */
export async function startCluster() {
  const embedded = await startPostgres({ settings: { wal_keep_size: '1GB' } });
  /** @type {Server} */
  let primary = embedded;
  /** @type {Set<Line>} */
  const lines = new Set();
  /** @type {(() => Promise<void>)[]} */
  const cleanups = [];
  const t = { after: (/** @type {() => Promise<void>} */ cleanup) => void cleanups.push(cleanup) };

  /** A line, which its test may disturb. @param {import('../__test__/support/database.mjs').Test} owner */
  const line = async (owner) => {
    const added = await relay(owner, primary.url);
    lines.add(added);
    return added;
  };

  /** @template T @param {(client: pg.Client) => Promise<T>} body */
  const onPrimary = async (body) => {
    const client = new pg.Client({ connectionString: primary.url });
    client.on('error', () => {});
    await client.connect();
    try {
      return await body(client);
    } finally {
      await client.end();
    }
  };

  /** A standby that has all WAL. @param {Line} wal @param {boolean} synchronous commits wait for it from now on */
  const follow = (wal, synchronous) =>
    onPrimary(async (client) => {
      const standby = await copy();
      await standby.follow(Number(new URL(wal.url).port));
      const deadline = Date.now() + STANDBY_MS;
      if (synchronous) {
        await client.query("ALTER SYSTEM SET synchronous_standby_names = '*'");
        await client.query('SELECT pg_reload_conf()');
      }
      const { rows } = await client.query('SELECT pg_current_wal_lsn() AS lsn');
      const caughtUp = `SELECT FROM pg_stat_replication
        WHERE state = 'streaming' AND flush_lsn >= $1 AND sync_state = $2`;
      const state = synchronous ? 'sync' : 'async';
      while ((await client.query(caughtUp, [rows[0].lsn, state])).rowCount === 0) {
        if (Date.now() > deadline) {
          const { rows: senders } = await client.query('SELECT * FROM pg_stat_replication');
          throw new Error(
            `the standby does not catch up\n${JSON.stringify(senders)}\n${await standby.log()}`,
          );
        }
        await sleep(50);
      }
      return standby;
    });

  /** A running server deletes files while they are copied. */
  const copy = async () => {
    const deadline = Date.now() + STANDBY_MS;
    for (;;) {
      try {
        return await primary.standby();
      } catch (error) {
        if (Date.now() > deadline) throw error;
        await sleep(200);
      }
    }
  };

  return {
    line,
    /** Superuser's URL that outlives failovers. */
    url: (await line(t)).url,
    /** @type {Server['restart']} */
    restart: (options) => primary.restart(options),
    /** @type {Server['halt']} */
    halt: (options) => primary.halt(options),
    resume: () => primary.resume(),

    /** @param {Failover} failover */
    async failOver({ mode, outageMs, lagMs, early, down = () => {}, lost = () => {} }) {
      const wal = await relay(t, primary.url);
      const standby = await follow(wal, lagMs === undefined && mode === 'immediate');
      const from = moment() - FLIGHT_MS;
      if (lagMs !== undefined) {
        wal.freeze({ newOnesToo: true });
        await sleep(lagMs);
      }
      const former = primary;
      await former.halt({ mode });
      down();
      await sleep(outageMs);
      const aim = () => {
        for (const each of lines) each.aim(standby.url);
        if (lagMs !== undefined) lost({ from, to: moment() });
      };
      if (early) {
        aim();
        await sleep(EARLY_MS);
      }
      await standby.promote();
      primary = standby;
      if (!early) aim();
      await former.discard?.();
    },

    async stop() {
      for (const cleanup of cleanups) await cleanup();
      await embedded.stop();
    },
  };
}
