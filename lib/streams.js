import { call, callSync, invalid } from './errors.js';
import { bytesOf } from './events.js';
import {
  asking,
  attached,
  isBytes,
  optionalInteger,
  optionalString,
  reading,
  string,
} from './input.js';

/** @typedef {import('./core.js').Core} Core */
/** @typedef {import('../native/index.cjs').NodeReply} NodeReply */

/**
 * The SDK's Streamer over the core: one write is one chunk is one index.
 * @param {() => Core} core
 */
export function createStreamer(core) {
  const ask = asking(core);

  return {
    /** @param {string} name @param {string} runId @param {string | Uint8Array} chunk */
    async writeToStream(name, runId, chunk) {
      await ask((core) =>
        core.appendChunks(string('name', name), string('runId', runId), [bytes(chunk)]),
      );
    },
    /** @param {string} name @param {string} runId @param {(string | Uint8Array)[]} chunks */
    async writeToStreamMulti(name, runId, chunks) {
      await ask((core) => {
        if (!Array.isArray(chunks)) throw invalid('chunks must be an array');
        const all = Array.from(chunks, bytes);
        return core.appendChunks(string('name', name), string('runId', runId), all);
      });
    },
    /** @param {string} name @param {string} runId */
    async closeStream(name, runId) {
      await ask((core) => core.closeStream(string('name', name), string('runId', runId)));
    },
    /** @param {string} name @param {number} [startIndex] */
    async readFromStream(name, startIndex) {
      const opened = core();
      const [checked, start] = reading(() => [
        string('name', name),
        optionalInteger('startIndex', startIndex),
      ]);
      return readable(
        opened,
        callSync(() => opened.readStream(checked, start)),
      );
    },
    /** @param {string} runId */
    async listStreamsByRunId(runId) {
      return ask((core) => core.listStreams(string('runId', runId)));
    },
    /** @param {string} name @param {string} _runId @param {{ limit?: number, cursor?: string }} [options] */
    async getStreamChunks(name, _runId, options) {
      const reply = await ask((core) => {
        const limit = optionalInteger('limit', options?.limit);
        const cursor = optionalString('cursor', options?.cursor);
        return core.streamChunks(string('name', name), limit, cursor);
      });
      const { data, ...page } = JSON.parse(reply.json);
      return {
        data: data.map((/** @type {{ index: number, data: [number, number] }} */ chunk) => ({
          index: chunk.index,
          data: bytesOf(reply, chunk.data),
        })),
        ...page,
      };
    },
    /** @param {string} name @param {string} _runId */
    async getStreamInfo(name, _runId) {
      return JSON.parse(await ask((core) => core.streamInfo(string('name', name))));
    },
  };
}

/**
 * Reads on demand: a batch is fetched when the consumer has taken the one before.
 * @param {Core} core
 * @param {import('../native/index.cjs').StreamReader} reader
 * @returns {ReadableStream<Uint8Array>}
 */
function readable({ calls }, reader) {
  return new ReadableStream(
    {
      async pull(controller) {
        const reply = await call(calls.make((number) => reader.startNext(number)));
        if (reply.json === undefined) {
          controller.close();
          return;
        }
        for (const span of JSON.parse(reply.json)) {
          // A copy with a buffer of its own: the SDK's byte streams transfer it away.
          controller.enqueue(/** @type {Uint8Array} */ (bytesOf(reply, span)));
        }
      },
      cancel() {
        reader.cancel();
      },
    },
    { highWaterMark: 0 },
  );
}

const encoder = new TextEncoder();

/** @param {unknown} chunk */
function bytes(chunk) {
  if (typeof chunk === 'string') return encoder.encode(chunk);
  if (isBytes(chunk)) return attached('a chunk', chunk);
  throw invalid('A chunk must be a Uint8Array or a string');
}
