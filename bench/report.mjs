import { readFileSync } from 'node:fs';
import os from 'node:os';
import { median } from './statistics.mjs';
import { worlds } from './worlds.mjs';

/**
 * What one turn of a World has shown.
 *
 * @typedef {object} Result
 * @property {string} world
 * @property {number} round
 * @property {Record<string, number>} figures
 * @property {Record<string, number>} seconds that each scenario took
 * @property {number} pace of the machine before it
 * @property {number} foreignShare the most that other processes took of the machine in a scenario
 * @property {Record<string, import('./meter.mjs').Statement[]>} top statements of each scenario
 * @property {Record<string, import('./meter.mjs').WalRecord[]>} wal records of each scenario
 */
/** @typedef {{ median: number, min: number, max: number }} Summary */
/** @typedef {{ of: string, to: string, goal?: 'http' | 'function' | 'history' }} Ratio */
/**
 * What the project has set itself: the ratio to the official package, per pattern, or for `figure` the
 * figure itself.
 *
 * @typedef {{ most: boolean, http: number, function: number, figure?: boolean }} Goal
 */
/** @typedef {{ key: string, label: string, digits: number, goal?: Goal }} Row */

/** @param {number} http @param {number} [of] the function proxy's @returns {Goal} */
const most = (http, of = http) => ({ most: true, http, function: of });
/** @param {number} http @param {number} [of] the function proxy's @returns {Goal} */
const least = (http, of = http) => ({ most: false, http, function: of });
/** @param {number} figure @returns {Goal} */
const mostFigure = (figure) => ({ ...most(figure), figure: true });

/** @type {Row[]} */
const rows = [
  { key: 'runLatency', label: 'ms for a run of one step, idle system', digits: 1 },
  { key: 'stepLatency10', label: 'ms per sequential step, run of 10, idle system', digits: 1 },
  {
    key: 'stepLatency50',
    label: 'ms per sequential step, run of 50, idle system',
    digits: 1,
    goal: most(0.45, 0.35),
  },
  { key: 'stepLatency200', label: 'ms per sequential step, run of 200, idle system', digits: 1 },
  {
    key: 'stepsPerSecond',
    label: 'steps/s, 100 runs of 10 steps at once',
    digits: 0,
    goal: least(2.5, 3),
  },
  { key: 'runsPerSecond', label: 'runs/s, 200 runs of one step at once', digits: 0 },
  { key: 'fanOutStepsPerSecond', label: 'steps/s, 5 fan-outs of 100 steps at once', digits: 0 },
  {
    key: 'fanOut',
    label: 'ms for a fan-out of 100 steps, start to end',
    digits: 0,
    goal: most(0.45),
  },
  { key: 'nodeCpu', label: 'Node CPU ms per step under load', digits: 2 },
  {
    key: 'nodeCpuAboveFloor',
    label: 'Node CPU ms per step under load, above the floor',
    digits: 2,
    goal: most(0.2),
  },
  {
    key: 'postgresCpu',
    label: 'PostgreSQL CPU ms per step under load',
    digits: 2,
    goal: most(0.4),
  },
  {
    key: 'statements',
    label: 'SQL statements per step under load',
    digits: 1,
    goal: mostFigure(8),
  },
  { key: 'transactions', label: 'writing transactions per step under load', digits: 1 },
  { key: 'wal', label: 'WAL bytes per step under load', digits: 0, goal: most(0.8) },
  {
    key: 'walOfPayload',
    label: 'WAL MiB per step that returns 1 MiB',
    digits: 2,
    goal: most(0.55),
  },
  { key: 'payloadLatency', label: 'ms per step that returns 1 MiB, 2 runs', digits: 0 },
  { key: 'peakMemory', label: 'peak memory under load, MiB, Node', digits: 0 },
  { key: 'hookResume', label: 'ms from resumeHook to the end of its run', digits: 1 },
  { key: 'sleepLateness', label: 'ms that a sleep ends late, p50', digits: 1 },
  {
    key: 'sleepLateness95',
    label: 'ms that a sleep ends late, p95',
    digits: 1,
    goal: mostFigure(15),
  },
  {
    key: 'chunksPerSecond',
    label: 'stream chunks/s, 1,000 chunks of one step',
    digits: 0,
    goal: least(5),
  },
  { key: 'firstChunk', label: 'ms from start to the first chunk of its stream', digits: 1 },
  {
    key: 'chunkLatency',
    label: 'ms from write to read of a chunk, one each 20 ms, p50',
    digits: 1,
    goal: most(0.3),
  },
  {
    key: 'chunkLatency95',
    label: 'ms from write to read of a chunk, one each 20 ms, p95',
    digits: 1,
  },
  {
    key: 'idleStatements',
    label: 'SQL statements/s, idle',
    digits: 1,
    goal: mostFigure(0.5),
  },
  { key: 'idleCpu', label: 'CPU ms/s, idle, Node and PostgreSQL', digits: 1 },
  { key: 'connectionsUnderLoad', label: 'connections under load', digits: 0 },
  {
    key: 'connections',
    label: 'connections, 10 s after the last work',
    digits: 0,
    goal: mostFigure(3),
  },
  { key: 'append', label: 'ms per events.create, one after another', digits: 2 },
  { key: 'appendsPerSecond', label: 'events.create/s, 10 runs at a time', digits: 0 },
  { key: 'listEvents1k', label: 'ms to list 1,000 events, all pages', digits: 1 },
  {
    key: 'listEvents10k',
    label: 'ms to list 10,000 events, all pages',
    digits: 1,
    goal: most(0.3),
  },
  { key: 'listRuns', label: 'ms for the first page of 100,000 runs', digits: 2 },
  { key: 'messagesPerSecond', label: 'messages/s through the queue alone', digits: 0 },
];

