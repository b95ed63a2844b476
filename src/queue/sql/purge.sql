-- No index knows when jobs ended; hence a scan, seldom, and by one process at a time.
--
-- A job that failed for good stays as long as its run has not ended. Some time after its death the run is woken
-- once more: what killed the message may be over. Not after deaths of processes, which waking would repeat.
WITH turn AS MATERIALIZED (
  SELECT pg_try_advisory_xact_lock(hashtextextended('workflow-purge::"queue_schema".' || $1, 0::bigint)) AS ours
), gone AS MATERIALIZED (
  SELECT j.name, j.id FROM :"queue_schema".job j JOIN :"queue_schema".queue q ON q.name = j.name
  WHERE j.name IN ($1, $2) AND j.state OPERATOR(pg_catalog.>) 'active' AND NOT j.blocking AND (SELECT ours FROM turn)
    AND j.completed_on + COALESCE(NULLIF(j.deletion_seconds, 0), CASE WHEN j.state OPERATOR(pg_catalog.=) 'failed' THEN q.deletion_seconds END)::float8
      * interval '1 second' < now()
    AND NOT (j.state OPERATOR(pg_catalog.=) 'failed' AND EXISTS (
      SELECT FROM :"schema".workflow_runs r WHERE r.run_id = j.group_id AND r.status IN ('pending', 'running')))
  LIMIT 10000 FOR UPDATE OF j SKIP LOCKED
), dead AS MATERIALIZED (
  SELECT j.name, j.id, j.group_id FROM :"queue_schema".job j
  WHERE j.name IN ($1, $2) AND j.state OPERATOR(pg_catalog.=) 'failed' AND (SELECT ours FROM turn)
    AND j.completed_on < now() - $3::bigint::float8 * interval '1 millisecond'
    AND jsonb_typeof(j.output) = 'object' AND j.output -> 'lost'::text IS NULL AND j.output -> 'woken'::text IS NULL
  LIMIT 10000 FOR UPDATE SKIP LOCKED
), marked AS (
  UPDATE :"queue_schema".job j SET output = j.output || '{"woken": true}'
  FROM dead d WHERE j.name = d.name AND j.id = d.id AND (j.name, j.id) NOT IN (SELECT name, id FROM gone)
), unfinished AS MATERIALIZED (
  SELECT r.run_id FROM :"schema".workflow_runs r
  WHERE r.run_id IN (SELECT group_id FROM dead) AND r.status IN ('pending', 'running') AND r.rescued_slot IS NOT NULL
  FOR NO KEY UPDATE SKIP LOCKED
), woken AS (
  UPDATE :"schema".workflow_runs r SET rescued_slot = NULL FROM unfinished u WHERE r.run_id = u.run_id
)
DELETE FROM :"queue_schema".job j USING gone g WHERE j.name = g.name AND j.id = g.id
