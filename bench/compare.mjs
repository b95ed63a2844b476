// Our World next to the official package, on one PostgreSQL and in the same process layout: one app
// process that serves HTTP and works. The Worlds take turns; each turn has a fresh database.
//
//   npm run bench -- [--rounds 3] [--worlds http,function,official] [--only load,idle]
import { mkdir, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import pg from 'pg';
import { root, startApp } from '../__test__/support/app.mjs';
import { startPostgres } from '../scripts/support/postgres.mjs';
import { createMeter, createObserver } from './meter.mjs';
import { describe, summarize, table } from './report.mjs';
import { scenarios, warmUp } from './scenarios.mjs';
import { environment, setUp, worlds } from './worlds.mjs';

const { values: options } = parseArgs({
  options: {
    rounds: { type: 'string', default: '3' },
    worlds: { type: 'string', default: Object.keys(worlds).join(',') },
    only: { type: 'string', default: scenarios.map(({ name }) => name).join(',') },
  },
});
const rounds = Number(options.rounds);
const compared = options.worlds.split(',').map((name) => worlds[name]);
const wanted = scenarios.filter(({ name }) => options.only.split(',').includes(name));

delete process.env.WORKFLOW_POSTGRES_URL;
const postgres = await startPostgres({
  // Checkpoints come when we say so: the pages that follow one are written to the WAL in full.
  settings: { fsync: 'on', checkpoint_timeout: '1h', max_wal_size: '8GB' },
});
const admin = new pg.Client({ connectionString: postgres.url });
await admin.connect();

/**
 * @param {import('./worlds.mjs').World} world
 * @param {number} round
 * @returns {Promise<import('./report.mjs').Result>}
 */
async function turn(world, round) {
  const database = `bench_${compared.indexOf(world)}_${round}`;
  await admin.query(`CREATE DATABASE ${database}`);
  const url = String(Object.assign(new URL(postgres.url), { pathname: database }));
  await setUp(world, url);
  await admin.query('CHECKPOINT');

  const app = await startApp({ env: environment(world, url) });
  const postmaster = /** @type {number} */ (await postgres.pid());
  const meter = await createMeter({ url, postmaster, app: app.pid, runs: world.runs });
  /** @type {import('./report.mjs').Result} */
  const result = { world: world.name, round, figures: {}, foreignShare: 0, top: {} };
  try {
    await warmUp({ app, meter });
    for (const { name, measure } of wanted) {
      const { figures, cost } = await measure({ app, meter });
      Object.assign(result.figures, figures);
      if (cost) result.top[name] = cost.top;
      if (cost) {
        const share = cost.foreignCpu / cost.seconds / os.availableParallelism();
        result.foreignShare = Math.max(result.foreignShare, share);
      }
    }
  } finally {
    await app.stop();
    await meter.close();
    await admin.query(`DROP DATABASE ${database} WITH (FORCE)`);
  }
  return result;
}

const results = [];
try {
  await createObserver(admin);
  const { rows } = await admin.query('SHOW server_version');
  for (let round = 1; round <= rounds; round++) {
    for (const world of compared) {
      const result = await turn(world, round);
      results.push(result);
      const others = `others ${Math.round(result.foreignShare * 100)} %`;
      const figures = Object.entries(result.figures).map(([key, n]) => `${key} ${n.toFixed(2)}`);
      console.error(`round ${round}, ${world.name}: ${figures.join(', ')}, ${others}`);
    }
  }
  const foreignShare = Math.max(...results.map((result) => result.foreignShare));
  const summaries = summarize(results);
  const session = describe({
    rounds,
    postgres: `PostgreSQL ${rows[0].server_version}`,
    foreignShare,
  });
  const markdown = table(summaries, session);

  const directory = path.join(root, 'bench/.artifacts');
  await mkdir(directory, { recursive: true });
  const stamp = new Date().toISOString().replaceAll(':', '-').slice(0, 19);
  const file = path.join(directory, stamp);
  await writeFile(`${file}.json`, JSON.stringify({ session, summaries, results }, null, 2));
  await writeFile(`${file}.md`, markdown);
  console.log(`\n${markdown}\n${path.relative(root, file)}.{json,md}`);
} finally {
  await admin.end();
  await postgres.stop();
}
