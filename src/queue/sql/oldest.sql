-- created_on is the due time, so the index for fetching begins with the oldest job of a queue.
SELECT (extract(epoch FROM now() - min(oldest.created_on)) * 1000.0)::bigint
FROM pg_catalog.unnest(ARRAY[$1, $2]) AS queue (name),
LATERAL (
  SELECT created_on FROM :"queue_schema".job
  WHERE name = queue.name AND state OPERATOR(pg_catalog.<) 'active' AND NOT blocked AND start_after <= now()
  ORDER BY priority DESC, created_on LIMIT 1
) AS oldest
