// Our World next to the official package and to the floor, on one PostgreSQL and in the same process
// layout: one app process that serves HTTP and works. The Worlds take turns; each turn has a fresh
// database.
//
//   npm run bench -- [--rounds 5] [--worlds floor,http,function,official] [--only load,idle]
//   npm run bench -- --history [--runs 1000000]: ours when empty, and with that many finished runs
//   npm run bench -- --profile --worlds http --only load: with CPU profiles of the app's JavaScript
//
// Five rounds of all take about 25 minutes on 2 cores, `--history` with its three 10.
import { mkdir, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import pg from 'pg';
import { root, startApp } from '../__test__/support/app.mjs';
import { startPostgres } from '../scripts/support/postgres.mjs';
import { addRuns } from './history.mjs';
import { createMeter, createObserver, pace } from './meter.mjs';
import { addAboveFloor, describe, historyRatios, ratios, summarize, table } from './report.mjs';
import { scenarios, warmUp } from './scenarios.mjs';
import { environment, setUp, worlds } from './worlds.mjs';

/** @typedef {import('./worlds.mjs').World} World */
/** @typedef {import('./scenarios.mjs').Scenario} Scenario */
/** @typedef {{ world: World, name: string, stored: number }} Contender `stored`: runs in its tables */

const { values: options } = parseArgs({
  options: {
    rounds: { type: 'string' },
    worlds: { type: 'string' },
    only: { type: 'string' },
    history: { type: 'boolean', default: false },
    runs: { type: 'string', default: '1000000' },
    profile: { type: 'boolean', default: false },
  },
});
const { history } = options;
const rounds = Number(options.rounds ?? (history ? 3 : 5));
const names = options.worlds?.split(',') ?? (history ? ['http'] : Object.keys(worlds));
/** @type {Contender[]} */
const contenders = names
  .map((name) => worlds[name])
  .flatMap((world) => {
    const { name } = world;
    const empty = { world, name, stored: 0 };
    const stored = Number(options.runs);
    return history ? [empty, { world, name: `${name}, ${stored} runs`, stored }] : [empty];
  });
// With its own rows in the tables, `storage` says nothing of what is stored before.
const wanted = scenarios.filter(
  ({ name }) => options.only?.split(',').includes(name) ?? !(history && name === 'storage'),
);

const artifacts = path.join(root, 'bench/.artifacts');
await mkdir(artifacts, { recursive: true });
const file = path.join(artifacts, new Date().toISOString().replaceAll(':', '-').slice(0, 19));

delete process.env.WORKFLOW_POSTGRES_URL;
const postgres = await startPostgres({
  // Checkpoints come when we say so: the pages that follow one are written to the WAL in full.
  settings: { fsync: 'on', checkpoint_timeout: '1h', max_wal_size: '8GB' },
});
const postmaster = /** @type {number} */ (await postgres.pid());
const admin = new pg.Client({ connectionString: postgres.url });
await admin.connect();

/**
 * @template T
 * @param {World} world
 * @param {string} url
 * @param {string | undefined} directory of the app
 * @param {(subject: import('./scenarios.mjs').Subject) => Promise<T>} use
 */
async function withApp(world, url, directory, use) {
  const app = await startApp({ env: environment(world, url), directory });
  const meter = await createMeter({ url, postmaster, app: app.pid });
  try {
    return await use({ world, app, meter });
  } finally {
    await app.stop();
    await meter.close();
  }
}

/** @param {string} name @param {World} world @returns {Promise<string>} its URL */
async function createDatabase(name, world) {
  await admin.query(`CREATE DATABASE ${name}`);
  const url = String(Object.assign(new URL(postgres.url), { pathname: name }));
  await setUp(world, url);
  return url;
}

/** Databases with history, which is not written twice. @type {Map<Contender, string>} */
const filled = new Map();

/** @param {Contender} contender @param {string} name */
async function filledDatabase(contender, name) {
  const existing = filled.get(contender);
  if (existing) return existing;
  const { world, stored } = contender;
  const url = await createDatabase(name, world);
  await withApp(world, url, undefined, async ({ app, meter }) => {
    const { runIds } = await app.call('execute', 'sequential', [1], 1, 0);
    await addRuns(meter.query, world, runIds[0], stored);
  });
  filled.set(contender, url);
  return url;
}

/** @param {Contender} contender @param {number} round @returns {Promise<import('./report.mjs').Result>} */
async function turn(contender, round) {
  const { world, stored } = contender;
  const database = `bench_${contenders.indexOf(contender)}_${round}`;
  const url = await (stored
    ? filledDatabase(contender, database)
    : createDatabase(database, world));
  await admin.query('CHECKPOINT');

  /** @type {import('./report.mjs').Result} */
  const result = {
    world: contender.name,
    round,
    figures: {},
    seconds: {},
    pace: pace(),
    foreignShare: 0,
    top: {},
    wal: {},
  };
  const possible = wanted.filter(({ stores }) => world.tables || !stores);
  for (const directory of new Set(possible.map(({ directory }) => directory))) {
    await withApp(world, url, directory, async (subject) => {
      if (!directory) await warmUp(subject);
      for (const scenario of possible) {
        if (scenario.directory !== directory) continue;
        const begin = performance.now();
        if (options.profile) await subject.app.call('startProfile');
        const { figures, cost } = await scenario.measure(subject).catch((cause) => {
          throw new Error(`${scenario.name}: ${cause.message}\n${subject.app.logs()}`, { cause });
        });
        if (options.profile) {
          const profile = `${file}-${contender.name.replaceAll(/\W+/g, '-')}-${scenario.name}-${round}`;
          await writeFile(`${profile}.cpuprofile`, await subject.app.call('stopProfile'));
        }
        Object.assign(result.figures, figures);
        result.seconds[scenario.name] = (performance.now() - begin) / 1000;
        if (!cost) continue;
        result.top[scenario.name] = cost.top;
        result.wal[scenario.name] = cost.wal;
        const share = cost.foreignCpu / cost.seconds / os.availableParallelism();
        result.foreignShare = Math.max(result.foreignShare, share);
      }
    });
  }
  if (!stored) await admin.query(`DROP DATABASE ${database} WITH (FORCE)`);
  return result;
}

/** @type {import('./report.mjs').Result[]} */
const results = [];
try {
  await createObserver(admin);
  const { rows } = await admin.query('SHOW server_version');
  for (let round = 1; round <= rounds; round++) {
    for (const contender of contenders) {
      const begin = performance.now();
      const result = await turn(contender, round);
      results.push(result);
      const seconds = Math.round((performance.now() - begin) / 1000);
      const others = `others ${Math.round(result.foreignShare * 100)} %`;
      const figures = Object.entries(result.figures).map(([key, n]) => `${key} ${n.toFixed(2)}`);
      console.error(
        `round ${round}, ${result.world}: ${figures.join(', ')}, ${others}, ${seconds} s`,
      );
    }
  }
  addAboveFloor(results);
  const summaries = summarize(results);
  const session = describe(results, `PostgreSQL ${rows[0].server_version}`);
  const markdown = table(results, history ? historyRatios(contenders) : ratios, session);

  await writeFile(`${file}.json`, JSON.stringify({ session, summaries, results }, null, 2));
  await writeFile(`${file}.md`, markdown);
  console.log(`\n${markdown}\n${path.relative(root, file)}.{json,md}`);
} finally {
  await admin.end();
  await postgres.stop();
}
