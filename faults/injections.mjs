import { setTimeout as sleep } from 'node:timers/promises';
import { canSkewClocks } from './cast.mjs';

/** @typedef {import('./cast.mjs').Role} Role */
/** @typedef {import('./random.mjs').Random} Random */
/** @typedef {import('./stage.mjs').Stage} Stage */
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
 * @property {'process' | 'line' | 'server' | 'sql' | 'http'} on
 * @property {(random: Random) => Record<string, any>} [draw] what else is left to chance
 * @property {(stage: Stage, role: Role, drawn: any, over: () => void) => Promise<unknown>} inject
 */

/** Every role that holds leases. A step is executed under the lease of the worker that delivers it. */
const workers = /** @type {const} */ (['http', 'function', 'worker']);
const processes = /** @type {const} */ ([...workers, 'web']);
const lines = /** @type {const} */ ([...processes, 'client']);

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
};

/** Where PostgreSQL itself is in trouble, an outcome may be under way for longer. */
export const troublesDatabase = (/** @type {string} */ kind) =>
  ['line', 'server', 'sql'].includes(injections[kind].on);
