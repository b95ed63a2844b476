import { once } from 'node:events';
import { createServer, request } from 'node:http';

/** @typedef {Awaited<ReturnType<typeof httpRelay>>} HttpRelay */
/** @typedef {'pass' | 'hang' | 'lose answers' | 'garbage' | 'html' | 500 | 502 | 503} Manner */

/**
 * Stands between a worker and the web process that it delivers to.
 *
 * @param {{ after: (cleanup: () => Promise<void>) => void }} t
 * @param {() => string} target URL of the web process, which may change
 * @param {{ port?: number }} [options] `port`: where nobody else turns up while it refuses connections
 */
export async function httpRelay(t, target, { port: wanted = 0 } = {}) {
  /** @type {Manner} */
  let manner = 'pass';
  /** @type {Set<import('node:net').Socket>} */
  const hanging = new Set();

  /** @param {import('node:http').IncomingMessage} incoming @param {import('node:http').ServerResponse} outgoing */
  const pass = (incoming, outgoing) => {
    const { method, url = '/', headers, socket } = incoming;
    const options = { method, headers, agent: false };
    const onward = request(new URL(url, target()), options, (answer) => {
      if (manner === 'lose answers') {
        answer.resume().on('close', () => socket.destroy());
        return;
      }
      outgoing.writeHead(answer.statusCode ?? 500, answer.headers);
      answer.pipe(outgoing);
      answer.on('aborted', () => socket.destroy());
    });
    onward.on('error', () => socket.destroy());
    outgoing.on('close', () => onward.destroy());
    incoming.pipe(onward);
  };

  const server = createServer((incoming, outgoing) => {
    if (manner === 'pass' || manner === 'lose answers') return pass(incoming, outgoing);
    incoming.resume();
    if (manner === 'hang') return void hanging.add(incoming.socket);
    if (manner === 'garbage') return void incoming.socket.end('\0\x01\x02 this is no HTTP\n\n');
    // A login page answers 200 to everything.
    outgoing.writeHead(manner === 'html' ? 200 : manner, { 'content-type': 'text/html' });
    outgoing.end('<html>The upstream is busy</html>');
  });
  // A step may take as long as it likes.
  server.requestTimeout = 0;
  /** @param {number} port */
  const listen = async (port) => {
    server.listen(port, '127.0.0.1');
    await once(server, 'listening');
  };
  await listen(wanted);
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  t.after(async () => {
    server.close();
    server.closeAllConnections();
  });

  return {
    url: `http://127.0.0.1:${port}`,
    /** How it treats the requests to come. @param {Manner} next */
    behave(next) {
      manner = next;
      for (const socket of hanging) socket.destroy();
      hanging.clear();
    },
    /** New connections are refused; what is under way goes on. */
    refuse: () => void server.close(),
    accept: () => (server.listening ? undefined : listen(port)),
    /** Cuts what is under way. */
    cut: () => server.closeAllConnections(),
  };
}
