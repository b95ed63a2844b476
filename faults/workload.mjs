import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';

/** @typedef {{ value?: unknown, error?: string }} Outcome what `returnValue` gives, or the name of its error */
/**
 * @typedef {object} Run
 * @property {string} kind
 * @property {string} runId
 * @property {number} since when it was accepted
 * @property {(outcome: Outcome) => boolean} accepts
 * @property {{ from: number, to: number }} scene while its client acted on it, by `moment()`
 * @property {{ parts: number[][], live: unknown[] }} [stream] what each step writes, and what a reader saw
 */
/** @typedef {import('./random.mjs').Random} Random */
/** @typedef {(player: Player, random: Random) => Promise<void>} Kind */
/** @typedef {import('./player.mjs').Player} Player */

/** @param {unknown} value @returns {Run['accepts']} */
const exactly = (value) => (outcome) => isDeepStrictEqual(outcome, { value });
/** @param {string} name @returns {Run['accepts']} */
const failure = (name) => (outcome) => outcome.error === name;
const cancelled = failure('WorkflowRunCancelledError');
/** @param {...Run['accepts']} ways @returns {Run['accepts']} */
const either =
  (...ways) =>
  (outcome) =>
    ways.some((accepts) => accepts(outcome));

/** A megabyte that differs for each run. @param {number} n */
const megabyte = (n) => `\u{1f600}${n}:`.padEnd(2 ** 20, 'ab\u00e9"\\\n');

/** @type {Record<string, Kind>} */
export const kinds = {
  async sequential({ start }) {
    await start('sequential', 'sequential', [10, 20], exactly(55));
  },
  async slow({ start }) {
    await start('slow', 'sequential', [3, 3000], exactly(6));
  },
  // Longer than a lease: whoever executes it must have renewed it.
  async long({ start }) {
    await start('long', 'sequential', [2, 12_000], exactly(3));
  },
  async parallel({ start }) {
    await start('parallel', 'fanOut', [10, 100], exactly(285));
  },
  // The third branch succeeds with one attempt to spare: a process may die while it executes nothing else.
  async retries({ start }) {
    await start('retries', 'stumbling', [3, 500], exactly(3));
  },
  async fatal({ start }) {
    await start('fatal', 'fatal', ['no'], exactly({ fatal: true, message: 'no' }));
  },
  async failing({ start }) {
    await start('failing', 'uncaught', ['no'], failure('WorkflowRunFailedError'));
  },
  async sleeps({ start }) {
    await start('sleeps', 'naps', [3, 1000], exactly(6));
  },
  async payload({ start }, random) {
    const n = random.between(0, 2 ** 30);
    await start('payload', 'echo', [megabyte(n)], (outcome) =>
      exactly({ direct: megabyte(n), fromStep: megabyte(n) })(outcome),
    );
  },

  async hook({ startWithToken, hook, resume }) {
    const { run, token } = await startWithToken('hook', 'approval', [], exactly);
    await hook(run, token);
    const { accepted, tries } = await resume(token, token);
    // Nobody but a try of our own can have ended it.
    if (!accepted && tries === 1) run.accepts = () => false;
  },
  async hooks({ startWithToken, hook, resume, tokens }) {
    const next = tokens();
    const { run, token } = await startWithToken('hooks', 'handOver', [next], (first) =>
      exactly([first, next]),
    );
    for (const each of [token, next]) {
      await hook(run, each);
      await resume(each, each);
    }
  },
  async items({ startWithToken, hook, resume }) {
    const values = [1, 2, 3, 4, 5];
    const tries = values.map(() => Number.POSITIVE_INFINITY);
    const { run, token } = await startWithToken(
      'items',
      'collect',
      [],
      () =>
        ({ value }) =>
          receivedInOrder(value, values, tries),
    );
    await hook(run, token);
    for (const [n, value] of values.entries()) {
      tries[n] = (await resume(token, { value, last: value === 5 })).tries;
    }
  },
  async owner({ start, startWithToken, hook, ends, resume }) {
    const { run, token } = await startWithToken('owner', 'claim', [], (payload) =>
      exactly({ payload }),
    );
    await hook(run, token);
    await ends(await start('owner', 'claim', [token], exactly({ owner: run.runId })));
    await resume(token, token);
  },
  async 'hook against hook'({ startWithToken, hook, resume }) {
    const { run, token } = await startWithToken('hook against hook', 'approval', [], () =>
      either(exactly(1), exactly(2)),
    );
    await hook(run, token);
    await Promise.all([resume(token, 1), resume(token, 2)]);
  },
  async 'hook against timeout'({ startWithToken, resume }, random) {
    const { run, token } = await startWithToken(
      'hook against timeout',
      'approvalWithin',
      [2000],
      (payload) => either(exactly(payload), exactly('too late')),
    );
    await sleep(random.between(500, 3500));
    const { accepted, tries } = await resume(token, token);
    if (!accepted && tries === 1) run.accepts = exactly('too late');
  },
  async 'hook against disposal'({ startWithToken, resume }, random) {
    const { run, token } = await startWithToken('hook against disposal', 'disposing', [2000], () =>
      either(exactly(2), exactly(4), exactly(6)),
    );
    await sleep(random.between(500, 3500));
    const answers = await Promise.all([resume(token, 1), resume(token, 2)]);
    if (answers.every(({ accepted, tries }) => !accepted && tries === 1)) run.accepts = exactly(2);
  },
  async storm({ startWithToken, callBack }, random) {
    const branches = 6;
    const rounds = 3;
    const ms = random.between(300, 1200);
    const { run } = await startWithToken(
      'storm',
      'storm',
      [branches, rounds, ms],
      () =>
        ({ value }) =>
          isStorm(value, branches, rounds),
    );
    // The callback comes at about the time at which the watchdog ends.
    await callBack(run, () => random.between(0, ms));
  },

  async 'cancel of steps'({ start, cancel }, random) {
    const run = await start('cancel of steps', 'sequential', [400, 50], cancelled);
    await sleep(random.between(0, 4000));
    if (!(await cancel(run))) run.accepts = either(cancelled, exactly(80_200));
  },
  async 'cancel of a sleep'({ start, cancel }, random) {
    const run = await start('cancel of a sleep', 'nap', [3_600_000], cancelled);
    await sleep(random.between(0, 2000));
    await cancel(run);
  },
  async 'cancel of a hook'({ startWithToken, cancel, resume }, random) {
    const { run, token } = await startWithToken('cancel of a hook', 'approval', [], (payload) =>
      either(exactly(payload), cancelled),
    );
    await sleep(random.between(0, 2000));
    await Promise.all([cancel(run), resume(token, token)]);
  },

  async stream({ start, follow }) {
    const parts = Array.from({ length: 20 }, (_, n) => [n]);
    await follow(await start('stream', 'ticking', [20], exactly(20)), parts);
  },
  async 'large stream'({ start, follow }) {
    const parts = [0, 150].map((first) => Array.from({ length: 150 }, (_, n) => first + n));
    await follow(await start('large stream', 'counting', [300], exactly(300)), parts);
  },
};

