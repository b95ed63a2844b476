-- A row that is locked is being moved by its own holder: nothing to renew, and nothing to wait for. A lease that
-- was given back is not renewed by a statement that arrives late.
WITH held AS (
  SELECT s.run_id, s.step_id FROM unnest($1::text[], $2::text[], $3::bigint[]) AS u(run_id, step_id, request)
  JOIN :"schema".workflow_steps s ON s.run_id = u.run_id AND s.step_id = u.step_id
    AND s.lease_request = u.request AND s.status = 'running' AND s.lease_until > 'epoch'
  FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE :"schema".workflow_steps s
SET lease_until = clock_timestamp() + $4::float8 * interval '1 millisecond', lease_shared = $5
FROM held h, :"schema".pulse() WHERE s.run_id = h.run_id AND s.step_id = h.step_id
