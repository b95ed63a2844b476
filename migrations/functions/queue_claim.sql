-- Leases due jobs of one queue to the caller, as pg-boss's fetch does: by priority, then age.
--
-- started_on is exact to the microsecond and belongs to one claim only: with the job's id it is the
-- fence of everything that the claimant does with the job later.
--
-- A run (group_id) is delivered by one worker at a time, which the unique index on active jobs of a
-- key guarantees: an active flow always carries its run id as key. What that index refuses, because
-- the other claim was not visible yet, is tried again by the caller ('again'). The short lock_timeout
-- keeps a claim from waiting for writers that could be waiting for it.
--
-- What was claimed stays in the index until no transaction is older than the claim: while a backup or a
-- report runs, each look would read all of it again. So a caller looks from where it has seen nothing older
-- wait, with 2 s for those who commit late. Whoever is older all the same, the sweep finds, and the caller
-- then looks from the beginning.
--
-- A job that was with two processes when they died (output -> 'lost', see queue_sweep) has a priority below 0 and
-- is delivered beside nothing else: the caller that is told 'lonely' lets its deliveries end, and then asks for it
-- with `alone`. For 30 s no other caller is told. A job that waits for 10 minutes in vain goes with the others.
--
-- A row that PostgreSQL refuses to update (a trigger, a broken index) is 'refused'; the others are claimed.
CREATE OR REPLACE FUNCTION :"schema".queue_claim(
  queue       text,
  one_per_run boolean,
  most        integer,
  lease       integer,  -- seconds
  since       bigint,   -- epoch µs of where to look from; NULL: from the beginning
  alone       boolean   -- nothing is being delivered by the caller: take a 'lonely' job, if one is due
) RETURNS TABLE (
  out_what    text,     -- 'claimed', with the count of lost leases as `out_ms`; 'again'; 'lonely'; 'refused' with the
                        -- error as `out_data`; 'next' with the time of the next job that will be due; or 'since', with
                        -- that of the next call as `out_claim`
  out_queue   text,
  out_id      text,
  out_claim   bigint,   -- epoch µs
  out_attempt integer,
  out_group   text,
  out_data    text,
  out_ms      bigint
) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off SET lock_timeout = '100ms' AS $$
#variable_conflict use_column
DECLARE
  -- Later than now(), which is when the statement arrived: what has come in since may be waiting for
  -- this very look.
  moment timestamptz := clock_timestamp();
  oldest timestamptz := COALESCE(timestamptz 'epoch' + since * interval '1 microsecond', '-infinity');
  hits   uuid[] := '{}';
  taken  integer := 0;
  lonely  boolean := false;
  refused boolean := false;
  hit    uuid;
