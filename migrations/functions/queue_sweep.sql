-- Every worker process calls this from time to time: it gives jobs whose lease has expired back to the
-- queue, without an attempt spent, and tells when to look next.
--
-- A lease that expires is counted in the job (output -> 'lost'): the message may be what killed its process. From
-- the second on the job waits longer each time and has a priority of its own, by which queue_claim keeps
-- it apart from others; after `most_lost` it has failed. Whatever its handler answers starts the count anew.
--
-- Due jobs are looked for from `since` on, as in queue_claim: the caller passes NULL from time to time, and less
-- often where that takes long.
--
-- A lease is pg-boss's own heartbeat: heartbeat_on + heartbeat_seconds. Jobs that JavaScript workers
-- hold without one expire after expire_seconds. No lease expires because nobody could have renewed it; see
-- pulse.
CREATE OR REPLACE FUNCTION :"schema".queue_sweep(
  flows   text,
  steps   text,
  channel text,
  release boolean,   -- false: look only
  own     uuid[],    -- jobs of the caller, who knows better
  most_lost   integer,
  since_flows bigint,  -- epoch µs; NULL: from the beginning
  since_steps bigint
) RETURNS TABLE (
  out_what    text,     -- 'released', or 'dead' if that was once too often, with the count of lost leases as
                        -- `out_ms`; 'refused', with the error as `out_group`; 'due' or 'next' of a queue, in ms;
                        -- 'expiry' of the next lease, in ms
  out_queue   text,
  out_ms      bigint,
  out_id      text,
  out_group   text
) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
  queue   text;
  expired uuid[];
  nearest timestamptz;
  expiry  timestamptz;
  pulse   :"schema".workflow_pulse := :"schema".pulse();
  ignored text;
  hit     uuid;
  job     record;
  lost    integer;
  pause   bigint;
  freed   boolean;
  oldest  timestamptz;
