import { randomBytes } from 'node:crypto';
import { setTimeout } from 'node:timers/promises';
import { getWritable, sleep } from 'workflow';

/** Chunks that say when they were written: at once, or one after another in such intervals. */
async function stamp(chunks: number, interval: number) {
  'use step';
  const writer = getWritable<number>().getWriter();
  const writes: Promise<void>[] = [];
  for (let n = 0; n < chunks; n++) {
    if (interval > 0) await setTimeout(interval);
    writes.push(writer.write(performance.timeOrigin + performance.now()));
  }
  await Promise.all(writes);
  await writer.close();
}

/** Text that does not compress. */
async function produce(length: number) {
  'use step';
  return randomBytes(length).toString('base64').slice(0, length);
}

export async function stamped(chunks: number, interval: number) {
  'use workflow';
  await stamp(chunks, interval);
  return chunks;
}

export async function produced(steps: number, length: number) {
  'use workflow';
  let total = 0;
  for (let n = 0; n < steps; n++) total += (await produce(length)).length;
  return total;
}

export async function rests(count: number, ms: number) {
  'use workflow';
  for (let n = 0; n < count; n++) await sleep(ms);
  return count;
}
