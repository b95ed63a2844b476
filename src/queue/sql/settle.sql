SELECT out_what, out_queue, out_id, out_claim, out_attempt, out_group, out_data, out_ms
FROM :"schema".queue_settle($1, $2, $3, $4, $5, $6, $7::text[]::uuid[], $8, $9, $10, $11, $12, $13, $14, $15, $16)
