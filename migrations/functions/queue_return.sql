-- Puts an active flow back among the waiting ones; the caller holds its lock. What is not active any
-- more, because it has failed for good, stays as it is.
--
-- A run has one waiting message: where one came in during the delivery, the two become one, due at the
-- earlier time.
--
-- A flow waits in state 'created' even after a failure, where pg-boss would say 'retry': its unique
-- index counts waiting jobs by state, and so there cannot be two.
CREATE OR REPLACE FUNCTION :"schema".queue_return(
  flows  text,
  job_id uuid,
  action text,    -- 'fail', 'reschedule' or 'release'
  delay  bigint,  -- ms
  error  text
) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE
  due     timestamptz := now() + delay * interval '1 millisecond';
  failure jsonb := CASE action WHEN 'fail' THEN jsonb_build_object('message', error) END;
  job     record;
  other   record;
  apart   boolean;
BEGIN
  SELECT j.id, j.data, j.group_id, j.singleton_key, j.started_on, j.retry_count, j.priority, j.output INTO job
    FROM :"queue_schema".job j WHERE j.name = flows AND j.id = job_id AND j.state = 'active';
  IF NOT FOUND THEN
    RETURN;
  END IF;
  -- A job that was sent without a key equals no other.
  apart := job.singleton_key IS NULL;
  -- What a failure leaves is counted as an attempt more by the next claim.
  job.started_on := CASE action WHEN 'fail' THEN job.started_on END;
  job.retry_count := CASE action WHEN 'reschedule' THEN 0 ELSE job.retry_count END;
  IF action <> 'release' AND job.output -> 'lost' IS NOT NULL THEN
    job.priority := 0;
  END IF;
  job.output := COALESCE(failure, CASE action WHEN 'release' THEN job.output END);

  FOR round IN 1 .. 100 LOOP
    IF NOT apart THEN
      SELECT j.id, j.data INTO other FROM :"queue_schema".job j
        WHERE j.name = flows AND j.state = 'created' AND j.policy = 'stately' AND COALESCE(j.singleton_key, '') = job.singleton_key
        FOR UPDATE;
      IF FOUND AND :"schema".queue_is_special(job.data) AND :"schema".queue_is_special(other.data) THEN
        apart := true;
      ELSIF FOUND THEN
        UPDATE :"queue_schema".job j SET
            data = CASE WHEN :"schema".queue_is_special(job.data) THEN job.data ELSE j.data END,
            -- A message that kills processes is not brought forward by another one.
            start_after = CASE WHEN job.output -> 'lost' IS NULL THEN LEAST(j.start_after, due) ELSE due END,
            created_on = CASE WHEN job.output -> 'lost' IS NULL THEN LEAST(j.created_on, due) ELSE due END,
            priority = LEAST(j.priority, job.priority),
            retry_count = GREATEST(j.retry_count, job.retry_count),
            started_on = COALESCE(job.started_on, j.started_on),
            output = COALESCE(job.output, j.output)
          WHERE j.name = flows AND j.id = other.id;
        DELETE FROM :"queue_schema".job j WHERE j.name = flows AND j.id = job.id;
        RETURN;
      END IF;
    END IF;
    BEGIN
      UPDATE :"queue_schema".job j SET
          state = 'created',
          singleton_key = CASE WHEN apart THEN COALESCE(job.group_id || '#', '') || job.id ELSE j.singleton_key END,
          priority = job.priority,
          retry_count = job.retry_count,
          started_on = job.started_on,
          heartbeat_on = NULL,
          heartbeat_seconds = NULL,
          start_after = due,
          created_on = due,
          output = job.output
        WHERE j.name = flows AND j.id = job.id;
      RETURN;
    EXCEPTION WHEN unique_violation THEN
      -- One came in since we looked: look again.
    END;
  END LOOP;
  RAISE serialization_failure USING MESSAGE = format('no progress in queue "%s"', flows);
END
$$;
