import { observed } from './ledger';

/**
 * Kills the process that executes it, until that has happened so many times in this name. The death is
 * written to the ledger first. Workflow code has no process of its own; the `console` of its context is
 * the host's, and leads there.
 */
function kill(name: string, deaths: number) {
  const host: NodeJS.Process = console.log.constructor('return process')();
  const { appendFileSync, existsSync, readFileSync } = host.getBuiltinModule('node:fs');
  const file = `${host.env.TEST_LEDGER}.deaths`;
  const lines = existsSync(file) ? readFileSync(file, 'utf8').split('\n').slice(0, -1) : [];
  const before = lines.filter((line) => JSON.parse(line).name === name).length;
  if (before >= deaths) return;
  const moment = Number(host.hrtime.bigint() / BigInt(1_000_000));
  appendFileSync(file, `${JSON.stringify({ name, pid: host.pid, moment })}\n`);
  host.kill(host.pid, 'SIGKILL');
}

async function survive(value: number) {
  'use step';
  return observed('survive', () => value);
}

async function die(name: string, deaths: number) {
  'use step';
  return observed('die', () => {
    kill(name, deaths);
    return deaths;
  });
}

/** Blocks the event loop, and with it all that the process does in JavaScript. */
async function block(ms: number) {
  'use step';
  return observed('block', () => {
    const end = performance.now() + ms;
    while (performance.now() < end);
    return ms;
  });
}

/** Its replay after the first step kills the process, so many times. */
export async function deadlyReplay(name: string, deaths: number) {
  'use workflow';
  const value = await survive(deaths);
  kill(name, deaths);
  return survive(value);
}

export async function deadlyStep(name: string, deaths: number) {
  'use workflow';
  return die(name, deaths);
}

export async function blocking(ms: number) {
  'use workflow';
  return block(ms);
}
