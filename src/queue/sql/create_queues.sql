-- pg-boss's function does nothing where the queue exists.
SELECT :"queue_schema".create_queue($1, $3::jsonb), :"queue_schema".create_queue($2, $4::jsonb)
