import { once } from 'node:events';
import { connect, createServer } from 'node:net';

/**
 * Stands between a World and PostgreSQL, and can be cut.
 *
 * @param {{ after: (cleanup: () => Promise<void>) => void }} t
 * @param {string} target URL
 */
export async function relay(t, target) {
  const { hostname, port } = new URL(target);
  /** @type {Set<import('node:net').Socket>} */
  const sockets = new Set();
  /** @type {Set<import('node:net').Socket>} */
  const upstreams = new Set();
  /** @type {'open' | 'refusing' | 'silent'} */
  let state = 'open';
  const drop = () => {
    for (const socket of sockets) socket.destroy();
  };
  const server = createServer({ noDelay: true, pauseOnConnect: true }, (client) => {
    sockets.add(client);
    client.on('error', () => {});
    client.on('close', () => sockets.delete(client));
    if (state === 'refusing') return void client.destroy();
    if (state === 'silent') return;
    const upstream = connect({ host: hostname, port: Number(port), noDelay: true });
    upstreams.add(upstream);
    upstream.on('error', () => {});
    upstream.on('close', () => {
      upstreams.delete(upstream);
      client.destroy();
    });
    client.on('close', () => upstream.destroy());
    client.pipe(upstream).pipe(client);
    client.resume();
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(async () => {
    drop();
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
    /** From where PostgreSQL sees them come. */
    ports: () => [...upstreams].map(({ localPort }) => localPort),
    /** Cuts all connections; new ones are refused, or nobody ever says a word to them. @param {'refusing' | 'silent'} how */
    cut(how) {
      state = how;
      drop();
    },
    heal() {
      state = 'open';
      drop();
    },
  };
}
