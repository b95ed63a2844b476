import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fixture } from './fixture.mjs';

const RUNS = 30;
/** Runs at a time. */
const WIDTH = 6;
const BRANCHES = 8;
const ROUNDS = 3;
/** The watchdogs of a run: what arrives does so at about the same time. */
const WATCHDOG_MS = 700;

test(`${RUNS} runs whose branches race callbacks and steps against watchdogs all complete`, async (t) => {
  const { app: startApp, check, database, ended } = await fixture(t);
  const app = await startApp({});

  /** Resumes each hook of a run at a random time of its life. @param {string} runId */
  async function callBack(runId) {
    const sent = new Set();
    for (;;) {
      const run = await app.call('run', runId);
      if (run.completedAt) return;
      for (const { token } of await app.call('hooks', runId)) {
        if (sent.has(token)) continue;
        sent.add(token);
        const pause = WATCHDOG_MS * (0.7 + 0.6 * Math.random());
        // It may be disposed of by then.
        sleep(pause).then(() => app.call('resumeHook', token, 1).catch(() => {}));
      }
      await sleep(50);
    }
  }

  /** @type {string[]} */
  const runIds = [];
  const storms = Array.from({ length: WIDTH }, async () => {
    while (runIds.length < RUNS) {
      const token = `storm ${runIds.length}`;
      const started = app.call('start', 'storm', [token, BRANCHES, ROUNDS, WATCHDOG_MS]);
      runIds.push(token);
      const runId = await started;
      runIds[runIds.indexOf(token)] = runId;
      await callBack(runId);
    }
  });
  await Promise.all(storms);

  const statuses = await ended(runIds);
  const { rows } = await database.pool.query(
    `SELECT run_id, error FROM ${database.schema}.workflow_runs WHERE status <> 'completed'`,
  );
  t.diagnostic(
    `${statuses.filter((status) => status === 'completed').length} of ${RUNS} completed`,
  );
  assert.deepEqual(rows, []);
  await check();
});
