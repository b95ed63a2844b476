// Runs of all kinds while everything fails that can fail: `npm run faults -- --seed 7 --minutes 2`.
// The same seed injects the same faults. `--only kill,outage` restricts them, `--workload slow,stream`
// the runs, `--list` prints both; `--keep` leaves the ledger and the logs also where
// all is well.
import { randomInt } from 'node:crypto';
import { parseArgs } from 'node:util';
import { canSkewClocks } from './cast.mjs';
import { run } from './harness.mjs';
import { injections } from './injections.mjs';
import { print } from './report.mjs';
import { kinds } from './workload.mjs';

const { values } = parseArgs({
  options: {
    seed: { type: 'string' },
    minutes: { type: 'string', default: '2' },
    only: { type: 'string' },
    workload: { type: 'string' },
    keep: { type: 'boolean', default: false },
    list: { type: 'boolean', default: false },
  },
});

if (values.list) {
  console.log(
    `Faults: ${Object.keys(injections).join(', ')}\nRuns: ${Object.keys(kinds).join(', ')}`,
  );
} else {
  const seed = Number(values.seed ?? randomInt(2 ** 31));
  console.log(`Seed ${seed}`);
  if (!canSkewClocks) console.log('Clocks are left alone: apt-get install libfaketime');
  const report = await run({
    seed,
    ms: Number(values.minutes) * 60_000,
    only: chosen(values.only, injections),
    workload: chosen(values.workload, kinds),
    keep: values.keep,
    log: console.log,
  });
  print(report);
  if (values.keep || report.violations.length > 0) console.log(`Files: ${report.directory}`);
  process.exitCode = report.violations.length > 0 ? 1 : 0;
}

/** @param {string | undefined} names @param {Record<string, unknown>} table */
function chosen(names, table) {
  const all = Object.keys(table);
  const wanted = names?.split(',') ?? all;
  const unknown = wanted.filter((name) => !all.includes(name));
  if (unknown.length > 0) throw new Error(`no such kind: ${unknown.join(', ')}`);
  return wanted;
}