/** How much worse anything may be with many runs stored. */
const historyGoal = 1.2;

/** @type {Ratio[]} */
export const ratios = [
  { of: worlds.floor.name, to: worlds.official.name },
  { of: worlds.http.name, to: worlds.official.name, goal: 'http' },
  { of: worlds.function.name, to: worlds.official.name, goal: 'function' },
];

/** Of each World with history to the same without. @param {{ name: string, stored: number }[]} contenders @returns {Ratio[]} */
export const historyRatios = (contenders) =>
  contenders.flatMap(({ name, stored }, index) =>
    stored ? [{ of: name, to: contenders[index - 1].name, goal: 'history' }] : [],
  );

/** @param {number[]} values @returns {Summary} */
const summary = (values) => ({
  median: median(values),
  min: Math.min(...values),
  max: Math.max(...values),
});

/** Adds to the figures what a World costs on top of the floor in the same round. @param {Result[]} results */
export function addAboveFloor(results) {
  const floor = worlds.floor.name;
  for (const { world, round, figures } of results) {
    const { nodeCpu } = figuresOf(results, floor, round);
    if (world === floor || nodeCpu === undefined) continue;
    figures.nodeCpuAboveFloor = figures.nodeCpu - nodeCpu;
  }
}

/** @param {Result[]} results @param {string} world @param {number} round @returns {Record<string, number | undefined>} */
const figuresOf = (results, world, round) =>
  results.find((result) => result.world === world && result.round === round)?.figures ?? {};

/** @param {Result[]} results */
export function summarize(results) {
  /** @type {Record<string, Record<string, Summary>>} */
  const summaries = {};
  for (const world of new Set(results.map((result) => result.world))) {
    const mine = results.filter((result) => result.world === world);
    summaries[world] = Object.fromEntries(
      Object.keys(mine[0].figures).map((key) => [
        key,
        summary(mine.map(({ figures }) => figures[key])),
      ]),
    );
  }
  return summaries;
}

/**
 * The median of what the rounds say: between them, the machine may have become slower.
 *
 * @param {Result[]} results
 * @param {string} key
 * @param {Ratio} ratio
 */
