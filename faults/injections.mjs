import { setTimeout as sleep } from 'node:timers/promises';
import { canSkewClocks } from './cast.mjs';

/** @typedef {import('./cast.mjs').Role} Role */
/** @typedef {import('./random.mjs').Random} Random */
/**
 * `provoke` begins a scene of `provoked` in workload.mjs.
 *
 * @typedef {import('./stage.mjs').Stage & { provoke: (scene: keyof typeof import('./workload.mjs').provoked, drawn: any) => void }} Stage
 */
/**
 * `repeats`: whose steps in flight may run again for it. `on`: what it cannot share with another fault
 * at the same time; by default the processes that it is aimed at. `inject` may call `over` when it does
 * no more harm, before all is as it was.
 *
 * @typedef {object} Injection
 * @property {readonly Role[]} [roles] at which it can be aimed
 * @property {readonly Role[]} [repeats]
 * @property {boolean} [drains] the process may end its steps, and repeats them only where it could not report
 *   them in time
 * @property {Thing | Thing[]} on
 * @property {(random: Random) => Record<string, any>} [draw] what else is left to chance
 * @property {(stage: Stage, role: Role, drawn: any, over: () => void) => Promise<unknown>} inject
 */

/** @typedef {'process' | 'line' | 'server' | 'sql' | 'http' | 'run'} Thing */

/**
 * Every role that holds leases on messages. The web process executes steps under the lease of the worker that
 * delivers them, and has a lease of its own on the step, which alone counts once a delivery is broken off.
 */
const workers = /** @type {const} */ (['http', 'function', 'worker']);
const processes = /** @type {const} */ ([...workers, 'web']);
const lines = /** @type {const} */ ([...processes, 'client']);

const lockable = /** @type {const} */ ([
  'events',
  'runs',
  'steps',
  'hooks',
  'waits',
  'streams',
  'stream_chunks',
  'jobs',
]);

/** Milliseconds that a lease does not outlive. */
const longerThanLease = (/** @type {Random} */ random) => ({ ms: random.between(10_000, 13_000) });
const shorterThanLease = (/** @type {Random} */ random) => ({ ms: random.between(1000, 3500) });

/** @param {(stage: Stage, role: Role, drawn: any) => unknown} begin @param {(stage: Stage, role: Role) => unknown} end @returns {Injection['inject']} */
const during = (begin, end) => async (stage, role, drawn) => {
  await begin(stage, role, drawn);
  await sleep(drawn.ms);
  await end(stage, role);
};

/** @param {Stage} stage @param {Role} role */
const line = (stage, role) => stage.cast.member(role).line;
/** @param {Stage} stage @param {Role} role */
const calm = (stage, role) => line(stage, role).calm();

/** @param {import('./http-relay.mjs').Manner[]} manners @returns {Injection} */
const http = (...manners) => ({
  on: 'http',
  roles: ['worker'],
  draw: (random) => ({ manner: random.one(manners), ms: random.between(2000, 12_000) }),
  inject: during(
    ({ cast }, _role, { manner }) => cast.http.behave(manner),
    ({ cast }) => cast.http.behave('pass'),
  ),
});

/** @param {Stage} stage @param {string} condition on the backends of the Worlds */
const terminate = ({ insist, role }, condition) =>
  insist(
    `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '${role}' AND ${condition}`,
  );

/**
 * A failover while a process is replaced: its successor starts when the standby is promoted. The others
 * still hold what they execute.
 *
 * @param {Stage} stage @param {Role} role
 * @param {{ signal: NodeJS.Signals, lagMs?: number } & Omit<import('./cluster.mjs').Failover, 'down' | 'lost'>} drawn
 */
async function failOver({ server, cast, losses }, role, { signal, ...failover }) {
  /** @type {Promise<unknown> | undefined} */
  let replaced;
  await server.failOver({
    ...failover,
    down: () => {
      replaced = cast.replace(role, signal);
    },
    lost: (loss) => void losses.push(loss),
  });
  await replaced;
}

