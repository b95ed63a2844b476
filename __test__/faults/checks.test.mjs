import assert from 'node:assert/strict';
import { test } from 'node:test';
import { disappeared, isAffected, leaks, results, streams } from '../../faults/checks.mjs';
import { kinds, provoked } from '../../faults/workload.mjs';

/** @typedef {import('../../faults/workload.mjs').Run} Run */

/**
 * A client that answers as it is told.
 *
 * @param {Record<string, (...args: any[]) => unknown>} methods
 */
const client = (methods) =>
  /** @type {import('../support/app.mjs').App} */ (
    /** @type {unknown} */ ({
      call: async (/** @type {string} */ method, /** @type {unknown[]} */ ...args) =>
        methods[method](...args),
    })
  );

/** @param {Partial<Run>} run @returns {Run} */
const run = (run) => ({
  kind: 'stream',
  runId: 'wrun_1',
  since: 0,
  scene: { from: 0, to: 100 },
  accepts: ({ value }) => value === 55,
  ...run,
});

test('a run must end with its result', async () => {
  assert.deepEqual(await results(client({ result: () => 55 }), [run({})]), []);
  const wrong = await results(client({ result: () => 54 }), [run({})]);
  assert.match(wrong.join(), /wrun_1 ended with \{"value":54\}/);
  const failed = await results(client({ result: () => Promise.reject(new RangeError('no')) }), [
    run({}),
  ]);
  assert.match(failed.join(), /"error":"RangeError"/);
});

test('a run that a failover affected may miss what was lost, but must not fail', async () => {
  const losses = [{ from: 50, to: 60 }];
  const other = client({ result: () => 54 });
  assert.deepEqual(await results(other, [run({})], losses), []);
  assert.equal((await results(other, [run({ scene: { from: 0, to: 40 } })], losses)).length, 1);
  const corrupt = client({
    result: () =>
      Promise.reject(Object.assign(new Error('no'), { name: 'WorkflowRunFailedError' })),
  });
  assert.equal((await results(corrupt, [run({})], losses)).length, 1);
  assert.equal(isAffected(losses, run({ scene: { from: 70, to: 80 } })), false);
});

test('a run may disappear only with a failover that lost it', () => {
  assert.deepEqual(disappeared([run({})], ['wrun_1'], [{ from: 50, to: 60 }]), []);
  assert.deepEqual(disappeared([run({})], ['wrun_2'], []), []);
  assert.deepEqual(disappeared([run({})], ['wrun_1'], [{ from: 150, to: 160 }]), [
    'stream wrun_1 is lost',
  ]);
});

/**
 * Two steps that write: 0 and 1, then 2 and 3.
 *
 * @type {import('../../faults/ledger.mjs').Entry[]}
 */
const writes = ['step_1', 'step_2'].flatMap((stepId, n) =>
  /** @type {const} */ (['begin', 'end']).map((phase) => ({
    phase,
    runId: 'wrun_1',
    stepId,
    step: 'write',
    attempt: 1,
    pid: 10,
    at: n,
    moment: n,
  })),
);
const parts = [
  [0, 1],
  [2, 3],
];
/** @param {number[]} stored @param {number[]} live @param {import('../../faults/ledger.mjs').Window[]} [windows] */
const readings = (stored, live, windows = []) =>
  streams(
    client({ readStream: () => stored }),
    [run({ stream: { parts, live } })],
    writes,
    windows,
  );

for (const [what, stored, live] of /** @type {[string, number[], number[]][]} */ ([
  ['a chunk is missing', [0, 2, 3], [0, 2, 3]],
  ['a chunk came twice', [0, 1, 1, 2, 3], [0, 1, 1, 2, 3]],
  ['chunks of a step changed places', [1, 0, 2, 3], [1, 0, 2, 3]],
  ['somebody else wrote', [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]],
  ['a reader missed a chunk', [0, 1, 2, 3], [0, 2, 3]],
])) {
  test(`a stream is not right where ${what}`, async () => {
    const found = await readings(stored, live);
    assert.equal(found.length, 1, found.join());
  });
}

test('a stream is right where each chunk came once, in the order of its step', async () => {
  for (const chunks of [
    [0, 1, 2, 3],
    [0, 2, 1, 3],
  ]) {
    assert.deepEqual(await readings(chunks, chunks), []);
  }
});

test('a chunk may be lost with the process that had it in hand, but comes only once', async () => {
  const kill = [{ kind: 'kill', from: 0, to: 1, pids: [10] }];
  assert.deepEqual(await readings([0, 2, 3], [0, 2, 3], kill), []);
  assert.equal((await readings([0, 0, 2, 3], [0, 0, 2, 3], kill)).length, 1);
});

test('a process that keeps what it does not need is found', () => {
  const usage = { role: 'http', pid: 1, handles: 30, connections: 11, megabytes: 100 };
  assert.deepEqual(leaks([usage], [{ ...usage, handles: 35 }]), []);
  assert.equal(leaks([usage], [{ ...usage, handles: 130 }]).length, 1);
  assert.equal(leaks([usage], [{ ...usage, connections: 40 }]).length, 1);
});

test('no kind of run takes whatever comes', async () => {
  const scenes = Object.entries(provoked).map(
    ([name, play]) =>
      /** @type {const} */ ([
        name,
        (/** @type {any} */ player) => play(player, { ms: 0, deaths: 1 }),
      ]),
  );
  for (const [name, kind] of [...Object.entries(kinds), ...scenes]) {
    /** @type {Run[]} */
    const runs = [];
    /** @param {string} kind @param {Run['accepts']} accepts */
    const add = (kind, accepts) => {
      const begun = run({ kind, accepts });
      runs.push(begun);
      return begun;
    };
    const player = {
      tokens: () => 'another token',
      insist: async () => {},
      start: async (/** @type {any[]} */ ...args) => add(args[0], args[3]),
      startWithToken: async (/** @type {any[]} */ ...args) => ({
        token: 'token',
        run: add(args[0], args[3]('token')),
      }),
      hook: async () => {},
      ends: async () => {},
      callBack: async () => {},
      resume: async () => ({ accepted: true, tries: 1 }),
      cancel: async () => true,
      follow: async () => {},
    };
    const soon = { between: () => 0, one: () => 0, deck: () => () => 0 };
    await kind(/** @type {any} */ (player), /** @type {any} */ (soon));
    assert.ok(runs.length > 0, name);
    for (const { accepts } of runs) {
      assert.equal(accepts({ value: 'something else' }), false, name);
      assert.equal(accepts({ error: 'SomeError' }), false, name);
      assert.equal(accepts({ value: undefined }), false, name);
    }
  }
});
