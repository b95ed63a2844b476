-- $1 run id, $2 step id, $3 with payloads
SELECT s.step_id, :"schema".step_json(s), input.payload, CASE WHEN input.payload IS NULL THEN input.data END,
       output.payload, CASE WHEN output.payload IS NULL THEN output.data END
FROM :"schema".workflow_steps s
LEFT JOIN :"schema".workflow_events input ON $3 AND input.run_id = s.run_id AND input.slot = s.input_slot
LEFT JOIN :"schema".workflow_events output ON $3 AND output.run_id = s.run_id AND output.slot = s.output_slot
WHERE s.run_id = $1 AND s.step_id = $2
