UPDATE :"schema".workflow_runs SET held_until = NULL WHERE run_id = $1 AND held_until IS NOT NULL
