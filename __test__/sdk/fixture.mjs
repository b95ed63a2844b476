import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { startApp } from '../support/app.mjs';
import { testDatabase } from '../support/database.mjs';
import { assertInvariants, describeRun } from '../support/invariants.mjs';

/** @typedef {{ phase: 'begin' | 'end' | 'throw', runId: string, stepId: string, step: string, attempt: number, pid: number, at: number, moment: number }} Entry */
/** @typedef {Parameters<typeof startApp>[0]} AppOptions */

/**
 * Waits until `condition` gives something; fails with what `report` says.
 *
 * @template T
 * @param {() => T | Promise<T>} condition
 * @param {{ within?: number, every?: number, report?: () => unknown }} [options] milliseconds
 * @returns {Promise<NonNullable<T>>}
 */
export async function eventually(condition, { within = 120_000, every = 50, report } = {}) {
  const deadline = Date.now() + within;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > deadline) {
      throw new Error(`not within ${within} ms: ${condition}\n${(await report?.()) ?? ''}`);
    }
    await sleep(every);
  }
}

/**
 * A database of our own, app processes on it, and the ledger of the steps that they execute. All of
 * it is gone after the test.
 *
 * @param {import('../support/database.mjs').Test} t
 * @param {{ url?: string, foreignQueue?: boolean }} [options] of testDatabase and assertInvariants
 */
export async function fixture(t, { url, foreignQueue } = {}) {
  /** @type {import('../support/app.mjs').App[]} */
  const apps = [];
  // Hooks run in the order of their registration: the apps go before the database does.
  t.after(async () => {
    await Promise.all(apps.map((app) => app.kill()));
  });
  const database = await testDatabase(t, { url });
  const directory = await mkdtemp(path.join(tmpdir(), 'ledger-'));
  t.after(() => rm(directory, { recursive: true }));
  const file = path.join(directory, 'ledger.jsonl');

  /** @param {string[]} runIds */
  const report = async (runIds) =>
    [
      ...(await Promise.all(runIds.slice(0, 3).map((runId) => describeRun(database, runId)))),
      ...apps.map((app) => `app ${app.pid} ${app.running() ? '' : '(gone) '}${app.logs()}`),
    ].join('\n\n');

  return {
    database,

    /** @param {Partial<AppOptions>} [options] */
    async app({ env, ...options } = {}) {
      const app = await startApp({
        ...options,
        env: { ...database.env, TEST_LEDGER: file, ...env },
      });
      apps.push(app);
      return app;
    },

    /** What the steps have recorded, of one run or of all. @param {string} [runId] */
    async ledger(runId) {
      const text = await readFile(file, 'utf8').catch(() => '');
      /** @type {Entry[]} */
      const entries = text
        .split('\n')
        .slice(0, -1)
        .map((line) => JSON.parse(line));
      return entries.filter((entry) => !runId || entry.runId === runId);
    },

    /**
     * The statuses of runs once all of them have ended. Asks the database, so that it works while no
     * app does.
     *
     * @param {string[]} runIds
     * @param {{ within?: number }} [options]
     * @returns {Promise<string[]>}
     */
    async ended(runIds, { within = 180_000 } = {}) {
      const query = `SELECT run_id, status FROM ${database.schema}.workflow_runs
        WHERE run_id = ANY ($1) AND completed_at IS NOT NULL`;
      /** @type {Map<string, string>} */
      let statuses = new Map();
      const ask = async () => {
        const { rows } = await database.pool.query(query, [runIds]);
        statuses = new Map(rows.map(({ run_id, status }) => [run_id, status]));
        return statuses.size === new Set(runIds).size;
      };
      await eventually(
        // The server may be about to come back.
        () => ask().catch(() => false),
        { within, report: () => report(runIds.filter((runId) => !statuses.has(runId))) },
      );
      return runIds.map((runId) => /** @type {string} */ (statuses.get(runId)));
    },

    /**
     * @template T
     * @param {string[]} runIds
     * @param {() => T | Promise<T>} condition
     */
    until: (runIds, condition) => eventually(condition, { report: () => report(runIds) }),

    check: () => assertInvariants(database, { foreignQueue }),
  };
}

/**
 * The steps whose code ran more than once without the step asking for it.
 *
 * @param {Entry[]} entries
 */
export function repeated(entries) {
  /** @type {Map<string, Entry[]>} */
  const begins = new Map();
  for (const entry of entries) {
    if (entry.phase !== 'begin') continue;
    begins.set(entry.stepId, [...(begins.get(entry.stepId) ?? []), entry]);
  }
  return [...begins.values()].filter((executions) => executions.length > 1);
}
