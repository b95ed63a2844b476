-- Renews the leases of all jobs of a process, and returns those that it has lost.
--
-- Never waits: a job that is locked is being settled by its own claimant, or taken from it.
CREATE OR REPLACE FUNCTION :"schema".queue_heartbeat(
  names  text[],
  ids    uuid[],
  claims bigint[]   -- epoch µs of the claim
) RETURNS TABLE (out_id text, out_claim bigint) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off SET lock_timeout = '3s' AS $$
#variable_conflict use_column
BEGIN
  PERFORM :"schema".pulse();
  WITH held AS (
    SELECT j.name, j.id FROM unnest(names, ids, claims) AS u(name, id, claim)
    JOIN :"queue_schema".job j ON j.name = ANY (names) AND j.id = ANY (ids) AND j.name = u.name AND j.id = u.id
      AND j.state = 'active' AND j.started_on = timestamptz 'epoch' + u.claim * interval '1 microsecond'
    FOR UPDATE OF j SKIP LOCKED
  )
  UPDATE :"queue_schema".job j SET heartbeat_on = now()
    FROM held h WHERE j.name = ANY (names) AND j.id = ANY (ids) AND j.name = h.name AND j.id = h.id;

  RETURN QUERY
    SELECT u.id::text, u.claim FROM unnest(names, ids, claims) AS u(name, id, claim)
    WHERE NOT EXISTS (
      SELECT FROM :"queue_schema".job j
      WHERE j.name = ANY (names) AND j.id = ANY (ids) AND j.name = u.name AND j.id = u.id
        AND j.state = 'active' AND j.started_on = timestamptz 'epoch' + u.claim * interval '1 microsecond');

  PERFORM set_config('synchronous_commit', 'off', true);
END
$$;
