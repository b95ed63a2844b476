import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { startApp } from '../__test__/support/app.mjs';
import { httpRelay } from './http-relay.mjs';

/** @typedef {import('../__test__/support/app.mjs').App} App */
/** @typedef {Awaited<ReturnType<typeof assembleCast>>} Cast */
/** @typedef {'http' | 'function' | 'worker' | 'web' | 'client'} Role */
/**
 * @typedef {object} Member
 * @property {Role} role
 * @property {import('./cluster.mjs').Line} line to PostgreSQL
 * @property {App | undefined} app
 * @property {App[]} former
 * @property {boolean} leaving whether its end is asked for
 * @property {Promise<unknown>} turn one replacement after the other
 */

const FAKE_CLOCK = [
  '/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1',
  '/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1',
  '/usr/lib64/faketime/libfaketimeMT.so.1',
].find(existsSync);

/** Whether clocks can be set wrong here. */
export const canSkewClocks = FAKE_CLOCK !== undefined;

/** @param {number} seconds */
const skewed = (seconds) =>
  seconds === 0
    ? {}
    : {
        LD_PRELOAD: FAKE_CLOCK,
        FAKETIME: `${seconds > 0 ? '+' : ''}${seconds}s`,
        FAKETIME_DONT_FAKE_MONOTONIC: '1',
      };

/**
 * The processes: a worker that delivers to itself over HTTP, one that calls its functions, one that
 * delivers to a web process, and a client that starts runs and is never killed. Each has a line of its
 * own to PostgreSQL.
 *
 * @param {{ after: (cleanup: () => Promise<void>) => void }} t
 * @param {{ line: import('./cluster.mjs').Cluster['line'], env: Record<string, string>, log: (line: string) => void }} options
 */
export async function assembleCast(t, { line, env, log }) {
  /** @type {Map<Role, Member>} */
  const members = new Map();
  const member = (/** @type {Role} */ role) => /** @type {Member} */ (members.get(role));
  /** The worker of its own delivers to the web process. @param {Role} role */
  const executor = (role) => member(role === 'worker' ? 'web' : role);
  t.after(async () => {
    await Promise.all([...members.values()].map(({ app }) => app?.kill()));
  });
  const http = await httpRelay(t, () => member('web').app?.url ?? 'http://127.0.0.1:9');

  /** @type {Record<Role, Record<string, string>>} */
  const roles = {
    client: { TEST_START: 'false' },
    web: { TEST_START: 'false' },
    http: {},
    function: { TEST_PATTERN: 'function' },
    worker: { TEST_PATTERN: 'worker', TEST_APP_URL: http.url },
  };

  /** As a supervisor does: again and again. @param {Role} role @param {number} [clock] seconds that it is wrong by */
  async function start(role, clock = 0) {
    const { TEST_START, ...own } = roles[role];
    const it = member(role);
    for (let failures = 0; !it.app?.running(); failures++) {
      try {
        it.app = await startApp({
          env: { ...env, ...own, ...skewed(clock), WORKFLOW_POSTGRES_URL: it.line.url },
          start: TEST_START !== 'false',
        });
      } catch (error) {
        if (failures === 0) log(`${role} does not start yet: ${firstLines(error)}`);
        if (failures > 100) throw error;
        await sleep(500);
      }
    }
    it.leaving = false;
  }

  for (const role of /** @type {Role[]} */ (Object.keys(roles))) {
    members.set(role, {
      role,
      line: await line(t),
      app: undefined,
      former: [],
      leaving: true,
      turn: Promise.resolve(),
    });
    await start(role);
  }

  return {
    http,
    member,
    members: () => [...members.values()],
    client: /** @type {App} */ (member('client').app),

    /** How many processes have had a role before, by `executors`. @param {Role} role */
    predecessors: (role) => executor(role).former.length,

    /**
     * The processes whose steps suffer from a fault at this one, and its successors.
     *
     * @param {Role} role
     * @param {number} predecessors that are left out
     * @returns {number[]} pids
     */
    executors(role, predecessors) {
      const { former, app } = executor(role);
      return [...former, ...(app ? [app] : [])].slice(predecessors).map(({ pid }) => pid);
    },

    /** The process that has the role now. @param {Role} role @param {NodeJS.Signals} signal @param {{ clock?: number }} [options] */
    replace(role, signal, { clock } = {}) {
      const it = member(role);
      it.leaving = true;
      const { app } = it;
      it.turn = it.turn.then(async () => {
        // Another replacement, which was asked for before, has done it.
        if (it.app !== app) return;
        await this.end(role, signal);
        if (it.app) it.former.push(it.app);
        await start(role, clock);
      });
      return it.turn;
    },

    /** @param {Role} role @param {NodeJS.Signals} signal */
    signal(role, signal) {
      const { app } = member(role);
      if (app?.running()) process.kill(app.pid, signal);
    },

    /** @param {Role} role @param {NodeJS.Signals} signal */
    async end(role, signal) {
      const it = member(role);
      it.leaving = true;
      const begin = Date.now();
      await it.app?.kill(signal);
      return Date.now() - begin;
    },

    /** Those that ended although nobody asked them to. */
    lost: () =>
      [...members.values()].filter(({ app, leaving }) => app && !leaving && !app.running()),

    /** What all of them said, those included that are gone. */
    logs: () =>
      [...members.values()].flatMap(({ role, app, former }) =>
        [...former, ...(app ? [app] : [])].map(({ pid, logs }) => `${role} ${pid}\n${logs()}`),
      ),
  };
}

/** @param {unknown} error */
function firstLines(error) {
  const lines = String(error).split('\n');
  return (
    lines.find((line) => /^\w*Error/.test(line) && !line.includes('did not start')) ?? lines[0]
  );
}
