SELECT out_call, out_message_id, out_claim, out_waits
FROM :"schema".queue_push($1, $2, $3, $4, $5, $6, $7::text[]::uuid[], $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
