/** @param {Record<string, number>} counts */
const list = (counts) =>
  Object.entries(counts)
    .map(([name, count]) => `${name} ${count}`)
    .join(', ') || 'none';

/** @param {number} ms */
const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;

/** @param {import('./harness.mjs').Report} report */
export function print(report) {
  const { seed, runs, steps, faults, excused, slowest, recovery, laggard, slowestExit, usage } =
    report;
  const count = Object.values(runs).reduce((total, n) => total + n, 0);
  console.log(`
Runs: ${count} (${list(runs)}); ${steps} executions of steps
Faults: ${list(faults)}
Executions that a fault repeated: ${list(excused)}
Slowest run ${seconds(slowest.ms)} (${slowest.kind} ${slowest.runId}), last end ${seconds(recovery)} after the last fault, slowest exit ${seconds(slowestExit)}
Processes at the end: ${usage
    .map((u) => `${u.role} ${u.megabytes} MB, ${u.handles} handles, ${u.connections} connections`)
    .join('; ')}`);
  if (laggard) {
    const lines = laggard.split('\n').map((line) => line.slice(0, 200));
    console.log(`The run that ended last: ${lines.join('\n')}`);
  }
  if (report.violations.length === 0) {
    console.log(`Seed ${seed}: nothing lost, nothing doubled`);
    return;
  }
  console.error(`\nSeed ${seed}: ${report.violations.length} violations\n`);
  for (const violation of report.violations) console.error(`${violation}\n`);
  console.error('What the processes said last');
  for (const log of report.logs) console.error(`\n${ours(log).slice(-2000)}`);
}

/** Without the SDK's lines, which tell at length of errors that belong to the workload. @param {string} log */
function ours(log) {
  const [head, ...lines] = log.split('\n');
  return [head, ...lines.filter((line) => line.startsWith('[@workflow/'))].join('\n');
}