/**
 * Begun by faults, and by nothing else.
 *
 * @type {Record<'replay death' | 'step death' | 'deadly step cancelled' | 'frozen loop', (player: Player, drawn: any) => Promise<void>>}
 */
export const provoked = {
  // A start that seemed to fail may have been accepted: all tries share a name, and with it the deaths.
  async 'replay death'({ start, tokens }, { deaths }) {
    await start('replay death', 'deadlyReplay', [tokens(), deaths], exactly(deaths));
  },
  async 'step death'({ start, tokens }, { deaths }) {
    await start('step death', 'deadlyStep', [tokens(), deaths], exactly(deaths));
  },
  async 'deadly step cancelled'({ start, cancel, tokens }, { deaths, ms }) {
    const outcome = either(cancelled, exactly(deaths), failure('WorkflowRunFailedError'));
    const run = await start('deadly step cancelled', 'deadlyStep', [tokens(), deaths], outcome);
    await sleep(ms);
    // Its attempts may be over before.
    if (await cancel(run)) run.accepts = cancelled;
  },
  async 'frozen loop'({ start }, { ms }) {
    await start('frozen loop', 'blocking', [ms], exactly(ms));
  },
};

/**
 * The winner of each round in each branch: the odd ones race a step, the even ones a callback.
 *
 * @param {unknown} value
 * @param {number} branches
 * @param {number} rounds
 */
function isStorm(value, branches, rounds) {
  return (
    Array.isArray(value) &&
    value.length === branches &&
    value.every(
      (winners, branch) =>
        winners.length === rounds &&
        winners.every((/** @type {string} */ winner) =>
          ['watchdog', branch % 2 === 0 ? 'callback' : 'step'].includes(winner),
        ),
    )
  );
}

/**
 * Each value doubled, in order, once for each try that may have been accepted.
 *
 * @param {unknown} received
 * @param {number[]} values
 * @param {number[]} tries
 */
function receivedInOrder(received, values, tries) {
  if (!Array.isArray(received)) return false;
  const once = received.filter((value, n) => value !== received[n - 1]);
  const counts = values.map((value) => received.filter((item) => item === 2 * value).length);
  return (
    isDeepStrictEqual(
      once,
      values.map((value) => 2 * value),
    ) && counts.every((count, n) => count <= tries[n])
  );
}
