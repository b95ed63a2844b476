import { setTimeout as sleep } from 'node:timers/promises';

/** @typedef {{ pool: import('pg').Pool, schema: string, queueSchema: string }} Database */
/** @typedef {{ foreignQueue?: boolean }} Options `foreignQueue`: messages wait elsewhere than in our tables */
/** @typedef {{ rule: string, runId: string, details: unknown }} Violation */

/**
 * The rules, each a query for what breaks it: `run_id` and `details`. `log`, `runs`, `steps`, `hooks`,
 * `waits` and `messages` (live ones) are defined by `prelude`.
 */
const rules = {
  'the slots of a run count from 1 without a gap': `
    SELECT run_id, json_agg(slot ORDER BY slot) AS details FROM log
    GROUP BY run_id HAVING min(slot) <> 1 OR max(slot) <> count(*)`,

  'time does not run backwards along a log': `
    SELECT run_id, to_json(late) AS details
    FROM (SELECT *, lag(created_at) OVER (PARTITION BY run_id ORDER BY slot) AS before FROM log) late
    WHERE created_at < before`,

  'times are whole milliseconds': `
    SELECT run_id, to_json(log) AS details FROM log
    WHERE created_at <> date_trunc('milliseconds', created_at)`,

  'every run and nothing else has a log': `
    SELECT COALESCE(runs.run_id, log.run_id) AS run_id, NULL::json AS details
    FROM runs FULL JOIN (SELECT DISTINCT run_id FROM log) log USING (run_id)
    WHERE runs.run_id IS NULL OR log.run_id IS NULL`,

  'run_created comes first and only there': `
    SELECT run_id, to_json(log) AS details FROM log
    WHERE (type = 'run_created') <> (slot = 1)`,

  'a run starts at most once': `
    SELECT run_id, json_agg(slot) AS details FROM log
    WHERE type = 'run_started' GROUP BY run_id HAVING count(*) > 1`,

  'after the end of a run only its running steps report': `
    SELECT log.run_id, to_json(log) AS details
    FROM log JOIN ends USING (run_id)
    WHERE log.slot > ends.slot
      AND log.type NOT IN ('step_started', 'step_completed', 'step_failed', 'step_retrying')
      AND NOT (log.type = 'run_cancelled' AND ends.type = 'run_cancelled')`,

  'an entity is created once, before all else about it': `
    SELECT run_id, to_json(entity) AS details
    FROM (
      SELECT *, row_number() OVER (PARTITION BY run_id, correlation_id ORDER BY slot) AS nth
      FROM log WHERE correlation_id IS NOT NULL
    ) entity
    WHERE (type IN ('step_created', 'wait_created', 'hook_created')) <> (nth = 1)
      AND type <> 'hook_conflict'`,

  'nothing follows the end of a step, a wait or a hook': `
    SELECT late.run_id, to_json(late) AS details
    FROM log late JOIN log last USING (run_id, correlation_id)
    WHERE last.type IN ('step_completed', 'step_failed', 'wait_completed', 'hook_disposed')
      AND late.slot > last.slot`,

  'a hook that lost its token gets no payload': `
    SELECT received.run_id, to_json(received) AS details
    FROM log received JOIN log conflict USING (run_id, correlation_id)
    WHERE conflict.type = 'hook_conflict' AND received.type <> 'hook_conflict'`,

  'a run is what its log says': `
    SELECT run_id, json_build_object('stored', stored, 'log', folded) AS details
    FROM (
      SELECT run_id, status, started_at, completed_at, output_slot FROM runs
    ) stored
    FULL JOIN (
      SELECT run_id,
        CASE
          WHEN ends.type IS NOT NULL THEN substr(ends.type, 5)
          WHEN bool_or(log.type = 'run_started') THEN 'running'
          ELSE 'pending'
        END AS status,
        min(log.created_at) FILTER (WHERE log.type = 'run_started') AS started_at,
        ends.created_at AS completed_at,
        CASE WHEN ends.type = 'run_completed' THEN ends.slot END AS output_slot
      FROM log LEFT JOIN ends USING (run_id)
      GROUP BY run_id, ends.type, ends.created_at, ends.slot
    ) folded USING (run_id)
    WHERE ROW(stored.status, stored.started_at, stored.completed_at, stored.output_slot)
      IS DISTINCT FROM ROW(folded.status, folded.started_at, folded.completed_at, folded.output_slot)`,

  'a step is what its log says': `
    SELECT run_id, json_build_object('stored', stored, 'log', folded) AS details
    FROM (
      SELECT run_id, step_id, status, attempt, input_slot, output_slot, started_at, completed_at
      FROM steps
    ) stored
    FULL JOIN (
      SELECT run_id, correlation_id AS step_id,
        (array_agg(CASE type
          WHEN 'step_created' THEN 'pending'
          WHEN 'step_started' THEN 'running'
          WHEN 'step_retrying' THEN 'pending'
          ELSE substr(type, 6)
        END ORDER BY slot DESC))[1] AS status,
        count(*) FILTER (WHERE type = 'step_started')::integer AS starts,
        count(*) FILTER (WHERE type = 'step_retrying')::integer AS failures,
        min(slot) FILTER (WHERE type = 'step_created') AS input_slot,
        min(slot) FILTER (WHERE type = 'step_completed') AS output_slot,
        min(created_at) FILTER (WHERE type = 'step_started') AS started_at,
        min(created_at) FILTER (WHERE type IN ('step_completed', 'step_failed')) AS completed_at
      FROM log WHERE type LIKE 'step\\_%'
      GROUP BY run_id, correlation_id
    ) folded USING (run_id, step_id)
    -- Not every start is an attempt more: a step that is handed over goes on with the one it has.
    WHERE stored.attempt NOT BETWEEN LEAST(folded.failures, folded.starts) AND folded.starts
      OR ROW(stored.status, stored.input_slot, stored.output_slot, stored.started_at, stored.completed_at)
      IS DISTINCT FROM ROW(folded.status, folded.input_slot, folded.output_slot,
        folded.started_at, folded.completed_at)`,

  'a live run has the hooks that its log says, an ended one none': `
    SELECT run_id, json_build_object('stored', stored, 'log', folded) AS details
    FROM (
      SELECT run_id, hook_id, metadata_slot, disposed_at, token IS NOT NULL AS live FROM hooks
    ) stored
    FULL JOIN (
      SELECT log.run_id, log.correlation_id AS hook_id,
        min(log.slot) FILTER (WHERE log.type IN ('hook_created', 'hook_conflict')) AS metadata_slot,
        min(log.created_at) FILTER (WHERE log.type IN ('hook_disposed', 'hook_conflict')) AS disposed_at,
        NOT bool_or(log.type IN ('hook_disposed', 'hook_conflict')) AS live
      FROM log LEFT JOIN ends USING (run_id)
      WHERE ends.run_id IS NULL AND log.type LIKE 'hook\\_%'
      GROUP BY log.run_id, log.correlation_id
      HAVING bool_or(log.type IN ('hook_created', 'hook_conflict'))
    ) folded USING (run_id, hook_id)
    WHERE ROW(stored.metadata_slot, stored.disposed_at, stored.live)
      IS DISTINCT FROM ROW(folded.metadata_slot, folded.disposed_at, folded.live)`,

  'a live run has the waits that its log says, an ended one none': `
    SELECT run_id, json_build_object('stored', stored, 'log', folded) AS details
    FROM (SELECT run_id, correlation_id, status, completed_at FROM waits) stored
    FULL JOIN (
      SELECT log.run_id, log.correlation_id,
        CASE WHEN bool_or(log.type = 'wait_completed') THEN 'completed' ELSE 'waiting' END AS status,
        min(log.created_at) FILTER (WHERE log.type = 'wait_completed') AS completed_at
      FROM log LEFT JOIN ends USING (run_id)
      WHERE ends.run_id IS NULL AND log.type LIKE 'wait\\_%'
      GROUP BY log.run_id, log.correlation_id
    ) folded USING (run_id, correlation_id)
    WHERE ROW(stored.status, stored.completed_at)
      IS DISTINCT FROM ROW(folded.status, folded.completed_at)`,
};

