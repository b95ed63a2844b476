-- $1 run id, $2 correlation id, $3 cursor slot, $4 with payloads
SELECT slot, type, correlation_id, :"schema".epoch_ms(created_at), :"schema".epoch_ms(occurred_at), spec_version,
       data, CASE WHEN $4 THEN payload END
FROM :"schema".workflow_events
WHERE run_id = $1 :filters
ORDER BY slot :direction LIMIT :rows
