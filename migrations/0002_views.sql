-- The joined picture for people with SQL: each entity with the payloads that its events carry.
-- Payloads are bytes in the SDK's own serialisation.

CREATE VIEW :"schema".runs AS
SELECT r.*, input.payload AS input, output.payload AS output
FROM :"schema".workflow_runs r
LEFT JOIN :"schema".workflow_events input ON input.run_id = r.run_id AND input.slot = 1
LEFT JOIN :"schema".workflow_events output ON output.run_id = r.run_id AND output.slot = r.output_slot;

CREATE VIEW :"schema".steps AS
SELECT s.*, input.payload AS input, output.payload AS output
FROM :"schema".workflow_steps s
LEFT JOIN :"schema".workflow_events input ON input.run_id = s.run_id AND input.slot = s.input_slot
LEFT JOIN :"schema".workflow_events output ON output.run_id = s.run_id AND output.slot = s.output_slot;

CREATE VIEW :"schema".hooks AS
SELECT h.*, metadata.payload AS metadata
FROM :"schema".workflow_hooks h
LEFT JOIN :"schema".workflow_events metadata ON metadata.run_id = h.run_id AND metadata.slot = h.metadata_slot
WHERE h.disposed_at IS NULL;
