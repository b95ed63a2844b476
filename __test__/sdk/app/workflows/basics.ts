import { setTimeout } from 'node:timers/promises';
import { sleep } from 'workflow';
import { start } from 'workflow/api';
import { observed } from './ledger';

async function add(a: number, b: number, ms: number) {
  'use step';
  return observed('add', () => setTimeout(ms, a + b));
}

async function square(n: number, ms: number) {
  'use step';
  return observed('square', () => setTimeout(ms, n * n));
}

/** Occupies its slot until another run, whose step needs a slot too, has ended. */
async function awaitChild(n: number) {
  'use step';
  return observed('awaitChild', async () => (await start(sequential, [n])).returnValue);
}

async function repeat<T>(value: T) {
  'use step';
  return observed('repeat', () => value);
}

export async function sequential(steps: number, ms = 0) {
  'use workflow';
  let total = 0;
  for (let n = 1; n <= steps; n++) total = await add(total, n, ms);
  return total;
}

/** Its queue has the word in its name that the first README's handler looks for. */
export async function stepwise(value: unknown) {
  'use workflow';
  return repeat(value);
}

export async function fanOut(width: number, ms = 0) {
  'use workflow';
  const squares = await Promise.all(Array.from({ length: width }, (_, n) => square(n, ms)));
  return squares.reduce((total, n) => total + n, 0);
}

/** The first step takes `first` ms, the others `ms`. */
export async function race(width: number, first: number, ms: number) {
  'use workflow';
  return Promise.race(Array.from({ length: width }, (_, n) => square(n, n === 0 ? first : ms)));
}

export async function parent(n: number) {
  'use workflow';
  return awaitChild(n);
}

export async function echo(value: unknown) {
  'use workflow';
  return { direct: value, fromStep: await repeat(value) };
}

export async function nap(ms: number) {
  'use workflow';
  const before = Date.now();
  await sleep(ms);
  return Date.now() - before;
}

export async function naps(count: number, ms: number) {
  'use workflow';
  let total = 0;
  for (let n = 1; n <= count; n++) {
    await sleep(ms);
    total = await add(total, n, 0);
  }
  return total;
}

/** Arithmetic with an unset value makes a date of long ago, or none. */
export async function napUntil(at: Date) {
  'use workflow';
  await sleep(at);
  return 'awake';
}
