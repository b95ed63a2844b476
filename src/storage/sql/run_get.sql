-- $1 run id, $2 with payloads: they are read through the slots of the events that carried them
SELECT r.run_id, :"schema".run_json(r), input.payload, CASE WHEN input.payload IS NULL THEN input.data END,
       output.payload, CASE WHEN output.payload IS NULL THEN output.data END
FROM :"schema".workflow_runs r
LEFT JOIN :"schema".workflow_events input ON $2 AND input.run_id = r.run_id AND input.slot = 1
LEFT JOIN :"schema".workflow_events output ON $2 AND output.run_id = r.run_id AND output.slot = r.output_slot
WHERE r.run_id = $1
