WITH held AS (
  SELECT s.run_id, s.step_id FROM unnest($1::text[], $2::text[], $3::bigint[]) AS u(run_id, step_id, request)
  JOIN :"schema".workflow_steps s ON s.run_id = u.run_id AND s.step_id = u.step_id
    AND s.lease_request = u.request AND s.status = 'running'
  FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE :"schema".workflow_steps s SET lease_until = CASE WHEN $4 THEN timestamptz 'epoch' END
FROM held h WHERE s.run_id = h.run_id AND s.step_id = h.step_id
