import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { Transform } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';

const READY_FOR_QUERY = Buffer.from([...Buffer.from('Z'), 0, 0, 0, 5]);

/**
 * A connection that passes through. `frozen`: nothing passes any more, and neither end is told.
 * `answerBytes`: how many more of the server's bytes pass before the connection is cut.
 * `held`: the client is gone, and what it sent last has not reached the server yet. `stalled`: until then
 * nothing passes, but nothing is lost either, not even when the client gives up.
 *
 * @typedef {object} Link
 * @property {import('node:net').Socket} client
 * @property {import('node:net').Socket} upstream
 * @property {boolean} frozen
 * @property {number | undefined} answerBytes
 * @property {boolean} held
 * @property {Promise<void> | undefined} stalled
 */

/**
 * Stands between a World and PostgreSQL, and can be disturbed.
 *
 * @param {{ after: (cleanup: () => Promise<void>) => void }} t
 * @param {string} target URL
 */
export async function relay(t, target) {
  let { hostname, port } = new URL(target);
  /** @type {Set<import('node:net').Socket>} */
  const sockets = new Set();
  /** @type {Set<Link>} */
  const links = new Set();
  /** @type {'open' | 'refusing' | 'silent' | 'full'} */
  let state = 'open';
  let delayMs = 0;
  let accepted = 0;
  /** @type {(() => number) | undefined} */
  let drawAnswerBytes;
  /** @type {((link: Link, chunk: Buffer) => boolean) | undefined} */
  let holds;
  let release = () => {};
  const drop = () => {
    for (const socket of sockets) socket.destroy();
  };

  /** @param {Link} link @param {boolean} answers whether it passes what the server says */
  const gate = (link, answers) =>
    new Transform({
      async transform(chunk, _encoding, done) {
        if (delayMs > 0) await sleep(delayMs);
        await link.stalled;
        if (link.frozen || (!answers && holds?.(link, chunk))) return done();
        if (!answers || link.answerBytes === undefined) return done(null, chunk);
        // What the client has sent is with the server already: only the answer is lost.
        const passing = chunk.subarray(0, link.answerBytes);
        link.answerBytes -= passing.length;
        if (passing.length === chunk.length) return done(null, chunk);
        link.client.write(passing, () => link.client.destroy());
        done();
      },
    });

  const server = createServer({ noDelay: true, pauseOnConnect: true }, (client) => {
    accepted += 1;
    sockets.add(client);
    client.on('error', () => {});
    client.on('close', () => sockets.delete(client));
    if (state === 'refusing') return void client.destroy();
    if (state === 'silent') return;
    if (state === 'full') return turnAway(client);
    const upstream = connect({ host: hostname, port: Number(port), noDelay: true });
    /** @type {Link} */
    const link = {
      client,
      upstream,
      frozen: false,
      answerBytes: drawAnswerBytes?.(),
      held: false,
      stalled: undefined,
    };
    const requests = gate(link, false);
    links.add(link);
    upstream.on('error', () => {});
    upstream.on('close', () => {
      links.delete(link);
      if (!link.frozen) client.destroySoon();
    });
    client.on('close', () => {
      if (link.held) return;
      if (!link.stalled) return void upstream.destroy();
      // The server gets the request, and that the client has gone, when the network is back.
      requests.end();
      upstream.resume();
    });
    client.pipe(requests).pipe(upstream);
    upstream.pipe(gate(link, true), { end: false }).pipe(client);
    client.resume();
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(async () => {
    drop();
    for (const { upstream } of links) upstream.destroy();
    server.close();
    await once(server, 'close');
  });
  const url = new URL(target);
  url.hostname = '127.0.0.1';
  url.port = String(/** @type {import('node:net').AddressInfo} */ (server.address()).port);
  return {
    url: url.href,
    /** How many connections there are. */
    open: () => sockets.size,
    /** How many there have been. */
    accepted: () => accepted,
    /** From where PostgreSQL sees them come. */
    ports: () => [...links].map(({ upstream }) => upstream.localPort),
    /**
     * Cuts all connections; new ones are refused, or nobody ever says a word to them, or they are told that
     * there are too many clients, as Supavisor says it.
     * @param {'refusing' | 'silent' | 'full'} how
     */
    cut(how) {
      state = how;
      drop();
    },
    /**
     * Half-open: the connections that there are carry nothing any more, and neither end is told.
     * @param {{ newOnesToo: boolean }} options
     */
    freeze({ newOnesToo }) {
      for (const link of links) link.frozen = true;
      if (newOnesToo) state = 'silent';
    },
    /**
     * A partition as TCP survives it: the connections that there are carry nothing until `release`, and
     * then all of it, also the requests of clients that have given up meanwhile. New ones are fine.
     */
    stall() {
      const stalled = new Promise((resolve) => {
        release = () => resolve(undefined);
      });
      for (const link of links) link.stalled ??= stalled;
    },
    release() {
      for (const link of links) link.stalled = undefined;
      release();
    },
    /** New connections go to another server; the ones that there are end. @param {string} url */
    aim(url) {
      ({ hostname, port } = new URL(url));
      drop();
    },
    /** Everything takes longer, in both directions. @param {number} ms */
    delay(ms) {
      delayMs = ms;
    },
    /**
     * Cuts each connection, those to come included, after as many bytes of the server as `draw` says,
     * while whatever the client sent has passed.
     * @param {() => number} draw
     */
    loseAnswers(draw) {
      drawAnswerBytes = draw;
      for (const link of links) link.answerBytes = draw();
    },
    /**
     * Holds back the next statement with `marker` among its parameters, as a network does that delivers it
     * later: its client, after `meanwhile`, sees the connection end.
     * @param {string} marker
     * @param {() => Promise<unknown>} [meanwhile]
     */
    holdBack(marker, meanwhile = async () => {}) {
      /** @type {{ link: Link, statement: Buffer } | undefined} */
      let late;
      holds = (link, chunk) => {
        if (!chunk.includes(marker)) return false;
        holds = undefined;
        late = { link, statement: chunk };
        link.held = true;
        meanwhile().finally(() => link.client.destroy());
        return true;
      };
      return {
        /** Lets it reach the server now, and waits until the server has executed it. */
        async arrive() {
          if (!late) throw new Error(`no statement with ${marker} came by`);
          const { upstream } = late.link;
          upstream.write(late.statement);
          for await (const chunk of upstream) if (chunk.includes(READY_FOR_QUERY)) break;
          upstream.destroy();
        },
      };
    },
    /** All is well for new connections; the ones that there are end. */
    heal() {
      state = 'open';
      delayMs = 0;
      drawAnswerBytes = undefined;
      drop();
    },
    /** As `heal`, but connections that still work live on. */
    calm() {
      state = 'open';
      delayMs = 0;
      drawAnswerBytes = undefined;
      for (const link of links) link.answerBytes = undefined;
      const working = new Set(
        [...links].filter(({ frozen }) => !frozen).map((link) => link.client),
      );
      for (const socket of sockets) if (!working.has(socket)) socket.destroy();
    },
  };
}

/**
 * Answers as a pooler that lets nobody in: FATAL, with a code that says nothing of the cause.
 * @param {import('node:net').Socket} client
 */
function turnAway(client) {
  const fields = [
    'SFATAL',
    'VFATAL',
    'CXX000',
    'MMaxClientsInSessionMode: max clients reached',
    '',
  ];
  const text = Buffer.from(`${fields.join('\0')}\0`);
  const head = Buffer.alloc(5);
  head.write('E');
  head.writeInt32BE(text.length + 4, 1);
  client.on('data', (data) => {
    // A request for TLS is declined; then comes the startup.
    if (data.length === 8) client.write('N');
    else client.end(Buffer.concat([head, text]));
  });
  client.resume();
}
