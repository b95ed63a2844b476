UPDATE :"schema".workflow_steps SET lease_until = clock_timestamp() + $4::float8 * interval '1 millisecond'
WHERE run_id = $1 AND step_id = $2 AND lease_request = $3 AND status = 'running' AND lease_until > 'epoch'
