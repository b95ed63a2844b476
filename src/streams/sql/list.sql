SELECT name FROM :"schema".workflow_streams WHERE run_id = $1 ORDER BY created_at, name
