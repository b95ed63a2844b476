-- No index knows when jobs ended; hence a scan, seldom, and by one process at a time.
WITH gone AS MATERIALIZED (
  SELECT name, id FROM :"queue_schema".job
  WHERE name IN ($1, $2) AND state OPERATOR(pg_catalog.>) 'active' AND NOT blocking
    AND deletion_seconds > 0 AND completed_on + deletion_seconds::float8 * interval '1 second' < now()
    AND (SELECT pg_try_advisory_xact_lock(hashtextextended('workflow-purge::"queue_schema".' || $1, 0::bigint)))
  LIMIT 10000 FOR UPDATE SKIP LOCKED
)
DELETE FROM :"queue_schema".job j USING gone g WHERE j.name = g.name AND j.id = g.id
