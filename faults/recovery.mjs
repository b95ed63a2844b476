// How long recoveries take, each measured many times at default settings.
//
//   npm run recovery -- [--only killed,handed-over,listening,database,target] [--repetitions 20]
//     [--at-once 4] [--outage 600]
import { mkdir, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { buildApp, root } from '../__test__/support/app.mjs';
import { databaseBack } from './recovery/database.mjs';
import { handedOver } from './recovery/handed-over.mjs';
import { killed } from './recovery/killed.mjs';
import { listening } from './recovery/listening.mjs';
import { isMet, row, table } from './recovery/report.mjs';
import { targetBack } from './recovery/target.mjs';

const measurements = {
  killed,
  'handed-over': handedOver,
  listening,
  database: databaseBack,
  target: targetBack,
};

const { values: options } = parseArgs({
  options: {
    only: { type: 'string', default: Object.keys(measurements).join(',') },
    repetitions: { type: 'string', default: '20' },
    'at-once': { type: 'string', default: '4' },
    outage: { type: 'string', default: '600' },
  },
});
const extent = {
  repetitions: Number(options.repetitions),
  atOnce: Number(options['at-once']),
  outageSeconds: Number(options.outage),
};
const wanted = options.only.split(',');
for (const name of wanted) {
  if (!(name in measurements)) throw new Error(`there is no measurement "${name}"`);
}

delete process.env.WORKFLOW_POSTGRES_URL;
await buildApp();

/** @param {string} name */
async function measure(name) {
  const figures = await measurements[/** @type {keyof typeof measurements} */ (name)](extent);
  for (const figure of figures) console.error(row(figure));
  return figures;
}

// The long outage costs nobody anything; the others share the machine as little as they can.
const long = wanted.includes('target') ? measure('target') : Promise.resolve([]);
const others = (async () => {
  const figures = [];
  for (const name of wanted.filter((name) => name !== 'target')) {
    figures.push(...(await measure(name)));
  }
  return figures;
})();
const figures = (await Promise.all([others, long])).flat();

const machine = `${os.availableParallelism()} cores, Node ${process.version}`;
const markdown = table(figures, `${extent.repetitions} repetitions; ${machine}.`);
const directory = path.join(root, 'faults/.artifacts');
await mkdir(directory, { recursive: true });
const file = path.join(
  directory,
  `recovery-${new Date().toISOString().replaceAll(':', '-').slice(0, 19)}`,
);
await writeFile(`${file}.json`, JSON.stringify({ extent, machine, figures }, null, 2));
await writeFile(`${file}.md`, markdown);
console.log(`\n${markdown}\n${path.relative(root, file)}.{json,md}`);
process.exitCode = figures.every(isMet) ? 0 : 1;
