-- What every worker process does from time to time: gives jobs whose lease has expired back to the
-- queue, without an attempt spent, and looks what comes next.
--
-- A lease is pg-boss's own heartbeat: heartbeat_on + heartbeat_seconds. Jobs that JavaScript workers
-- hold without one expire after expire_seconds. No lease expires because nobody could have renewed it; see
-- pulse.
CREATE OR REPLACE FUNCTION :"schema".queue_sweep(
  flows   text,
  steps   text,
  channel text,
  release boolean,   -- false: look only
  own     uuid[]     -- jobs of the caller, who knows better
) RETURNS TABLE (
  out_what    text,     -- 'released'; 'due' or 'next' of a queue, in ms; 'expiry' of the next lease, in ms
  out_queue   text,
  out_ms      bigint
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
BEGIN
  FOREACH queue IN ARRAY ARRAY[flows, steps] LOOP
    IF release THEN
      -- Found by the index on active jobs first: locking at once, the planner may prefer another way.
      expired := ARRAY(
        SELECT j.id FROM :"queue_schema".job j
        WHERE j.name = queue AND j.state = 'active' AND j.group_id IS NOT NULL
          AND now() > CASE WHEN j.heartbeat_seconds IS NULL THEN j.started_on + j.expire_seconds * interval '1 second'
                      ELSE :"schema".lease_end(j.heartbeat_on + j.heartbeat_seconds * interval '1 second',
                                                j.heartbeat_seconds * interval '1 second', pulse) END);
      IF expired <> '{}' THEN
        SELECT array_agg(e.id ORDER BY e.singleton_key COLLATE "C") INTO expired FROM (
          SELECT j.id, j.singleton_key FROM :"queue_schema".job j
          WHERE j.name = queue AND j.id = ANY (expired) AND j.id <> ALL (own) AND j.state = 'active'
            AND now() > CASE WHEN j.heartbeat_seconds IS NULL THEN j.started_on + j.expire_seconds * interval '1 second'
                        ELSE :"schema".lease_end(j.heartbeat_on + j.heartbeat_seconds * interval '1 second',
                                                j.heartbeat_seconds * interval '1 second', pulse) END
          FOR UPDATE SKIP LOCKED
        ) e;
      END IF;
      IF cardinality(expired) > 0 THEN
        IF queue = flows THEN
          PERFORM :"schema".queue_return(flows, e.id, 'release', 0, NULL)
            FROM unnest(expired) WITH ORDINALITY AS e(id, rank) ORDER BY e.rank;
        ELSE
          UPDATE :"queue_schema".job j
            SET state = 'created', started_on = NULL, heartbeat_on = NULL, heartbeat_seconds = NULL
            WHERE j.name = queue AND j.id = ANY (expired);
        END IF;
        PERFORM pg_notify(channel, queue);
        RETURN QUERY SELECT 'released', queue, cardinality(expired)::bigint;
      END IF;
    END IF;

    SELECT min(:"schema".lease_end(j.heartbeat_on + j.heartbeat_seconds * interval '1 second',
                                   j.heartbeat_seconds * interval '1 second', pulse)) INTO expiry
      FROM :"queue_schema".job j WHERE j.name = queue AND j.state = 'active' AND j.group_id IS NOT NULL;
    nearest := LEAST(nearest, expiry);

    RETURN QUERY
      SELECT 'due', queue, 0::bigint WHERE COALESCE(
        (SELECT true FROM :"queue_schema".job j
         WHERE j.name = queue AND j.state < 'active' AND NOT j.blocked AND j.priority = 0
           AND j.created_on <= now() AND j.start_after <= now() ORDER BY j.created_on LIMIT 1),
        (SELECT true FROM :"queue_schema".job j
         WHERE j.name = queue AND j.state < 'active' AND NOT j.blocked AND j.priority > 0
           AND j.created_on <= now() AND j.start_after <= now() ORDER BY j.priority DESC, j.created_on LIMIT 1),
        (SELECT true FROM :"queue_schema".job j
         WHERE j.name = queue AND j.state < 'active' AND NOT j.blocked AND j.priority < 0
           AND j.created_on <= now() AND j.start_after <= now() ORDER BY j.priority DESC, j.created_on LIMIT 1));
    RETURN QUERY
      SELECT 'next', queue, ceil(extract(epoch FROM j.created_on - clock_timestamp()) * 1000)::bigint
      FROM :"queue_schema".job j
      WHERE j.name = queue AND j.state < 'active' AND NOT j.blocked AND j.priority = 0 AND j.created_on > now()
      ORDER BY j.created_on LIMIT 1;
  END LOOP;

  IF nearest IS NOT NULL THEN
    RETURN QUERY SELECT 'expiry', NULL, ceil(extract(epoch FROM nearest - clock_timestamp()) * 1000)::bigint;
  END IF;
  -- A release that a crash takes back is made again by the next sweep.
  ignored := set_config('synchronous_commit', 'off', true);
END
$$;
