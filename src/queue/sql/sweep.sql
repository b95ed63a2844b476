SELECT out_what, out_queue, out_ms, out_id, out_group FROM :"schema".queue_sweep($1, $2, $3, $4, $5::text[]::uuid[], $6, $7, $8)
