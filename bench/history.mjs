/**
 * Where a World keeps what is copied here: its tables are named alike, and these are the ids in them.
 *
 * @typedef {object} Tables
 * @property {string} schema
 * @property {string[]} runs the id of the run first, as in the others
 * @property {string[]} steps
 * @property {string[]} events
 * @property {string} [eventNumber] column that numbers the events of a run
 */
/** @typedef {(text: string, values?: unknown[]) => Promise<any[]>} Query */
/** @typedef {import('./worlds.mjs').World} World */

const batch = 50_000;
const moments = ['created_at', 'updated_at', 'started_at', 'completed_at'];
const keptEvents = ['run_created', 'step_completed', 'run_completed'];

/** Another id for each copy, older than all real ones. @param {string} column */
const renamed = (column) =>
  `split_part(${column}, '_', 1) || '_' || lpad(n::text, 10, '0') || right(${column}, 16)`;

/** @param {string} column */
const earlier = (column) => `${column} - n * interval '1 second'`;

/**
 * Copies of rows, with some columns changed: whatever else a World stores in them is as it stores it.
 *
 * @param {Query} query
 * @param {string} table
 * @param {Record<string, string>} changes expressions over the row and the number n of its copy
 * @param {{ where: string, values: unknown[], count: number }} selection
 */
async function copy(query, table, changes, { where, values, count }) {
  const pairs = Object.entries(changes).map(([column, value]) => `'${column}', ${value}`);
  for (let first = 1; first <= count; first += batch) {
    const last = Math.min(first + batch - 1, count);
    await query(
      `INSERT INTO ${table} SELECT copied.* FROM ${table} original, generate_series(${first}, ${last}) n,
        LATERAL jsonb_populate_record(original, jsonb_build_object(${pairs.join(', ')})) copied
        WHERE ${where}`,
      values,
    );
  }
}

/**
 * Adds finished runs, as copies of one: of its events only three, of its steps all.
 *
 * @param {Query} query
 * @param {World} world
 * @param {string} runId
 * @param {number} count
 */
export async function addRuns(query, { tables }, runId, count) {
  if (!tables) throw new Error('nothing is stored');
  const { schema, runs, steps, events } = tables;
  /** @param {string[]} columns @param {(column: string) => string} change */
  const changes = (columns, change) => Object.fromEntries(columns.map((c) => [c, change(c)]));
  const times = changes(moments, earlier);
  const [run] = runs;
  await copy(
    query,
    `${schema}.workflow_runs`,
    { ...changes(runs, renamed), ...times },
    { where: `original.${run} = $1`, values: [runId], count },
  );
  await copy(
    query,
    `${schema}.workflow_steps`,
    { ...changes(steps, renamed), ...times },
    { where: 'original.run_id = $1', values: [runId], count },
  );
  await copy(
    query,
    `${schema}.workflow_events`,
    { ...changes(events, renamed), created_at: earlier('created_at') },
    {
      where: 'original.run_id = $1 AND original.type = ANY ($2)',
      values: [runId, keptEvents],
      count,
    },
  );
  await settle(query, schema);
}

/**
 * Makes the log of a run longer by copies of all its events.
 *
 * @param {Query} query
 * @param {World} world
 * @param {string} runId
 * @param {{ events: number, times: number }} size
 */
export async function lengthenLog(query, { tables }, runId, { events, times }) {
  if (!tables) throw new Error('nothing is stored');
  const { schema, eventNumber } = tables;
  const ids = tables.events.filter((column) => column !== 'run_id');
  const changes = Object.fromEntries(ids.map((column) => [column, renamed(column)]));
  if (eventNumber) changes[eventNumber] = `${eventNumber} + n * ${events}`;
  await copy(query, `${schema}.workflow_events`, changes, {
    where: 'original.run_id = $1',
    values: [runId],
    count: times - 1,
  });
  await settle(query, schema);
}

/** What autovacuum would do in a while. @param {Query} query @param {string} schema */
async function settle(query, schema) {
  for (const name of ['runs', 'steps', 'events']) {
    await query(`VACUUM ANALYZE ${schema}.workflow_${name}`);
  }
  await query('CHECKPOINT');
}
