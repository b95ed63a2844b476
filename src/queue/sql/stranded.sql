SELECT out_run_id, out_workflow, out_slot FROM :"schema".queue_stranded($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