/** Where messages wait in pg-boss's tables. */
const queueRules = {
  'a finished run has no live message': `
    SELECT run_id, to_json(messages) AS details FROM messages JOIN ends USING (run_id)`,

  'a live run has a message, or waits for a hook alone': `
    SELECT run_id, to_json(runs) AS details FROM runs
    WHERE status IN ('pending', 'running')
      AND NOT EXISTS (SELECT FROM messages WHERE messages.run_id = runs.run_id)
      AND NOT (
        EXISTS (SELECT FROM hooks WHERE hooks.run_id = runs.run_id AND token IS NOT NULL)
        AND NOT EXISTS (SELECT FROM waits WHERE waits.run_id = runs.run_id AND status = 'waiting')
        AND NOT EXISTS (
          SELECT FROM steps WHERE steps.run_id = runs.run_id AND status IN ('pending', 'running')
        )
      )`,

  'a message in work has a live lease': `
    SELECT run_id, to_json(messages) AS details FROM messages
    WHERE state = 'active'
      AND COALESCE(heartbeat_on, started_on) < now() - heartbeat_seconds * interval '1 second'`,
};

/** Where they wait elsewhere. */
const foreignQueueRules = {
  'no message is in a queue that nobody uses': `
    SELECT run_id, to_json(messages) AS details FROM messages`,
};

