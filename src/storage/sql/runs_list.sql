-- $1 workflow name, $2 status, $3 cursor, $4 with payloads
SELECT r.run_id, :"schema".run_json(r.*), input.payload, CASE WHEN input.payload IS NULL THEN input.data END,
       output.payload, CASE WHEN output.payload IS NULL THEN output.data END
FROM (
  SELECT * FROM :"schema".workflow_runs WHERE true :filters ORDER BY run_id :direction LIMIT :rows
) r
LEFT JOIN :"schema".workflow_events input ON $4 AND input.run_id = r.run_id AND input.slot = 1
LEFT JOIN :"schema".workflow_events output ON $4 AND output.run_id = r.run_id AND output.slot = r.output_slot
ORDER BY r.run_id :direction
