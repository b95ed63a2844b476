import assert from 'node:assert/strict';
import { test } from 'node:test';
import { describe, judge, lossWindows, ownWindows } from '../../faults/ledger.mjs';

/** @typedef {import('../../faults/ledger.mjs').Entry} Entry */
/** @typedef {import('../../faults/ledger.mjs').Window} Window */

/**
 * @param {Entry['phase']} phase
 * @param {number} moment
 * @param {Partial<Entry>} [rest]
 * @returns {Entry}
 */
const entry = (phase, moment, rest) => ({
  phase,
  moment,
  runId: 'wrun_1',
  stepId: 'step_1',
  step: 'add',
  attempt: 1,
  pid: 10,
  at: moment,
  ...rest,
});
const first = [entry('begin', 1000), entry('end', 1100)];
const again = [
  entry('begin', 9000, { attempt: 2, pid: 20 }),
  entry('end', 9100, { attempt: 2, pid: 20 }),
];
/** @param {Partial<Window>} window @returns {Window} */
const window = (window) => ({ kind: 'kill', from: 1050, to: 1060, pids: [10], ...window });

test('a step that runs once needs no reason', () => {
  assert.deepEqual(judge(first, []), { excused: [], unexcused: [] });
});

test('a step that runs again although nothing happened has none', () => {
  const { excused, unexcused } = judge([...first, ...again], []);
  assert.deepEqual(excused, []);
  assert.deepEqual(
    unexcused.map(({ stepId, executions }) => [stepId, executions.length]),
    [['step_1', 2]],
  );
  assert.match(describe(unexcused[0], []), /attempt 2 in 20: 8000 to 8100 ms end/);
});

test('a step that failed may run again', () => {
  const threw = [entry('begin', 1000), entry('throw', 1100)];
  assert.deepEqual(judge([...threw, ...again], []), { excused: [], unexcused: [] });
});

test('a step may run again whose process was killed while it ran', () => {
  const [begin] = first;
  const { excused, unexcused } = judge([begin, ...again], [window({})]);
  assert.deepEqual(unexcused, []);
  assert.deepEqual(
    excused.map(({ reason }) => reason),
    ['kill'],
  );
});

/** @type {Record<string, Window[]>} */
const noReasons = {
  'the end of another process': [window({ pids: [20] })],
  'a fault that repeats nothing': [window({ kind: 'outage', pids: [], database: true })],
  'a kill before it began': [window({ from: 900, to: 910 })],
  'a kill after it ran again': [window({ from: 9500, to: 9510 })],
  'a kill long after its outcome was stored': [window({ from: 8000, to: 8010 })],
};
for (const [name, windows] of Object.entries(noReasons)) {
  test(`no reason for a step to run again: ${name}`, () => {
    assert.equal(judge([...first, ...again], windows).unexcused.length, 1);
  });
}

test('an outcome that waits for PostgreSQL is lost with its process', () => {
  const outage = window({ kind: 'outage', from: 1000, to: 8000, pids: [], database: true });
  const kill = window({ from: 8000, to: 8010 });
  assert.equal(judge([...first, ...again], [outage, kill]).unexcused.length, 0);
});

test('each execution above one needs a reason of its own', () => {
  const third = [entry('begin', 20_000, { attempt: 3, pid: 30 })];
  const { excused, unexcused } = judge([...first, ...again, ...third], [window({})]);
  assert.equal(excused.length, 1);
  assert.equal(unexcused.length, 1);
});

test('a step of a process that was told to end may run again where it could not be reported', () => {
  const told = window({ kind: 'stop', drains: true, to: 30_000 });
  const outage = window({ kind: 'outage', pids: [], database: true, from: 3000, to: 20_000 });
  assert.equal(judge([...first, ...again], [told]).unexcused.length, 1);
  const { excused, unexcused } = judge([...first, ...again], [told, outage]);
  assert.deepEqual(unexcused, []);
  assert.deepEqual(
    excused.map(({ reason }) => reason),
    ['stop'],
  );
});

test('a step may run again that its run has killed together with its process', () => {
  const [begin] = first;
  const windows = ownWindows([begin, ...again], [{ pid: 10, moment: 1050 }]);
  assert.equal(judge([begin, ...again], windows).unexcused.length, 0);
  const other = ownWindows([begin, ...again], [{ pid: 30, moment: 1050 }]);
  assert.equal(judge([begin, ...again], other).unexcused.length, 1);
});

test('a blocked event loop repeats nothing', () => {
  const block = [entry('begin', 900, { step: 'block', stepId: 'step_2' })];
  const entries = [...first, ...again, ...block];
  assert.equal(judge(entries, ownWindows(entries, [])).unexcused.length, 1);
});

test('an outcome that waits for a blocked event loop is lost with its process', () => {
  const block = ['begin', 'end'].map((phase, n) =>
    entry(/** @type {Entry['phase']} */ (phase), 1050 + n * 6000, {
      step: 'block',
      stepId: 'step_2',
    }),
  );
  const entries = [...first, ...again, ...block];
  const kill = window({ from: 8000, to: 8010 });
  assert.equal(judge(entries, [kill]).unexcused.length, 1);
  assert.equal(judge(entries, [kill, ...ownWindows(entries, [])]).unexcused.length, 0);
});

test('a step may run again whose begin or end PostgreSQL has forgotten, in whichever process', () => {
  for (const loss of [
    { from: 900, to: 1010 },
    { from: 1050, to: 2000 },
  ]) {
    const { excused } = judge([...first, ...again], lossWindows([loss]));
    assert.deepEqual(
      excused.map(({ reason }) => reason),
      ['loss'],
    );
  }
});

test('a step may not run again that began before a loss and ended after it', () => {
  const long = [entry('begin', 1000), entry('end', 20_000)];
  const loss = lossWindows([{ from: 2000, to: 4000 }]);
  assert.equal(judge([...long, ...again], loss).unexcused.length, 1);
});

test('a worker protects a step of a process that is cut off, until its delivery is broken off', () => {
  const long = [entry('begin', 1000), entry('end', 20_000)];
  const cutOff = window({ kind: 'partition', from: 2000, to: 8500, guarded: true });
  assert.equal(judge([...long, ...again], [cutOff]).unexcused.length, 1);
  const before = window({ kind: 'http-cut', from: 500, to: 600, pids: [], http: true });
  assert.equal(judge([...long, ...again], [cutOff, before]).unexcused.length, 1);
  const meanwhile = window({ kind: 'http-cut', from: 1500, to: 1500, pids: [], http: true });
  assert.equal(judge([...long, ...again], [cutOff, meanwhile]).unexcused.length, 0);
  assert.equal(judge([...long, ...again], [meanwhile]).unexcused.length, 1);
});
