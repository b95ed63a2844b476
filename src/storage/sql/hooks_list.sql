-- $1 run id, $2 hook id, $3 token, $4 cursor, $5 with metadata
SELECT h.hook_id, :"schema".hook_json(h.*), metadata.payload, CASE WHEN metadata.payload IS NULL THEN metadata.data END
FROM (
  SELECT * FROM :"schema".workflow_hooks WHERE disposed_at IS NULL :filters ORDER BY hook_id :direction LIMIT :rows
) h
LEFT JOIN :"schema".workflow_events metadata ON $5 AND metadata.run_id = h.run_id AND metadata.slot = h.metadata_slot
ORDER BY h.hook_id :direction
