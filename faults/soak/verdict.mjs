/** @typedef {import('./meter.mjs').Sample} Sample */
/**
 * @typedef {object} Metric
 * @property {string} title
 * @property {number} [slack] how much it may grow and still be flat; without it, nothing is expected
 * @property {boolean} [perRun] it grows with the runs, by the same amount for each
 */

/** Growth by less than this part of the mean is none. */
const RELATIVE_SLACK = 0.1;

/** @type {Record<string, Metric>} */
export const metrics = {
  rss: { title: 'RSS of the app, MB', slack: 10 },
  heapMb: { title: 'JS heap after collection, MB', slack: 5 },
  handles: { title: 'open file handles', slack: 2 },
  connections: { title: 'connections', slack: 1 },
  backendsMb: { title: 'private memory of PostgreSQL, MB', slack: 20 },
  queued: { title: 'messages in the queue', slack: 20 },
  jobMb: { title: 'job table, MB', slack: 1 },
  jobIndexMb: { title: 'indexes of the job table, MB', slack: 1 },
  jobDead: { title: 'dead rows of the job table' },
  stepsDead: { title: 'dead rows of steps', slack: 1000 },
  runsDead: { title: 'dead rows of runs', slack: 1000 },
  eventsBytes: { title: 'events, bytes per run', perRun: true },
  stepsBytes: { title: 'steps, bytes per run', perRun: true },
  runsBytes: { title: 'runs, bytes per run', perRun: true },
  runsPerSecond: { title: 'runs/s' },
  p50: { title: 'ms per run, p50' },
  p95: { title: 'ms per run, p95' },
};

/** @param {number[]} values */
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** By how much a line through these points rises from the first to the last. @param {number[]} x @param {number[]} y */
export function rise(x, y) {
  const [meanX, meanY] = [mean(x), mean(y)];
  const spread = x.reduce((sum, value) => sum + (value - meanX) ** 2, 0);
  const slope = x.reduce((sum, value, n) => sum + (value - meanX) * (y[n] - meanY), 0) / spread;
  return slope * (x[x.length - 1] - x[0]);
}

/**
 * @typedef {object} Verdict
 * @property {string} title
 * @property {number} first of the window, or per run in its first half
 * @property {number} last of the window, or per run in its second half
 * @property {number} most of all samples
 * @property {number} growth along the window
 * @property {boolean | undefined} flat
 */

/** @param {Metric} metric @param {string} name @param {Sample[]} samples @returns {Verdict} */
function judge({ title, slack, perRun }, name, samples) {
  const window = samples.slice(Math.floor(samples.length / 3));
  const values = window.map((sample) => sample[name]);
  const most = Math.max(...samples.map((sample) => sample[name]));
  if (perRun) {
    const middle = window[Math.floor(window.length / 2)];
    /** @param {Sample} from @param {Sample} to */
    const each = (from, to) => (to[name] - from[name]) / (to.runs - from.runs);
    const [first, last] = [each(window[0], middle), each(middle, window[window.length - 1])];
    const growth = last - first;
    return { title, first, last, most: Number.NaN, growth, flat: growth <= RELATIVE_SLACK * first };
  }
  const growth = rise(
    window.map(({ minutes }) => minutes),
    values,
  );
  const flat =
    slack === undefined ? undefined : growth <= Math.max(slack, RELATIVE_SLACK * mean(values));
  return { title, first: values[0], last: values[values.length - 1], most, growth, flat };
}

/** Over the last two thirds: what came before was warming up. @param {Sample[]} samples */
export const judgeAll = (samples) =>
  Object.entries(metrics).map(([name, metric]) => judge(metric, name, samples));

/** @param {number} value */
const short = (value) =>
  Number.isNaN(value) ? '' : value.toLocaleString('en', { maximumFractionDigits: 1 });

/** @param {Sample} sample */
export const sampleLine = (sample) =>
  ['minutes', ...Object.keys(metrics)].map((name) => `${name} ${short(sample[name])}`).join(', ');

/** @param {Verdict[]} verdicts @param {string} note */
export function table(verdicts, note) {
  return [
    note,
    '',
    '| | first | last | most | growth | |',
    '| --- | --: | --: | --: | --: | --- |',
    ...verdicts.map(({ title, first, last, most, growth, flat }) => {
      const word = flat === undefined ? '' : flat ? 'flat' : '**grows**';
      return `| ${[title, ...[first, last, most, growth].map(short), word].join(' | ')} |`;
    }),
    '',
  ].join('\n');
}
