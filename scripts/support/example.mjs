// What `npm run demo` and the Next.js tests do with examples/nextjs.
import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { run } from './process.mjs';

export const root = fileURLToPath(new URL('../..', import.meta.url));
export const example = path.join(root, 'examples', 'nextjs');
export const npmFlags = ['--include=dev', '--no-audit', '--no-fund', '--loglevel=error'];

/** @param {string} app a directory in which the example is installed */
export const nextIn = (app) => path.join(app, 'node_modules', 'next', 'dist', 'bin', 'next');

/**
 * Installs the dependencies of the example in `app`, and of our package the tarball that
 * `npm publish` would upload, not a link into this checkout.
 *
 * @param {string} app
 * @param {{ signal?: AbortSignal }} [options]
 */
export async function installExample(app, { signal } = {}) {
  const directory = await mkdtemp(path.join(tmpdir(), 'world-postgres-pack-'));
  try {
    const pack = ['pack', '--ignore-scripts', '--pack-destination', directory, ...npmFlags];
    await run('npm', pack, { cwd: root, signal });
    const [tarball] = await readdir(directory);
    const install = ['install', '--no-save', '--no-package-lock', ...npmFlags];
    await run('npm', [...install, path.join(directory, tarball)], { cwd: app, signal });
  } finally {
    await rm(directory, { recursive: true });
  }
}

/**
 * Sends an order through the running example and approves it, by the API that the page uses.
 *
 * @param {string} url
 * @param {object} options
 * @param {import('./process.mjs').Started} options.app
 * @param {AbortSignal} [options.signal]
 * @param {(event: any, secondsSinceStart: number) => void} [options.onEvent]
 */
export async function completeOrder(url, { app, signal, onEvent = () => {} }) {
  /** @param {string} path @param {object} [body] @returns {Promise<any>} */
  const request = async (path, body) => {
    const init = body && { method: 'POST', body: JSON.stringify(body) };
    const response = await fetch(`${url}${path}`, { ...init, signal });
    if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
    return response.status === 204 ? undefined : response.json();
  };
  /**
   * @template T
   * @param {string} what
   * @param {() => Promise<T | undefined>} probe
   * @returns {Promise<T>}
   */
  const until = async (what, probe) => {
    const deadline = Date.now() + 120_000;
    while (Date.now() < deadline && !app.hasEnded()) {
      const value = await probe();
      if (value !== undefined) return value;
      await sleep(200, undefined, { signal });
    }
    throw new Error(`waited in vain until ${what}`);
  };

  await until('the app answers', () => fetch(url, { signal }).catch(() => undefined));
  const { runId, orderId } = await request('/api/orders', { product: 'grinder', quantity: 2 });
  const stream = fetch(`${url}/api/runs/${runId}/stream`, { signal }).then((lines) => lines.text());
  stream.catch(() => {}); // awaited below, unless the run fails first

  let seen = 0;
  let approved = false;
  const order = await until('the run ends', async () => {
    const order = await request(`/api/runs/${runId}`);
    for (const event of order.events.slice(seen)) {
      onEvent(event, (Date.parse(event.at) - Date.parse(order.createdAt)) / 1000);
    }
    seen = order.events.length;
    if (!approved && order.events.some((/** @type {any} */ { type }) => type === 'hook_created')) {
      approved = true;
      await request(`/api/orders/${orderId}/approval`, { approved: true, by: 'the script' });
    }
    return ['pending', 'running'].includes(order.status) ? undefined : order;
  });

  assert.equal(order.status, 'completed', order.error);
  assert.deepEqual(order.result, {
    orderId,
    status: 'shipped',
    cents: 17_800,
    trackingNumber: `TRK-${orderId.toUpperCase()}`,
    approvedBy: 'the script',
  });
  return { runId, result: order.result, stream: await stream };
}
