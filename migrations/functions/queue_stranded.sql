-- Looks through one page of the unfinished runs for those that nothing will wake: no live message of
-- the run or of its steps, and no event for a while. A run is woken once per position of its log, so
-- that one which waits for a hook is left in peace. One process at a time looks.
CREATE OR REPLACE FUNCTION :"schema".queue_stranded(
  flows      text,
  steps      text,
  prefix     text,      -- of our queues
  quiet_ms   bigint,
  after      text,      -- run id; the page begins behind it
  page_size  integer
) RETURNS TABLE (
  out_run_id   text,    -- of the page's last row: where the next one begins, NULL at the end
  out_workflow text,    -- NULL in the page's last row
  out_slot     integer
) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
  page text[];
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtextextended('workflow-rescue::"queue_schema".' || flows, 0)) THEN
    RETURN;
  END IF;
  page := ARRAY(
    SELECT p.run_id FROM (
      (SELECT run_id FROM :"schema".workflow_runs WHERE status = 'pending' AND run_id > after ORDER BY run_id LIMIT page_size)
      UNION ALL
      (SELECT run_id FROM :"schema".workflow_runs WHERE status = 'running' AND run_id > after ORDER BY run_id LIMIT page_size)
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
      AND l.slot IS DISTINCT FROM r.rescued_slot
      AND NOT EXISTS (
        SELECT FROM :"queue_schema".job j
        WHERE j.name = flows AND j.state IN ('created', 'retry', 'active') AND j.policy = 'stately'
          AND COALESCE(j.singleton_key, '') = r.run_id)
      AND NOT EXISTS (
        SELECT FROM :"schema".workflow_steps s
        JOIN :"queue_schema".job j ON j.name = steps AND j.state <= 'active' AND j.policy = 'exclusive'
          AND COALESCE(j.singleton_key, '') = s.step_id
        WHERE s.run_id = r.run_id AND s.status IN ('pending', 'running'));
  RETURN QUERY SELECT CASE WHEN cardinality(page) = page_size THEN page[page_size] END, NULL, NULL::integer;
END
$$;
