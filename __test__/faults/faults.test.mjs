import assert from 'node:assert/strict';
import { test } from 'node:test';
import { run } from '../../faults/harness.mjs';
import { injections } from '../../faults/injections.mjs';
import { plan } from '../../faults/plan.mjs';

const SEED = 20261121;
const kinds = Object.keys(injections);

test('a seed plans the same faults each time, another one others', () => {
  assert.deepEqual(plan(SEED, 120_000, kinds), plan(SEED, 120_000, kinds));
  assert.notDeepEqual(plan(SEED, 120_000, kinds), plan(SEED + 1, 120_000, kinds));
});

test('two minutes bring every kind of fault, and end in calm', () => {
  for (let seed = 1; seed <= 30; seed++) {
    const faults = plan(seed, 120_000, kinds);
    assert.deepEqual(new Set(faults.map(({ kind }) => kind)), new Set(kinds), `seed ${seed}`);
    assert.ok(faults.every(({ at }) => at < 110_000));
  }
});

test(`a minute of faults loses nothing and doubles nothing: npm run faults -- --seed ${SEED} --minutes 1`, async (t) => {
  const { violations, runs, faults, excused } = await run({
    seed: SEED,
    ms: 60_000,
    log: (line) => t.diagnostic(line),
  });
  t.diagnostic(JSON.stringify({ runs, faults, excused }));
  assert.deepEqual(violations, []);
});
