import assert from 'node:assert/strict';
import fc from 'fast-check';

/**
 * `HOSTILE_RUNS=20` tries twenty times as much. `HOSTILE_SEED` and `HOSTILE_PATH`, which a failure prints,
 * try that one again.
 */
const { HOSTILE_RUNS = '1', HOSTILE_SEED, HOSTILE_PATH } = process.env;

/** What hangs, hangs longer than any machine is slow. */
const HANGS_MS = 120_000;

/** The errors by which the SDK knows what was wrong with a call. */
const REFUSALS = new Set([
  'EntityConflictError',
  'HookNotFoundError',
  'PreconditionFailedError',
  'RunExpiredError',
  'RunNotSupportedError',
  'TooEarlyError',
  'WorkflowRunNotFoundError',
  'WorkflowWorldError',
]);

/**
 * @template T
 * @param {number} runs
 * @param {fc.Arbitrary<T>} arbitrary
 * @param {(value: T) => Promise<void>} predicate
 */
export async function forAll(runs, arbitrary, predicate) {
  await fc.assert(fc.asyncProperty(arbitrary, predicate), {
    numRuns: runs * Number(HOSTILE_RUNS),
    includeErrorInReport: true,
    ...(HOSTILE_SEED && { seed: Number(HOSTILE_SEED) }),
    ...(HOSTILE_PATH && { path: HOSTILE_PATH }),
  });
}

/**
 * What became of a call: an answer, or a refusal of which the caller can tell what was wrong.
 *
 * @template T
 * @param {() => Promise<T>} call
 * @returns {Promise<{ answer: T } | { refusal: any }>}
 */
export async function attempt(call) {
  /** @type {NodeJS.Timeout | undefined} */
  let timer;
  const hang = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new assert.AssertionError({ message: 'it hangs' })), HANGS_MS);
  });
  try {
    return { answer: await /** @type {Promise<T>} */ (Promise.race([call(), hang])) };
  } catch (error) {
    assertTyped(error);
    return { refusal: error };
  } finally {
    clearTimeout(timer);
  }
}

/** @param {any} error */
export function assertTyped(error) {
  assert.ok(error instanceof Error, `thrown: ${typeof error}`);
  if (error instanceof assert.AssertionError) throw error;
  const { name, message, status, code } = /** @type {any} */ (error);
  const what = `${error.stack} ${JSON.stringify({ status, code })}`;
  assert.ok(REFUSALS.has(name), what);
  if (name === 'WorkflowWorldError') {
    assert.ok((status >= 400 && status < 500) || code === 'CONFIGURATION', what);
  }
  // By then nobody knows whose value it was.
  assert.doesNotMatch(message, /^$|PostgreSQL cannot store a value/, what);
}

/**
 * The versions of all rows: another one says that something was written.
 *
 * @param {import('../support/database.mjs').TestDatabase} database
 * @returns {Promise<Record<string, string>>}
 */
export async function rowVersions({ pool, schema, queueSchema }) {
  const { rows: tables } = await pool.query(
    `SELECT format('%I.%I', table_schema, table_name) AS name FROM information_schema.tables
     WHERE table_type = 'BASE TABLE' AND (table_schema = $1 OR (table_schema = $2 AND table_name ~ '^job'))`,
    [schema, queueSchema],
  );
  assert.ok(tables.length > 6, 'our tables are there');
  const branches = tables.map(
    ({ name }) =>
      `SELECT '${name}' AS name, count(*) || ' ' || COALESCE(sum(hashtextextended(tableoid || ' ' || ctid || ' ' || xmin, 0)), 0) AS version FROM ${name}`,
  );
  const { rows } = await pool.query(branches.join(' UNION ALL '));
  return Object.fromEntries(rows.map(({ name, version }) => [name, version]));
}

/** As JSON carries it. @param {unknown} value */
export function throughJson(value) {
  const json = JSON.stringify(value);
  return json === undefined ? undefined : JSON.parse(json);
}