/** @param {string} name */
const quote = (name) => `"${name.replaceAll('"', '""')}"`;

/** @param {Database} database */
const prelude = ({ schema, queueSchema }) => `
  WITH
    log AS (
      SELECT run_id, slot, type, correlation_id, created_at, data
      FROM ${quote(schema)}.workflow_events
    ),
    ends AS (
      SELECT DISTINCT ON (run_id) * FROM log
      WHERE type IN ('run_completed', 'run_failed', 'run_cancelled') ORDER BY run_id, slot
    ),
    runs AS (SELECT * FROM ${quote(schema)}.workflow_runs),
    steps AS (SELECT * FROM ${quote(schema)}.workflow_steps),
    hooks AS (SELECT * FROM ${quote(schema)}.workflow_hooks),
    waits AS (SELECT * FROM ${quote(schema)}.workflow_waits),
    messages AS (
      SELECT group_id AS run_id, id, name, state::text AS state, singleton_key, start_after,
        started_on, heartbeat_on, heartbeat_seconds, retry_count
      FROM ${quote(queueSchema)}.job WHERE state IN ('created', 'retry', 'active')
    )`;

/**
 * What in the log, the entities derived from it and the queue contradicts the design.
 *
 * @param {Database} database
 * @param {Options} [options]
 * @returns {Promise<Violation[]>}
 */
export async function violations(database, { foreignQueue = false } = {}) {
  const all = { ...rules, ...(foreignQueue ? foreignQueueRules : queueRules) };
  const branches = Object.entries(all).map(
    ([rule, query]) => `SELECT '${rule}' AS rule, run_id, details::text FROM (${query}) q`,
  );
  // One statement, so that all rules see the same moment.
  const { rows } = await database.pool.query(prelude(database) + branches.join(' UNION ALL '));
  return rows.map(({ rule, run_id, details }) => ({
    rule,
    runId: run_id,
    details: JSON.parse(details),
  }));
}

/**
 * Fails unless all invariants hold, now or soon: a process that was killed leaves a lease behind, and a
 * run that has ended its last messages.
 *
 * @param {Database} database
 * @param {Options & { within?: number }} [options] milliseconds
 */
export async function assertInvariants(database, { within = 60_000, ...options } = {}) {
  const deadline = Date.now() + within;
  let found = await violations(database, options);
  while (found.length > 0 && Date.now() < deadline) {
    await sleep(250);
    found = await violations(database, options);
  }
  if (found.length === 0) return;
  const lines = found.slice(0, 20).map((v) => `${v.rule}: ${v.runId} ${JSON.stringify(v.details)}`);
  const run = await describeRun(database, found[0].runId);
  throw new Error(`${found.length} violations\n${lines.join('\n')}\n\n${run}`);
}

/**
 * The log and the messages of a run, for a failure's report.
 *
 * @param {Database} database
 * @param {string} runId
 */
export async function describeRun({ pool, schema, queueSchema }, runId) {
  const events = await pool.query(
    `SELECT slot, type, correlation_id, created_at, left(data, 200) AS data
     FROM ${quote(schema)}.workflow_events WHERE run_id = $1 ORDER BY slot`,
    [runId],
  );
  const messages = await pool.query(
    `SELECT name, state, singleton_key, retry_count, start_after, started_on, heartbeat_on,
       left(output::text, 500) AS output
     FROM ${quote(queueSchema)}.job WHERE group_id = $1 ORDER BY created_on`,
    [runId],
  );
  /** @param {Record<string, unknown>[]} rows */
  const lines = (rows) => rows.map((row) => `  ${JSON.stringify(row)}`);
  return [
    `${runId} at ${new Date().toISOString()}`,
    ...lines(events.rows),
    'messages',
    ...lines(messages.rows),
  ].join('\n');
}
