-- $1 run id, $2 cursor, $3 with payloads
SELECT s.step_id, :"schema".step_json(s.*), input.payload, CASE WHEN input.payload IS NULL THEN input.data END,
       output.payload, CASE WHEN output.payload IS NULL THEN output.data END
FROM (
  SELECT * FROM :"schema".workflow_steps WHERE run_id = $1 :filters ORDER BY step_id :direction LIMIT :rows
) s
LEFT JOIN :"schema".workflow_events input ON $3 AND input.run_id = s.run_id AND input.slot = s.input_slot
LEFT JOIN :"schema".workflow_events output ON $3 AND output.run_id = s.run_id AND output.slot = s.output_slot
ORDER BY s.step_id :direction
