import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

/** @typedef {Awaited<ReturnType<typeof namespace>>} Namespace */

const run = promisify(execFile);
const ip = (/** @type {string[]} */ ...args) => run('ip', args);

/** Why this machine has no namespaces for tests; undefined where it has. */
export async function whyNoNamespaces() {
  if (process.platform !== 'linux') return 'network namespaces are Linux only';
  const name = `worldpg-probe-${process.pid}`;
  try {
    await ip('netns', 'add', name);
    await ip('netns', 'exec', name, 'iptables', '-L', '-n');
    return undefined;
  } catch (error) {
    const { message } = /** @type {Error} */ (error);
    return `needs root, iproute2 and iptables: ${message.split('\n').slice(0, 2).join(' ')}`;
  } finally {
    await ip('netns', 'del', name).catch(() => {});
  }
}

/**
 * A network namespace, connected with ours by a pair of virtual interfaces. Its processes are a host of
 * their own, whose kernel retransmits what a partition has swallowed.
 *
 * @param {{ after: (cleanup: () => Promise<void>) => void }} t
 */
export async function namespace(t) {
  const id = process.pid.toString(36);
  const name = `worldpg-${id}`;
  const [here, there] = [`wpg${id}a`, `wpg${id}b`];
  // A subnet of four addresses per process of this test.
  const base = (process.pid * 4) % 2 ** 16;
  const address = (/** @type {number} */ n) => `10.217.${base >> 8}.${(base & 255) + n}`;
  const [outside, inside] = [address(1), address(2)];
  // The interfaces go with the namespace.
  t.after(async () => void (await ip('netns', 'del', name)));
  await ip('netns', 'add', name);
  await ip('link', 'add', here, 'type', 'veth', 'peer', 'name', there, 'netns', name);
  await ip('addr', 'add', `${outside}/30`, 'dev', here);
  await ip('link', 'set', here, 'up');
  const exec = ['netns', 'exec', name];
  await ip('-n', name, 'addr', 'add', `${inside}/30`, 'dev', there);
  await ip('-n', name, 'link', 'set', there, 'up');
  await ip('-n', name, 'link', 'set', 'lo', 'up');

  /** @param {'-A' | '-D'} what @param {number} port */
  const filter = async (what, port) => {
    const iptables = (/** @type {string[]} */ ...args) =>
      ip(...exec, 'iptables', '-w', what, ...args, '-j', 'DROP');
    await iptables('OUTPUT', '-p', 'tcp', '--dport', String(port));
    await iptables('INPUT', '-p', 'tcp', '--sport', String(port));
  };
  return {
    exec,
    /** Our address, as its processes know it. */
    outside,
    /** The address of its processes. */
    inside,
    /** Nothing passes between the namespace and this port any more, and neither end is told. @param {number} port */
    cut: (port) => filter('-A', port),
    /** @param {number} port */
    heal: (port) => filter('-D', port),

    /**
     * Bytes to a port that the other end has not confirmed, those included of connections that their
     * process has closed.
     *
     * @param {number} port
     */
    async unconfirmed(port) {
      const { stdout } = await ip(...exec, 'cat', '/proc/net/tcp');
      return stdout
        .split('\n')
        .slice(1, -1)
        .map((line) => line.trim().split(/\s+/))
        .filter(([, , remote]) => Number.parseInt(remote.split(':')[1], 16) === port)
        .reduce((sum, [, , , , queues]) => sum + Number.parseInt(queues.split(':')[0], 16), 0);
    },
  };
}
