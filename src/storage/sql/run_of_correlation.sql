-- $1 step, hook or wait id, $2 the time of its ULID.
-- The SDK makes these ids with the time of their run's start, which is indexed; ids made otherwise
-- are searched for.
WITH by_time AS MATERIALIZED (
  SELECT e.run_id
  FROM :"schema".workflow_runs r
  JOIN :"schema".workflow_events e ON e.run_id = r.run_id AND e.correlation_id = $1
  WHERE r.started_at = :"schema".from_epoch_ms($2)
  LIMIT 1
)
SELECT run_id FROM by_time
UNION ALL
SELECT run_id FROM (
  SELECT run_id FROM :"schema".workflow_events WHERE correlation_id = $1 AND NOT EXISTS (SELECT FROM by_time) LIMIT 1
) searched