BEGIN
  FOREACH queue IN ARRAY ARRAY[flows, steps] LOOP
    oldest := COALESCE(timestamptz 'epoch' + CASE queue WHEN flows THEN since_flows ELSE since_steps END
      * interval '1 microsecond', '-infinity');
    freed := false;
    -- One pass over the active jobs: what has died since the oldest transaction is read too.
    SELECT array_agg(a.id ORDER BY a.singleton_key COLLATE "C") FILTER (WHERE a.ends < now() AND a.id <> ALL (own)),
           min(a.ends) FILTER (WHERE a.leased AND a.ends >= now())
      INTO expired, expiry
      FROM (
        SELECT j.id, j.singleton_key, j.heartbeat_seconds IS NOT NULL AS leased,
               CASE WHEN j.heartbeat_seconds IS NULL THEN j.started_on + j.expire_seconds * interval '1 second'
               ELSE :"schema".lease_end(j.heartbeat_on + j.heartbeat_seconds * interval '1 second',
                                            j.heartbeat_seconds * interval '1 second', pulse) END AS ends
        FROM :"queue_schema".job j WHERE j.name = queue AND j.state = 'active' AND j.group_id IS NOT NULL
      ) a;
    IF NOT release THEN
      expired := '{}';
    END IF;
    FOREACH hit IN ARRAY COALESCE(expired, '{}') LOOP
      -- One that PostgreSQL refuses holds up no others.
      BEGIN
        SELECT j.id, j.group_id, j.output INTO job FROM :"queue_schema".job j
          WHERE j.name = queue AND j.id = hit AND j.state = 'active'
            AND now() > CASE WHEN j.heartbeat_seconds IS NULL THEN j.started_on + j.expire_seconds * interval '1 second'
                        ELSE :"schema".lease_end(j.heartbeat_on + j.heartbeat_seconds * interval '1 second',
                                            j.heartbeat_seconds * interval '1 second', pulse) END
          FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        lost := CASE jsonb_typeof(job.output -> 'lost') WHEN 'number' THEN (job.output ->> 'lost')::integer ELSE 0 END + 1;
        IF lost >= most_lost THEN
          UPDATE :"queue_schema".job j SET
              state = 'failed',
              completed_on = now(),
              output = jsonb_build_object('message', format('its process died %s times while it was delivered', lost), 'lost', lost),
              retry_count = 0,
              started_on = NULL,
              heartbeat_on = NULL,
              heartbeat_seconds = NULL,
              priority = 0,
              deletion_seconds = 0,
              singleton_key = COALESCE(j.singleton_key, j.group_id, '') || '#' || j.id
            WHERE j.name = queue AND j.id = hit;
          -- Waking the run would kill processes again: that is for people to decide.
          UPDATE :"schema".workflow_runs r
            SET rescued_slot = (SELECT e.slot FROM :"schema".workflow_events e WHERE e.run_id = r.run_id ORDER BY e.slot DESC LIMIT 1)
            WHERE r.run_id = job.group_id;
        ELSE
          pause := CASE lost WHEN 1 THEN 0 ELSE LEAST(1000 * 2 ^ (lost - 1), 900000) END;
          UPDATE :"queue_schema".job j SET
              output = jsonb_build_object('message', 'its process died while it was delivered', 'lost', lost),
              priority = CASE lost WHEN 1 THEN j.priority ELSE -1000 END,
              state = CAST(CASE queue WHEN flows THEN 'active' ELSE 'created' END AS :"queue_schema".job_state),
              started_on = CASE queue WHEN flows THEN j.started_on END,
              heartbeat_on = NULL,
              heartbeat_seconds = NULL,
              start_after = CASE WHEN queue = flows OR pause = 0 THEN j.start_after ELSE now() + pause * interval '1 millisecond' END,
              created_on = CASE WHEN queue = flows OR pause = 0 THEN j.created_on ELSE now() + pause * interval '1 millisecond' END
            WHERE j.name = queue AND j.id = hit;
          IF queue = flows THEN
            PERFORM :"schema".queue_return(flows, hit, 'release', pause, NULL);
          END IF;
        END IF;
      EXCEPTION WHEN others THEN
        RETURN QUERY SELECT 'refused', queue, 0::bigint, hit::text, SQLERRM;
        CONTINUE;
      END;
      freed := true;
      RETURN QUERY SELECT CASE WHEN lost >= most_lost THEN 'dead' ELSE 'released' END, queue, lost::bigint, hit::text, job.group_id;
    END LOOP;
    IF freed THEN
      PERFORM pg_notify(channel, queue);
    END IF;
    nearest := LEAST(nearest, expiry);

    RETURN QUERY
      SELECT 'due', queue, 0::bigint, NULL, NULL WHERE COALESCE(
        (SELECT true FROM :"queue_schema".job j
         WHERE j.name = queue AND j.state < 'active' AND NOT j.blocked AND j.priority = 0
           AND j.created_on >= oldest AND j.created_on <= now() AND j.start_after <= now() ORDER BY j.created_on LIMIT 1),
        (SELECT true FROM :"queue_schema".job j
         WHERE j.name = queue AND j.state < 'active' AND NOT j.blocked AND j.priority > 0
           AND j.created_on <= now() AND j.start_after <= now() ORDER BY j.priority DESC, j.created_on LIMIT 1),
        (SELECT true FROM :"queue_schema".job j
         WHERE j.name = queue AND j.state < 'active' AND NOT j.blocked AND j.priority < 0
           AND j.created_on <= now() AND j.start_after <= now() ORDER BY j.priority DESC, j.created_on LIMIT 1));
    RETURN QUERY
      SELECT 'next', queue, ceil(extract(epoch FROM j.created_on - clock_timestamp()) * 1000)::bigint, NULL, NULL
      FROM :"queue_schema".job j
      WHERE j.name = queue AND j.state < 'active' AND NOT j.blocked AND j.priority = 0 AND j.created_on > now()
      ORDER BY j.created_on LIMIT 1;
  END LOOP;

  IF nearest IS NOT NULL THEN
    RETURN QUERY SELECT 'expiry', NULL, ceil(extract(epoch FROM nearest - clock_timestamp()) * 1000)::bigint, NULL, NULL;
  END IF;
  -- A release that a crash takes back is made again by the next sweep.
  ignored := set_config('synchronous_commit', 'off', true);
END
$$;
