import { testDatabase } from '../__test__/support/database.mjs';
import { assembleCast } from './cast.mjs';
import { startCluster } from './cluster.mjs';
import { sabotage } from './sabotage.mjs';

/** @typedef {Awaited<ReturnType<typeof setStage>>} Stage */

/**
 * A PostgreSQL of our own, the processes on it as a role that owns nothing, and the means to disturb
 * them.
 *
 * @param {{ after: (cleanup: () => Promise<void>) => void }} t
 * @param {{ ledger: string, random: import('./random.mjs').Random, log: (line: string) => void }} options
 */
export async function setStage(t, { ledger, random, log }) {
  delete process.env.WORKFLOW_POSTGRES_URL;
  const server = await startCluster();
  // Cleanups run in the order of their registration.
  let processesGone = async () => {};
  t.after(() => processesGone());
  const database = await testDatabase(t, { url: server.url });
  t.after(() => server.stop());

  const disturbing = await sabotage(database);
  const { role } = disturbing;
  /** The Worlds' way to the server. @param {Parameters<typeof server.line>[0]} owner */
  const line = async (owner) => {
    const added = await server.line(owner);
    const url = new URL(added.url);
    url.username = role;
    url.password = role;
    return { ...added, url: url.href };
  };
  const env = { ...database.env, TEST_LEDGER: ledger };
  const cleanups = /** @type {(() => Promise<void>)[]} */ ([]);
  processesGone = async () => {
    for (const cleanup of cleanups) await cleanup();
  };
  const cast = await assembleCast(
    { after: (cleanup) => void cleanups.push(cleanup) },
    { line, env, log },
  );

  return {
    server,
    database,
    cast,
    random,
    /** @type {import('./cluster.mjs').Loss[]} what failovers have lost so far */
    losses: [],
    ...disturbing,
  };
}