BEGIN
  -- Locked and updated in one subtransaction. A row that two transactions of a family have marked, a multixact
  -- names, and the index entries of such a row stay: each claim would read all that were claimed since the
  -- last vacuum.
  BEGIN
    -- Three looks, because only within one priority does the index end where the sleepers begin. A range
    -- and an order where an equality would do: so the planner takes the index on the active jobs of a
    -- group, even where it knows nothing of the table yet.
    IF alone THEN
      hits := ARRAY(
        SELECT j.id FROM :"queue_schema".job j
        WHERE j.name = queue AND j.state < 'active' AND NOT j.blocked
            AND j.priority < 0 AND j.created_on <= moment AND j.start_after <= moment AND j.output -> 'lost' IS NOT NULL
            AND (NOT one_per_run OR (
              SELECT true FROM :"queue_schema".job a
              WHERE a.name = queue AND a.state = 'active'
                AND a.group_id >= COALESCE(j.group_id, j.singleton_key, j.id::text)
                AND a.group_id <= COALESCE(j.group_id, j.singleton_key, j.id::text)
              ORDER BY a.group_id LIMIT 1) IS NULL)
        ORDER BY j.priority DESC, j.created_on LIMIT 1 FOR UPDATE SKIP LOCKED);
      lonely := hits <> '{}';
    END IF;
    FOR band IN REVERSE 1 .. -1 LOOP
      EXIT WHEN lonely OR cardinality(hits) >= most;
      IF band > 0 THEN
        hits := ARRAY(
          SELECT j.id FROM :"queue_schema".job j
          WHERE j.name = queue AND j.state < 'active' AND NOT j.blocked
            AND j.priority > 0 AND j.created_on <= moment AND j.start_after <= moment
            AND (NOT one_per_run OR (
              SELECT true FROM :"queue_schema".job a
              WHERE a.name = queue AND a.state = 'active'
                AND a.group_id >= COALESCE(j.group_id, j.singleton_key, j.id::text)
                AND a.group_id <= COALESCE(j.group_id, j.singleton_key, j.id::text)
              ORDER BY a.group_id LIMIT 1) IS NULL)
          ORDER BY j.priority DESC, j.created_on LIMIT most FOR UPDATE SKIP LOCKED);
      ELSIF band = 0 THEN
        hits := hits || ARRAY(
          SELECT j.id FROM :"queue_schema".job j
          WHERE j.name = queue AND j.state < 'active' AND NOT j.blocked
            AND j.priority = 0 AND j.created_on >= oldest AND j.created_on <= moment AND j.start_after <= moment
            AND (NOT one_per_run OR (
              SELECT true FROM :"queue_schema".job a
              WHERE a.name = queue AND a.state = 'active'
                AND a.group_id >= COALESCE(j.group_id, j.singleton_key, j.id::text)
                AND a.group_id <= COALESCE(j.group_id, j.singleton_key, j.id::text)
              ORDER BY a.group_id LIMIT 1) IS NULL)
          ORDER BY j.created_on LIMIT most - cardinality(hits) FOR UPDATE SKIP LOCKED);
      ELSE
        hits := hits || ARRAY(
          SELECT j.id FROM :"queue_schema".job j
          WHERE j.name = queue AND j.state < 'active' AND NOT j.blocked
            AND j.priority < 0 AND j.created_on <= moment AND j.start_after <= moment
            AND (j.output -> 'lost' IS NULL OR j.created_on <= moment - interval '10 minutes')
            AND (NOT one_per_run OR (
              SELECT true FROM :"queue_schema".job a
              WHERE a.name = queue AND a.state = 'active'
                AND a.group_id >= COALESCE(j.group_id, j.singleton_key, j.id::text)
                AND a.group_id <= COALESCE(j.group_id, j.singleton_key, j.id::text)
              ORDER BY a.group_id LIMIT 1) IS NULL)
          ORDER BY j.priority DESC, j.created_on LIMIT most - cardinality(hits) FOR UPDATE SKIP LOCKED);
      END IF;
    END LOOP;

    IF hits <> '{}' THEN
      -- The final sort is more than an order: no row leaves before all are updated, so that a refused
      -- update leaves nothing in the answer.
      RETURN QUERY
        WITH chosen AS (
          SELECT h.id, h.rank, COALESCE(j.group_id, j.singleton_key, j.id::text) AS run,
                 row_number() OVER (PARTITION BY COALESCE(j.group_id, j.singleton_key, j.id::text) ORDER BY h.rank) AS place
          FROM unnest(hits) WITH ORDINALITY AS h(id, rank)
          JOIN :"queue_schema".job j ON j.name = queue AND j.id = ANY (hits) AND j.id = h.id
        ), claimed AS (
          UPDATE :"queue_schema".job j SET
              state = 'active',
              retry_count = j.retry_count + (j.started_on IS NOT NULL)::integer,
              started_on = clock_timestamp(),
              heartbeat_on = now(),
              heartbeat_seconds = lease,
              group_id = c.run,
              singleton_key = CASE WHEN one_per_run THEN c.run ELSE j.singleton_key END
            FROM chosen c
            WHERE j.name = queue AND j.id = ANY (hits) AND j.id = c.id AND (c.place = 1 OR NOT one_per_run)
            RETURNING c.rank, j.id, j.started_on, j.retry_count, j.group_id, j.data, j.output -> 'lost' AS lost
        )
        SELECT 'claimed', queue, c.id::text, (extract(epoch FROM c.started_on) * 1000000)::bigint, c.retry_count + 1,
               c.group_id, c.data::text, c.lost::bigint
        FROM claimed c ORDER BY c.rank;
      GET DIAGNOSTICS taken = ROW_COUNT;
    END IF;
  EXCEPTION
    WHEN unique_violation OR lock_not_available THEN
      RETURN QUERY SELECT 'again', queue, NULL, NULL::bigint, NULL::integer, NULL, NULL, NULL::bigint;
    WHEN others THEN
      refused := true;
  END;

  IF refused THEN
    FOREACH hit IN ARRAY hits LOOP
      BEGIN
        RETURN QUERY
          WITH claimed AS (
            UPDATE :"queue_schema".job j SET
                state = 'active',
                retry_count = j.retry_count + (j.started_on IS NOT NULL)::integer,
                started_on = clock_timestamp(),
                heartbeat_on = now(),
                heartbeat_seconds = lease,
                group_id = COALESCE(j.group_id, j.singleton_key, j.id::text),
                singleton_key = CASE WHEN one_per_run THEN COALESCE(j.group_id, j.singleton_key, j.id::text) ELSE j.singleton_key END
              WHERE j.name = queue AND j.id = hit AND j.state < 'active'
              RETURNING j.id, j.started_on, j.retry_count, j.group_id, j.data, j.output -> 'lost' AS lost
          )
          SELECT 'claimed', queue, c.id::text, (extract(epoch FROM c.started_on) * 1000000)::bigint, c.retry_count + 1,
                 c.group_id, c.data::text, c.lost::bigint
          FROM claimed c;
      EXCEPTION
        WHEN unique_violation OR lock_not_available THEN
          -- The run is being delivered, by this claim or another one.
        WHEN others THEN
          RETURN QUERY SELECT 'refused', queue, hit::text, NULL::bigint, NULL::integer, NULL, SQLERRM, NULL::bigint;
      END;
    END LOOP;
  END IF;

  IF NOT lonely THEN
    SELECT j.id INTO hit FROM :"queue_schema".job j
      WHERE j.name = queue AND j.state < 'active' AND NOT j.blocked
        AND j.priority < 0 AND j.created_on <= moment AND j.start_after <= moment AND j.output -> 'lost' IS NOT NULL
        AND (j.heartbeat_on IS NULL OR j.heartbeat_on < now() - interval '30 seconds')
      ORDER BY j.priority DESC, j.created_on LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
      UPDATE :"queue_schema".job j SET heartbeat_on = now() WHERE j.name = queue AND j.id = hit;
      RETURN QUERY SELECT 'lonely', queue, NULL, NULL::bigint, NULL::integer, NULL, NULL, NULL::bigint;
    END IF;
  END IF;

  IF oldest < moment - interval '3 seconds' THEN
    RETURN QUERY
      SELECT 'since', queue, NULL, (extract(epoch FROM LEAST(moment, (
          SELECT j.created_on FROM :"queue_schema".job j
          WHERE j.name = queue AND j.state < 'active' AND NOT j.blocked
            AND j.priority = 0 AND j.created_on >= oldest AND j.created_on <= moment AND j.start_after <= moment
          ORDER BY j.created_on LIMIT 1
        )) - interval '2 seconds') * 1000000)::bigint, NULL::integer, NULL, NULL, NULL::bigint;
  END IF;
  IF taken < most THEN
    RETURN QUERY
      SELECT 'next', queue, NULL, NULL::bigint, NULL::integer, NULL, NULL,
             ceil(extract(epoch FROM j.created_on - clock_timestamp()) * 1000)::bigint
      FROM :"queue_schema".job j
      WHERE j.name = queue AND j.state < 'active' AND NOT j.blocked AND j.priority = 0 AND j.created_on > moment
      ORDER BY j.created_on LIMIT 1;
  END IF;
END
$$;
