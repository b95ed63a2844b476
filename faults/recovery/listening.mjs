import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { eventually } from '../../__test__/sdk/fixture.mjs';
import { relay } from '../../__test__/support/relay.mjs';
import { firstBegins, repeatedly, withServer } from './place.mjs';

/** @typedef {import('./place.mjs').App} App */

/** Enough for a stream to last longer than any loss. */
const CHUNKS = 250;
/** In the middle of the stream. */
const CHUNKS_BEFORE = 10;
const POLL_MS = 5;

/**
 * How a process loses its connection for notifications, which goes through a relay of its own.
 *
 * @typedef {(link: Awaited<ReturnType<typeof relay>>, pool: import('pg').Pool) => Promise<number>} Loss gives when it was over
 */

/** @type {Loss} */
async function terminated(link, pool) {
  const { rows } = await pool.query(
    'SELECT pg_terminate_backend(pid) AS done FROM pg_stat_activity WHERE client_port = ANY ($1)',
    [link.ports()],
  );
  assert.ok(rows.some(({ done }) => done));
  return Date.now();
}

/** @type {Loss} */
async function cut(link) {
  link.cut('refusing');
  // The next attempts fail, and their pauses grow.
  await sleep(Math.random() * 3000);
  link.heal();
  return Date.now();
}

/** @param {import('./place.mjs').Extent} extent @param {Loss} lose */
const losing = (extent, lose) =>
  withServer(({ url }) =>
    repeatedly(
      extent,
      async (place, scope) => {
        const { database, ledger, until } = place;
        const links = [await relay(scope, url), await relay(scope, url)];
        const [worker, web] = await Promise.all(
          links.map((link, n) =>
            place.app({ start: n === 0, env: { WORKFLOW_POSTGRES_LISTEN_URL: link.url } }),
          ),
        );
        const run = await web.call('start', 'ticking', [CHUNKS]);
        const reading = web.call('readStream', run);
        await until([run], async () => (await ledger(run)).length >= 2 * CHUNKS_BEFORE);
        const before = links.map((link) => link.ports());

        const over = links.map((link) => lose(link, database.pool));
        const back = [worker, web].map(async (app, n) => {
          const at = await over[n];
          await eventually(
            async () => {
              const ports = links[n].ports();
              const replaced = ports.length > 0 && !ports.some((port) => before[n].includes(port));
              return replaced && (await app.call('health')).notifications === 'listening';
            },
            { every: POLL_MS, report: app.logs },
          );
          return Date.now() - at;
        });
        const at = await over[0];
        const another = await web.call('start', 'stepwise', ['wake up']);
        const [begin] = await firstBegins(place, [another], at, worker);
        const slower = Math.max(...(await Promise.all(back)));
        assert.deepEqual(
          await reading,
          Array.from({ length: CHUNKS }, (_, n) => n),
          'every chunk once and in order',
        );
        return { back: slower, begin: begin - at };
      },
      url,
    ),
  );

/** @param {import('./place.mjs').Extent} extent @returns {Promise<import('./place.mjs').Figure[]>} */
export async function listening(extent) {
  const goal = { worst: 2000 };
  const losses = {
    'LISTEN connection terminated': { from: '`pg_terminate_backend`', lose: terminated },
    'LISTEN connection cut for up to 3 s': { from: 'the network is back', lose: cut },
  };
  /** @type {import('./place.mjs').Figure[]} */
  const figures = [];
  for (const [what, { from, lose }] of Object.entries(losses)) {
    const samples = await losing(extent, lose);
    figures.push(
      {
        what,
        from,
        to: `worker and reader listen again; the reader has missed none of ${CHUNKS * samples.length} chunks`,
        goal,
        samples: samples.map(({ back }) => back),
      },
      {
        what,
        from,
        to: 'the step of a run that another process starts now begins',
        goal,
        samples: samples.map(({ begin }) => begin),
      },
    );
  }
  return figures;
}