function ratioOf(results, key, { of, to }) {
  const all = results.flatMap(({ world, round, figures }) => {
    const theirs = figuresOf(results, to, round)[key];
    return world === of && key in figures && theirs !== undefined ? [figures[key] / theirs] : [];
  });
  return all.length > 0 ? median(all) : undefined;
}

/** @param {Row} row @param {Ratio} ratio @param {number} value of that ratio @param {number} figure */
function isReached({ key, goal }, { goal: pattern }, value, figure) {
  if (pattern === 'history') {
    return key.endsWith('PerSecond') ? value >= 1 / historyGoal : value <= historyGoal;
  }
  if (!goal || !pattern) return undefined;
  const compared = goal.figure ? figure : value;
  return goal.most ? compared <= goal[pattern] : compared >= goal[pattern];
}

/** @param {Goal} goal */
function textOf({ most, http, function: functions, figure }) {
  const sign = most ? '≤' : '≥';
  if (figure) return `${sign} ${http}`;
  return http === functions
    ? `${sign} ${http}×`
    : `HTTP ${sign} ${http}×, function ${sign} ${functions}×`;
}

/**
 * A column per World, and one for each ratio, with a sign that tells whether it is what was aimed at.
 *
 * @param {Result[]} results
 * @param {Ratio[]} wanted
 * @param {string} session
 */
export function table(results, wanted, session) {
  const summaries = summarize(results);
  const names = Object.keys(summaries);
  const compared = wanted.filter(({ of, to }) => names.includes(of) && names.includes(to));
  const hasGoals = compared.some(({ goal }) => goal && goal !== 'history');
  const measured = rows.filter(({ key }) => names.some((name) => key in summaries[name]));

  const lines = measured.map((row) => {
    const { key, label, digits, goal } = row;
    const figures = names.map((name) => {
      const found = summaries[name][key];
      if (!found) return '–';
      const [middle, min, max] = [found.median, found.min, found.max].map((n) => n.toFixed(digits));
      return `${middle} (${min}–${max})`;
    });
    const quotients = compared.map((ratio) => {
      const value = ratioOf(results, key, ratio);
      if (value === undefined) return '–';
      const reached = isReached(row, ratio, value, summaries[ratio.of][key].median);
      const sign = reached === undefined ? '' : reached ? ' ✓' : ' ✗';
      return `${value.toFixed(2)}×${sign}`;
    });
    return [label, ...figures, ...quotients, ...(hasGoals ? [goal ? textOf(goal) : ''] : [])];
  });

  const heads = compared.map(({ of, to }) => `${of} / ${to}`);
  const head = ['median (min–max)', ...names, ...heads, ...(hasGoals ? ['goal'] : [])];
  const rule = head.map((_, index) => (index === 0 ? '---' : '--:'));
  const markdown = [head, rule, ...lines].map((cells) => `| ${cells.join(' | ')} |`);
  return `${session}\n\n${markdown.join('\n')}\n`;
}

/** @param {Result[]} results @param {string} postgres */
export function describe(results, postgres) {
  const [{ model }] = os.cpus();
  const memory = Math.round(os.totalmem() / 2 ** 30);
  const rounds = Math.max(...results.map(({ round }) => round));
  const foreignShare = Math.max(...results.map((result) => result.foreignShare));
  const paces = results.map(({ pace }) => pace);
  return [
    `${os.cpus().length} × ${model.trim()}, ${memory} GiB, ${os.type()} ${os.release()}`,
    `Node ${process.version}, ${postgres}`,
    `workflow ${version('workflow')}, fsync on, synchronous_commit as each World sets it`,
    `interleaved rounds: ${rounds}, concurrency 10; ratios are medians of those of the rounds`,
    `other processes took up to ${Math.round(foreignShare * 100)} % of the machine`,
    `the same work took ${Math.min(...paces).toFixed(0)} to ${Math.max(...paces).toFixed(0)} ms`,
  ].join('; ');
}

/** @param {string} name of an installed package */
function version(name) {
  const file = new URL(`../node_modules/${name}/package.json`, import.meta.url);
  return JSON.parse(readFileSync(file, 'utf8')).version;
}
