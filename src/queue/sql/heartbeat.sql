SELECT out_id, out_claim FROM :"schema".queue_heartbeat($1, $2::text[]::uuid[], $3)
