import { getWritable } from 'workflow';
import { observed } from './ledger';

async function write(from: number, to: number, namespace?: string) {
  'use step';
  await observed('write', async () => {
    const writer = getWritable<number>({ namespace }).getWriter();
    const writes: Promise<void>[] = [];
    for (let n = from; n < to; n++) writes.push(writer.write(n));
    await Promise.all(writes);
    writer.releaseLock();
  });
}

async function close(namespace?: string) {
  'use step';
  await observed('close', () => getWritable<number>({ namespace }).close());
}

export async function counting(chunks: number, namespace?: string) {
  'use workflow';
  const middle = Math.floor(chunks / 2);
  await write(0, middle, namespace);
  await write(middle, chunks, namespace);
  await close(namespace);
  return chunks;
}

/** A chunk per step. */
export async function ticking(chunks: number) {
  'use workflow';
  for (let n = 0; n < chunks; n++) await write(n, n + 1);
  await close();
  return chunks;
}
