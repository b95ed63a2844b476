import { once } from 'node:events';
import { connect, createServer } from 'node:net';

/**
 * Sits between a World and PostgreSQL and writes down each statement that is executed.
 *
 * @param {{ after: (cleanup: () => Promise<void>) => void }} t
 * @param {string} url
 */
export async function wiretap(t, url) {
  const { hostname, port } = new URL(url);
  /** @type {string[]} */
  const statements = [];
  /** @type {Set<import('node:net').Socket>} */
  const sockets = new Set();
  let connections = 0;
  const server = createServer({ noDelay: true }, (client) => {
    connections += 1;
    const upstream = connect({ host: hostname, port: Number(port), noDelay: true });
    const read = reader(statements);
    client.on('data', read);
    client.pipe(upstream).pipe(client);
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        client.destroy();
        upstream.destroy();
        sockets.delete(socket);
      });
    }
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(async () => {
    for (const socket of sockets) socket.destroy();
    server.close();
    await once(server, 'close');
  });

  const tapped = new URL(url);
  tapped.hostname = '127.0.0.1';
  tapped.port = String(/** @type {import('node:net').AddressInfo} */ (server.address()).port);
  return {
    url: tapped.href,
    /**
     * The statements of a call.
     *
     * @param {() => Promise<unknown>} call
     */
    async during(call) {
      const before = statements.length;
      await call();
      return statements.slice(before);
    },
    count: () => statements.length,
    connections: () => connections,
  };
}

/**
 * Reads what a client sends: the frontend messages of PostgreSQL's protocol.
 *
 * @param {string[]} statements
 */
function reader(statements) {
  let buffered = Buffer.alloc(0);
  let started = false;
  /** @type {Map<string, string>} */
  const prepared = new Map();
  let bound = '';

  return (/** @type {Buffer} */ data) => {
    buffered = Buffer.concat([buffered, data]);
    for (;;) {
      // The first messages have no type: a request for TLS, which is declined, and the startup.
      const header = started ? 1 : 0;
      if (buffered.length < header + 4) return;
      const end = header + buffered.readInt32BE(header);
      if (buffered.length < end) return;
      const type = started ? String.fromCharCode(buffered[0]) : '';
      const body = buffered.subarray(header + 4, end);
      buffered = buffered.subarray(end);
      if (!started) {
        const isRequestForTls = body.readInt32BE(0) === 80877103;
        started = !isRequestForTls;
        continue;
      }
      const [first, second] = body.toString('latin1').split('\0');
      if (type === 'P') prepared.set(first, second);
      if (type === 'B') bound = prepared.get(second) ?? second;
      if (type === 'E') statements.push(bound);
      if (type === 'Q') statements.push(first);
    }
  };
}