/** @type {Record<string, Injection>} */
export const injections = {
  kill: {
    on: 'process',
    roles: processes,
    repeats: processes,
    async inject({ cast }, role, _drawn, over) {
      await cast.end(role, 'SIGKILL');
      over();
      await cast.replace(role, 'SIGKILL');
    },
  },
  stop: {
    on: 'process',
    roles: processes,
    repeats: processes,
    drains: true,
    inject: ({ cast }, role) => cast.replace(role, 'SIGTERM'),
  },
  zombie: {
    on: 'process',
    roles: processes,
    repeats: workers,
    draw: longerThanLease,
    inject: during(
      ({ cast }, role) => cast.signal(role, 'SIGSTOP'),
      ({ cast }, role) => cast.signal(role, 'SIGCONT'),
    ),
  },
  ...(canSkewClocks && {
    // No more than that: the SDK tells of retries in times of the host, and who is late waits.
    clock: {
      on: 'process',
      roles: processes,
      repeats: processes,
      drains: true,
      draw: (random) => ({ seconds: random.one([-20, -3, 3, 20]) }),
      inject: ({ cast }, role, { seconds }) => cast.replace(role, 'SIGTERM', { clock: seconds }),
    },
  }),

  cut: { on: 'line', roles: lines, inject: async (stage, role) => line(stage, role).heal() },
  refuse: {
    on: 'line',
    roles: lines,
    draw: shorterThanLease,
    inject: during((stage, role) => line(stage, role).cut('refusing'), calm),
  },
  'lose-answers': {
    on: 'line',
    roles: lines,
    draw: (random) => ({ ...shorterThanLease(random), bytes: random.one([200, 1000, 6000]) }),
    inject: during(
      (stage, role, { bytes }) =>
        line(stage, role).loseAnswers(() => stage.random.between(0, bytes)),
      calm,
    ),
  },
  delay: {
    on: 'line',
    roles: lines,
    draw: (random) => ({ ms: random.between(3000, 8000), delayMs: random.between(50, 400) }),
    inject: during((stage, role, { delayMs }) => line(stage, role).delay(delayMs), calm),
  },
  'long-delay': {
    on: 'line',
    roles: lines,
    repeats: workers,
    draw: (random) => ({ ...longerThanLease(random), delayMs: 9000 }),
    inject: during((stage, role, { delayMs }) => line(stage, role).delay(delayMs), calm),
  },
  'half-open': {
    on: 'line',
    roles: lines,
    draw: shorterThanLease,
    inject: during((stage, role) => line(stage, role).freeze({ newOnesToo: false }), calm),
  },
  'long-half-open': {
    on: 'line',
    roles: lines,
    repeats: workers,
    draw: longerThanLease,
    inject: during((stage, role) => line(stage, role).freeze({ newOnesToo: false }), calm),
  },
  'late-first-try': {
    on: 'line',
    roles: lines,
    repeats: workers,
    draw: (random) => ({ ms: random.between(11_000, 14_000) }),
    inject: during(
      (stage, role) => line(stage, role).stall(),
      (stage, role) => line(stage, role).release(),
    ),
  },
  partition: {
    on: 'line',
    roles: lines,
    repeats: workers,
    draw: longerThanLease,
    inject: during((stage, role) => line(stage, role).freeze({ newOnesToo: true }), calm),
  },

  'terminate-some': {
    on: 'sql',
    inject: (stage) => terminate(stage, 'random() < 0.3'),
  },
  'terminate-all': { on: 'sql', inject: (stage) => terminate(stage, 'true') },
  restart: { on: 'server', inject: ({ server }) => server.restart({ mode: 'fast' }) },
  crash: { on: 'server', inject: ({ server }) => server.restart({ mode: 'immediate' }) },
  outage: {
    on: 'server',
    draw: () => ({ ms: 20_000 }),
    inject: during(
      ({ server }) => server.halt({ mode: 'fast' }),
      ({ server }) => server.resume(),
    ),
  },
  promote: {
    on: ['server', 'process'],
    roles: workers,
    repeats: workers,
    draw: (random) => ({
      mode: random.one(['fast', 'immediate']),
      outageMs: random.between(500, 13_000),
      early: random.one([true, false]),
      signal: random.one(['SIGTERM', 'SIGKILL']),
    }),
    inject: failOver,
  },
  'promote-lossy': {
    // The end of a fault of SQL must not be lost.
    on: ['server', 'sql', 'process'],
    roles: workers,
    repeats: workers,
    draw: (random) => ({
      mode: 'immediate',
      lagMs: random.between(100, 700),
      outageMs: random.between(500, 5000),
      early: random.one([true, false]),
      signal: 'SIGKILL',
    }),
    inject: failOver,
  },
  'read-only': {
    on: 'server',
    draw: (random) => ({ ms: random.between(2000, 6000) }),
    inject: during(
      async ({ insist }) => {
        await insist('ALTER SYSTEM SET default_transaction_read_only = on');
        await insist('SELECT pg_reload_conf()');
      },
      async ({ insist }) => {
        await insist('ALTER SYSTEM RESET default_transaction_read_only');
        await insist('SELECT pg_reload_conf()');
      },
    ),
  },
  'statement-timeout': {
    on: 'sql',
    draw: (random) => ({ ms: random.between(2000, 6000), timeoutMs: random.between(2, 30) }),
    inject: during(
      async (stage, _role, { timeoutMs }) => {
        await stage.insist(`ALTER ROLE ${stage.role} SET statement_timeout = ${timeoutMs}`);
        await terminate(stage, 'random() < 0.5');
      },
      async (stage) => {
        await stage.insist(`ALTER ROLE ${stage.role} RESET statement_timeout`);
        await terminate(stage, 'true');
      },
    ),
  },
  'cancel-statements': {
    on: 'sql',
    draw: (random) => ({ ms: random.between(2000, 6000), everyMs: random.between(20, 200) }),
    async inject({ insist, role }, _role, { ms, everyMs }) {
      for (const end = Date.now() + ms; Date.now() < end; await sleep(everyMs)) {
        await insist(
          `SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = '${role}' AND state = 'active'`,
        );
      }
    },
  },
  'lock-table': {
    on: 'sql',
    draw: (random) => ({ ms: random.between(3000, 16_000), table: random.one(lockable) }),
    inject: ({ lock }, _role, { table, ms }) => lock(table, ms),
  },
  // They take all connections that the process has for queries.
  'waiting-readers': {
    on: 'sql',
    roles: workers,
    draw: (random) => ({ ms: random.between(9000, 16_000), readers: 20 }),
    async inject({ lock, cast }, role, { ms, readers }) {
      let over = false;
      const read = async () => {
        while (!over) {
          await cast
            .member(role)
            .app?.call('run', 'wrun_of_nobody')
            .catch(() => sleep(100));
        }
      };
      const reading = Array.from({ length: readers }, read);
      await lock('runs', ms);
      over = true;
      await Promise.all(reading);
    },
  },
  'disk-full': {
    on: 'sql',
    draw: (random) => ({ ms: random.between(2000, 9000), table: random.one(['events', 'jobs']) }),
    inject: during(
      (stage, _role, { table }) => stage.insist(stage.diskFull(table)),
      (stage) => stage.insist(stage.diskFree),
    ),
  },
  permission: {
    on: 'sql',
    draw: (random) => ({ ms: random.between(2000, 9000), tables: random.one(['world', 'queue']) }),
    inject: during(
      (stage, _role, { tables }) => stage.insist(stage.revoke(tables)),
      (stage) => stage.insist(stage.grant),
    ),
  },

  'http-refuse': {
    on: 'http',
    roles: ['worker'],
    draw: (random) => ({ ms: random.between(2000, 12_000) }),
    inject: during(
      ({ cast }) => cast.http.refuse(),
      ({ cast }) => cast.http.accept(),
    ),
  },
  'http-hang': http('hang'),
  'http-error': http(500, 502, 503),
  'http-garbage': http('garbage', 'html'),
  'http-lost-answer': http('lose answers'),
  'http-cut': {
    on: 'http',
    roles: ['worker'],
    inject: async ({ cast }) => cast.http.cut(),
  },

  // Processes that die in a run tell the ledger before, so that it knows which steps they took along.
  'replay-death': {
    on: 'run',
    draw: (random) => ({ deaths: random.between(1, 3) }),
    inject: async ({ provoke }, _role, drawn) => provoke('replay death', drawn),
  },
  'step-death': {
    on: 'run',
    draw: (random) => ({ deaths: random.between(1, 2) }),
    inject: async ({ provoke }, _role, drawn) => provoke('step death', drawn),
  },
  'deadly-step-cancelled': {
    on: 'run',
    draw: (random) => ({ deaths: 6, ms: random.between(2000, 8000) }),
    inject: async ({ provoke }, _role, drawn) => provoke('deadly step cancelled', drawn),
  },
  'freeze-loop': {
    on: 'run',
    draw: (random) => ({ ms: random.between(2000, 12_000) }),
    inject: async ({ provoke }, _role, drawn) => provoke('frozen loop', drawn),
  },
};

/** Where PostgreSQL itself is in trouble, an outcome may be under way for longer. */
export const troublesDatabase = (/** @type {string} */ kind) =>
  things(kind).some((on) => ['line', 'server', 'sql'].includes(on));

/** @param {string} kind */
export const things = (kind) => [injections[kind].on].flat();
