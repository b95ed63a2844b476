import { setTimeout as sleep } from 'node:timers/promises';
import { injections, things, troublesDatabase } from './injections.mjs';
import { generator, moment } from './random.mjs';

/** @typedef {import('./cast.mjs').Role} Role */
/** @typedef {import('./ledger.mjs').Window} Window */
/** @typedef {{ at: number, kind: string, role: Role | undefined, drawn: Record<string, any> }} Fault */

/** No fault begins later than so long before the time is over. */
const CALM_MS = 10_000;
/** Between the begins of two faults. */
const GAP_MS = [500, 4000];

/**
 * All faults, as the seed wants them.
 *
 * @param {number} seed
 * @param {number} ms
 * @param {string[]} kinds
 * @returns {Fault[]}
 */
export function plan(seed, ms, kinds) {
  const random = generator(seed);
  const draw = random.deck(kinds);
  const faults = /** @type {Fault[]} */ ([]);
  for (let at = 3000; at < ms - CALM_MS; at += random.between(GAP_MS[0], GAP_MS[1])) {
    const kind = draw();
    const { roles, draw: details } = injections[kind];
    faults.push({
      at,
      kind,
      role: roles && random.one(roles),
      drawn: details?.(random) ?? {},
    });
  }
  return faults;
}

/**
 * Faults overlap, but for those that one and the same thing cannot suffer at the same time.
 *
 * @param {import('./injections.mjs').Stage} stage
 * @param {Fault[]} faults
 * @param {{ ms: number, tell: (line: string) => void, windows: Window[] }} options
 */
export async function inject(stage, faults, { ms, tell, windows }) {
  const begin = moment();
  /** @type {Map<string, Promise<void>>} */
  const busy = new Map();
  for (const fault of faults) {
    await sleep(Math.max(0, begin + fault.at - moment()));
    const whats = things(fault.kind).map((on) =>
      on === 'process' || on === 'line' ? `${on} ${fault.role}` : on,
    );
    const before = whats.map((what) => busy.get(what));
    const turn = (async () => {
      await Promise.all(before);
      if (moment() < begin + ms - CALM_MS) await strike(stage, fault, { tell, windows });
    })();
    for (const what of whats) busy.set(what, turn);
  }
  await Promise.all(busy.values());
}

/**
 * @param {import('./injections.mjs').Stage} stage
 * @param {Fault} fault
 * @param {{ tell: (line: string) => void, windows: Window[] }} options
 */
async function strike(stage, { kind, role, drawn }, { tell, windows }) {
  const { repeats, drains, inject } = injections[kind];
  tell(
    [kind, role, ...Object.entries(drawn).flat()].filter((word) => word !== undefined).join(' '),
  );
  // A process may die meanwhile, and the fault hit its successor.
  const predecessors = role ? stage.cast.predecessors(role) : 0;
  const guarded = role === 'web' && repeats !== undefined && !repeats.includes(role);
  const executors = () =>
    role && (guarded || repeats?.includes(role)) ? stage.cast.executors(role, predecessors) : [];
  /** @type {Window} */
  const window = {
    kind,
    from: moment(),
    to: Number.POSITIVE_INFINITY,
    pids: executors(),
    database: troublesDatabase(kind),
    drains,
    guarded,
    http: things(kind).includes('http'),
  };
  windows.push(window);
  const over = () => {
    if (window.to !== Number.POSITIVE_INFINITY) return;
    window.to = moment();
    window.pids = [...new Set([...window.pids, ...executors()])];
  };
  await inject(stage, /** @type {Role} */ (role), drawn, over);
  over();
}
