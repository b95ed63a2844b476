SELECT out_what, out_queue, out_ms FROM :"schema".queue_sweep($1, $2, $3, $4, $5::text[]::uuid[])
