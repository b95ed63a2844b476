UPDATE :"schema".workflow_runs r SET rescued_slot = u.slot
FROM (
  SELECT w.run_id, s.slot FROM unnest($1::text[], $2::integer[]) AS s(run_id, slot)
  JOIN :"schema".workflow_runs w ON w.run_id = s.run_id
  ORDER BY w.run_id FOR NO KEY UPDATE OF w
) u
WHERE r.run_id = u.run_id
