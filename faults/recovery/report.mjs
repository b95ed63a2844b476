/** @typedef {import('./place.mjs').Figure} Figure */

/** @param {number[]} samples @param {number} share */
export function quantile(samples, share) {
  const sorted = [...samples].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)];
}

/** @param {Figure} figure */
const summary = ({ samples }) => ({
  median: quantile(samples, 0.5),
  p95: quantile(samples, 0.95),
  worst: quantile(samples, 1),
});

/** @param {Figure} figure */
export function isMet(figure) {
  const { median, worst } = summary(figure);
  const { goal } = figure;
  return median <= (goal.median ?? Infinity) && worst <= (goal.worst ?? Infinity);
}

/** @param {number} ms */
const seconds = (ms) => (ms / 1000).toFixed(2);

/** @param {Figure} figure */
export function row(figure) {
  const { median, p95, worst } = summary(figure);
  const { what, from, to, goal } = figure;
  const goals = [
    goal.median === undefined ? [] : [`median ≤ ${goal.median / 1000}`],
    goal.worst === undefined ? [] : [`worst ≤ ${goal.worst / 1000}`],
  ].flat();
  const verdict = isMet(figure) ? '' : ' **missed**';
  const cells = [
    what,
    `${from} → ${to}`,
    ...[median, p95, worst].map(seconds),
    goals.join(', ') + verdict,
  ];
  return `| ${cells.join(' | ')} |`;
}

/** @param {Figure[]} figures @param {string} note */
export function table(figures, note) {
  return [
    `Seconds. ${note}`,
    '',
    '| | measured | median | p95 | worst | goal |',
    '| --- | --- | --: | --: | --: | --- |',
    ...figures.map(row),
    '',
  ].join('\n');
}
