// How long recoveries take, each measured many times at default settings.
//
//   npm run recovery -- [--only target,killed,handed-over,listening,database] [--repetitions 20]
//     [--at-once 2] [--outage 600]
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
  target: targetBack,
  killed,
  'handed-over': handedOver,
  listening,
  database: databaseBack,
};

const { values: options } = parseArgs({
  options: {
    only: { type: 'string', default: Object.keys(measurements).join(',') },
    repetitions: { type: 'string', default: '20' },
    'at-once': { type: 'string', default: '2' },
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

/** @type {import('./recovery/place.mjs').Figure[]} */
const figures = [];
/** @type {Promise<void>[]} */
const going = [];
for (const [name, measure] of Object.entries(measurements)) {
  if (!wanted.includes(name)) continue;
  // The others are measured while the targets are down, which costs next to nothing.
  await new Promise((next) => {
    const measuring = measure(extent, () => next(undefined)).then(
      (measured) => {
        figures.push(...measured);
        for (const figure of measured) console.error(row(figure));
      },
      (error) => {
        process.exitCode = 1;
        console.error(`${name} failed`, error);
      },
    );
    going.push(measuring);
    measuring.then(next);
  });
}
await Promise.all(going);

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
if (!figures.every(isMet)) process.exitCode = 1;
