import { readFileSync } from 'node:fs';
import os from 'node:os';

/** @typedef {{ world: string, round: number, figures: Record<string, number>, foreignShare: number, top: Record<string, import('./meter.mjs').Statement[]> }} Result */

/** Row by row: the figure, what it is, and its number of decimals. */
const rows = /** @type {const} */ ([
  ['stepsPerSecond', 'steps/s, 100 runs of 10 steps at once', 0],
  ['stepLatency', 'ms per sequential step, one run of 50 on an idle system', 1],
  ['nodeCpu', 'Node CPU ms per step under load', 2],
  ['postgresCpu', 'PostgreSQL CPU ms per step under load', 2],
  ['statements', 'SQL statements per step', 1],
  ['transactions', 'writing transactions per step', 1],
  ['wal', 'WAL bytes per step', 0],
  ['fanOut', 'ms for a fan-out of 100 steps, start to end', 0],
  ['chunksPerSecond', 'stream chunks/s, 1,000 chunks from a step to a reader', 0],
  ['idleStatements', 'SQL statements/s, idle', 1],
  ['idleCpu', 'CPU ms/s, idle, Node and PostgreSQL', 1],
  ['connections', 'connections, idle', 0],
]);

/** @param {number[]} values */
function summary(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  const median = (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2;
  return { median, min: sorted[0], max: sorted[sorted.length - 1] };
}

/** @param {Result[]} results */
export function summarize(results) {
  /** @type {Record<string, Record<string, ReturnType<typeof summary>>>} */
  const summaries = {};
  for (const { world } of results) {
    const mine = results.filter((result) => result.world === world);
    summaries[world] = Object.fromEntries(
      Object.keys(mine[0].figures).map((key) => [key, summary(mine.map((r) => r.figures[key]))]),
    );
  }
  return summaries;
}

/**
 * A table with a column per World, and one for each ratio to the last of them.
 *
 * @param {ReturnType<typeof summarize>} summaries
 * @param {string} environment
 */
export function table(summaries, environment) {
  const worlds = Object.keys(summaries);
  const [first, last] = [worlds[0], worlds[worlds.length - 1]];
  const others = worlds.slice(0, -1);
  const measured = rows.filter(([key]) => key in summaries[first]);
  const lines = measured.map(([key, label, digits]) => {
    const cells = worlds.map((world) => {
      const { median, min, max } = summaries[world][key];
      return `${median.toFixed(digits)} (${min.toFixed(digits)}–${max.toFixed(digits)})`;
    });
    for (const world of others) {
      const ratio = summaries[world][key].median / summaries[last][key].median;
      cells.push(`${ratio.toFixed(2)}×`);
    }
    return [label, ...cells];
  });
  const head = ['median (min–max)', ...worlds, ...others.map((world) => `${world} / ${last}`)];
  const rule = head.map((_, index) => (index === 0 ? '---' : '--:'));
  const markdown = [head, rule, ...lines].map((cells) => `| ${cells.join(' | ')} |`);
  return `${environment}\n\n${markdown.join('\n')}\n`;
}

/** @param {{ rounds: number, postgres: string, foreignShare: number }} session */
export function describe({ rounds, postgres, foreignShare }) {
  const [{ model }] = os.cpus();
  const memory = Math.round(os.totalmem() / 2 ** 30);
  return [
    `${os.cpus().length} × ${model.trim()}, ${memory} GiB, ${os.type()} ${os.release()}`,
    `Node ${process.version}, ${postgres}`,
    `workflow ${version('workflow')}, fsync on, synchronous_commit as each World sets it`,
    `interleaved rounds: ${rounds}, concurrency 10`,
    foreignShare > 0
      ? `other processes took up to ${Math.round(foreignShare * 100)} % of the machine`
      : 'other processes not measured',
  ].join('; ');
}

/** @param {string} name of an installed package */
function version(name) {
  const file = new URL(`../node_modules/${name}/package.json`, import.meta.url);
  return JSON.parse(readFileSync(file, 'utf8')).version;
}
