-- Looks through some of the unfinished runs for those that nothing will wake: no live message of the run or of its
-- steps, and no event for a while. A run is woken once per position of its log, so that one which waits for a
-- hook is left in peace.
--
-- A pass over all runs takes many calls, by one process at a time. Its place is kept in workflow_rescues, so that
-- another process goes on where the last one stopped. Nobody waits for the row of that table: who finds it locked
-- comes back soon.
CREATE OR REPLACE FUNCTION :"schema".queue_stranded(
  flows      text,
  steps      text,
  prefix     text,      -- of our queues
  quiet_ms   bigint,
  mine       boolean,   -- the caller is making the pass that is under way
  page_size  integer,
  budget_ms  bigint,    -- no further page is begun after this time
  next_ms    bigint,    -- between two calls of a pass
  pass_ms    bigint,    -- between two passes
  taken_ms   bigint     -- after this long without a call, the pass of another process is taken over
) RETURNS TABLE (
  out_run_id   text,    -- in the last row: where the pass goes on; NULL where the caller has no pass to go on with
  out_workflow text,    -- NULL in the last row
  out_slot     integer  -- in the last row: when to call again, in ms
) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
  began timestamptz := clock_timestamp();
  at    text;     -- where the pass is
  due   timestamptz;
  page  text[];
  hits  integer;
  total integer := 0;
BEGIN
  SELECT r.place, r.due_at INTO at, due FROM :"schema".workflow_rescues r WHERE r.job_prefix = prefix FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    INSERT INTO :"schema".workflow_rescues (job_prefix, place, due_at) VALUES (prefix, '', began) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
      RETURN QUERY SELECT NULL, NULL, taken_ms::integer;
      RETURN;
    END IF;
    at := '';
  ELSIF due > began AND NOT (mine AND at <> '') THEN
    RETURN QUERY SELECT NULL, NULL, ceil(extract(epoch FROM due - began) * 1000)::integer;
    RETURN;
  END IF;

  LOOP
    page := ARRAY(
      SELECT p.run_id FROM (
        (SELECT run_id FROM :"schema".workflow_runs WHERE status = 'pending' AND run_id > at ORDER BY run_id LIMIT page_size)
        UNION ALL
        (SELECT run_id FROM :"schema".workflow_runs WHERE status = 'running' AND run_id > at ORDER BY run_id LIMIT page_size)
      ) p ORDER BY p.run_id LIMIT page_size);
    RETURN QUERY
      SELECT r.run_id, r.workflow_name, l.slot
      FROM unnest(page) AS p(run_id)
      JOIN :"schema".workflow_runs r ON r.run_id = p.run_id
      CROSS JOIN LATERAL (
        SELECT e.slot, e.created_at FROM :"schema".workflow_events e WHERE e.run_id = r.run_id ORDER BY e.slot DESC LIMIT 1
      ) l
      WHERE r.job_prefix = prefix
        AND l.created_at < now() - quiet_ms * interval '1 millisecond'
        -- The index alone answers this one, which most parked runs end at.
        AND (r.rescued_slot IS NULL OR COALESCE((
          SELECT true FROM :"schema".workflow_events e WHERE e.run_id = r.run_id AND e.slot > r.rescued_slot LIMIT 1), false))
        AND NOT EXISTS (
          SELECT FROM :"queue_schema".job j
          WHERE j.name = flows AND j.state IN ('created', 'retry', 'active') AND j.policy = 'stately'
            AND COALESCE(j.singleton_key, '') = r.run_id)
        AND NOT EXISTS (
          SELECT FROM :"schema".workflow_steps s
          JOIN :"queue_schema".job j ON j.name = steps AND j.state <= 'active' AND j.policy = 'exclusive'
            AND COALESCE(j.singleton_key, '') = s.step_id
          WHERE s.run_id = r.run_id AND s.status IN ('pending', 'running'));
    GET DIAGNOSTICS hits = ROW_COUNT;
    total := total + hits;
    at := CASE WHEN cardinality(page) = page_size THEN page[page_size] ELSE '' END;
    EXIT WHEN at = '' OR total >= page_size OR clock_timestamp() > began + budget_ms * interval '1 millisecond';
  END LOOP;

  UPDATE :"schema".workflow_rescues r
    SET place = at, due_at = began + CASE WHEN at = '' THEN pass_ms ELSE taken_ms END * interval '1 millisecond'
    WHERE r.job_prefix = prefix;
  RETURN QUERY SELECT NULLIF(at, ''), NULL, CASE WHEN at = '' THEN pass_ms ELSE next_ms END::integer;
  -- A place that a crash forgets costs a part of a pass.
  PERFORM set_config('synchronous_commit', 'off', true);
END
$$;
