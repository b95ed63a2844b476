import assert from 'node:assert/strict';
import test, { after } from 'node:test';
import { bytes, openWorld, runningRun, ulid } from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';
import { changed, changes } from './creatures.mjs';
import { attempt, forAll, rowVersions } from './hostility.mjs';

const database = await testDatabase({ after });
const world = openWorld(database);
after(() => world.close());

const runId = await runningRun(world);
const name = 'strm_of_the_reads';
await world.writeToStreamMulti?.(name, runId, ['a', bytes('b'), 'c']);
await world.closeStream(name, runId);

/**
 * What a reader gets first, if that is there by now: one of a stream that nobody writes waits.
 * @param {any} at
 * @param {any} startIndex
 */
async function first(at, startIndex) {
  const reader = (await world.readFromStream(at, startIndex)).getReader();
  try {
    return await Promise.race([reader.read(), world.getStreamInfo(at, runId)]);
  } finally {
    await reader.cancel().catch(() => {});
  }
}

/** @type {Record<string, [(...args: any[]) => Promise<unknown>, ...unknown[]]>} */
const reads = {
  readFromStream: [first, name, 1],
  getStreamChunks: [world.getStreamChunks, name, runId, { limit: 1, cursor: '1' }],
  getStreamInfo: [world.getStreamInfo, name, runId],
  listStreamsByRunId: [world.listStreamsByRunId, runId],
};

for (const [method, [read, ...args]] of Object.entries(reads)) {
  test(`${method} gives an answer or a refusal, and writes nothing`, async () => {
    assert.ok('answer' in (await attempt(() => read(...args))), 'what is right is answered');
    const before = await rowVersions(database);
    await forAll(60, changes, async (hostile) => {
      await attempt(() => read(...changed(args, hostile)));
    });
    assert.deepEqual(await rowVersions(database), before);
  });
}

/** @param {unknown} chunk */
const asBytes = (chunk) => (typeof chunk === 'string' ? bytes(chunk) : /** @type {any} */ (chunk));

/** @type {Record<string, () => unknown[]>} */
const writes = {
  writeToStream: () => [`strm_${ulid()}`, runId, bytes('chunk')],
  writeToStreamMulti: () => [`strm_${ulid()}`, runId, ['a', bytes('b'), 'c']],
  closeStream: () => [`strm_${ulid()}`, runId],
};

for (const [method, prepare] of Object.entries(writes)) {
  test(`${method} writes what it is given, or nothing`, async () => {
    const write = /** @type {any} */ (world)[method];
    await write(...prepare());
    await forAll(60, changes, async (hostile) => {
      const args = /** @type {any[]} */ (changed(prepare(), hostile));
      const before = await rowVersions(database);
      const [stream, run, given] = args;
      const known =
        typeof stream === 'string' && (await attempt(() => world.getStreamInfo(stream, '')));
      const outcome = await attempt(() => write(...args));
      if ('refusal' in outcome) {
        assert.deepEqual(await rowVersions(database), before, 'half a write');
        return;
      }
      assert.ok(known && 'answer' in known);
      const { tailIndex, done } = known.answer;
      const { done: closed } = await world.getStreamInfo(stream, run);
      const chunks = method === 'closeStream' ? [] : [given].flat().map(asBytes);
      assert.equal(closed, done || method === 'closeStream');
      const cursor = String(tailIndex + 1);
      const { data } = await world.getStreamChunks(stream, run, { cursor });
      const written = data.map((/** @type {any} */ chunk) => Buffer.from(chunk.data));
      assert.equal(written.length, done ? 0 : chunks.length);
      for (const [at, chunk] of written.entries()) assert.ok(chunk.equals(chunks[at]));
      if (tailIndex === -1 && !done && (chunks.length > 0 || closed)) {
        assert.ok((await world.listStreamsByRunId(run)).includes(stream));
      }
    });
  });
}
