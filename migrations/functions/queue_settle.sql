-- What became of deliveries, and what their worker does next: settles jobs and claims new ones, in one
-- statement. A job that its claimant has lost meanwhile is left alone and reported as 'lost'.
--
-- `id = ANY (…)` beside a join on id is for the planner: with it, a table that was never analyzed is not
-- read from end to end.
--
-- Locks: all active flows first, which nobody waits for who holds a waiting one; then the waiting
-- ones by key; then steps.
CREATE OR REPLACE FUNCTION :"schema".queue_settle(
  flows          text,
  steps          text,
  channel        text,
  lease          integer,
  keep_completed boolean,
  names          text[],
  ids            uuid[],
  claims         bigint[],   -- epoch µs of the claim
  actions        text[],     -- 'complete', 'fail', 'reschedule' or 'release'
  delays         bigint[],   -- ms, of 'fail' and 'reschedule'
  errors         text[],
  most_flows     integer,    -- how many to claim; NULL: do not even look
  most_steps     integer,
  since_flows    bigint,     -- see queue_claim
  since_steps    bigint,
  alone          boolean
) RETURNS TABLE (
  out_what    text,          -- 'lost'; 'dead': given up after `out_attempt` attempts; or see queue_claim
  out_queue   text,
  out_id      text,
  out_claim   bigint,
  out_attempt integer,
  out_group   text,
  out_data    text,
  out_ms      bigint
) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
  queue text;
  most  integer;
  taken integer;
  hits  uuid[];
  done  uuid[];
  runs  text[];
  all_of  integer;   -- settlements of the queue
  ignored text;
BEGIN
  FOREACH queue IN ARRAY ARRAY[flows, steps] LOOP
    most := CASE queue WHEN flows THEN most_flows ELSE most_steps END;
    CONTINUE WHEN most IS NULL AND queue <> ALL (names);
    all_of := cardinality(array_positions(names, queue));
    done := '{}';
    runs := '{}';

    IF all_of > 0 AND 'complete' = ANY (actions) THEN
      -- The dependants of a `blocking` job must see it completed; JavaScript senders can make such.
      WITH gone AS (
        DELETE FROM :"queue_schema".job j USING unnest(names, ids, claims, actions) AS u(name, id, claim, action)
          WHERE u.name = queue AND u.action = 'complete' AND NOT keep_completed AND NOT j.blocking
            AND j.name = queue AND j.id = ANY (ids) AND j.id = u.id AND j.state = 'active'
            AND j.started_on = timestamptz 'epoch' + u.claim * interval '1 microsecond'
          RETURNING j.id, j.singleton_key
      )
      SELECT COALESCE(array_agg(g.id), '{}'), COALESCE(array_agg(g.singleton_key), '{}') INTO done, runs FROM gone g;

      IF cardinality(done) < all_of THEN
        WITH kept AS (
          UPDATE :"queue_schema".job j SET state = 'completed', completed_on = now(), output = NULL
            FROM unnest(names, ids, claims, actions) AS u(name, id, claim, action)
            WHERE u.name = queue AND u.action = 'complete'
              AND j.name = queue AND j.id = ANY (ids) AND j.id = u.id AND j.state = 'active'
              AND j.started_on = timestamptz 'epoch' + u.claim * interval '1 microsecond'
            RETURNING j.id, j.singleton_key
        )
        SELECT done || array_agg(k.id), runs || array_agg(k.singleton_key) INTO done, runs FROM kept k;
      END IF;
    END IF;

    IF all_of > 0 AND 'complete' <> ANY (actions) THEN
      SELECT array_agg(h.id ORDER BY h.singleton_key COLLATE "C"), runs || array_agg(h.singleton_key) INTO hits, runs FROM (
        SELECT j.id, j.singleton_key
        FROM unnest(names, ids, claims, actions) AS u(name, id, claim, action)
        JOIN :"queue_schema".job j ON j.name = queue AND j.id = ANY (ids) AND j.id = u.id AND j.state = 'active'
          AND j.started_on = timestamptz 'epoch' + u.claim * interval '1 microsecond'
        WHERE u.name = queue AND u.action <> 'complete'
        ORDER BY j.singleton_key COLLATE "C" FOR UPDATE OF j
      ) h;
      done := done || hits;

      -- The last allowed attempt failed: the job stays, with its error, for people to see and to revive. Then it
      -- begins with its first attempt, and meets no other job of its key.
      IF 'fail' = ANY (actions) THEN
        RETURN QUERY
          WITH dead AS (
            UPDATE :"queue_schema".job j SET
                state = 'failed',
                completed_on = now(),
                output = jsonb_build_object('message', u.error, 'attempts', j.retry_count + 1),
                retry_count = 0,
                started_on = NULL,
                heartbeat_on = NULL,
                heartbeat_seconds = NULL,
                -- pg-boss would delete it after a week. Ours is deleted when its run has ended; see purge.sql.
                deletion_seconds = 0,
                singleton_key = COALESCE(j.singleton_key, j.group_id, '') || '#' || j.id
              FROM unnest(ids, claims, actions, errors) AS u(id, claim, action, error)
              WHERE j.name = queue AND j.id = ANY (hits) AND j.id = u.id AND u.action = 'fail' AND j.retry_count >= j.retry_limit
              RETURNING j.id, u.claim, (j.output ->> 'attempts')::integer AS attempts, j.group_id
          )
          SELECT 'dead', queue, d.id::text, d.claim, d.attempts, d.group_id, NULL, NULL::bigint FROM dead d;
      END IF;

      IF queue = flows THEN
        PERFORM :"schema".queue_return(flows, h.id, u.action, u.delay, u.error)
          FROM unnest(hits) WITH ORDINALITY AS h(id, rank)
          JOIN unnest(ids, actions, delays, errors) AS u(id, action, delay, error) ON u.id = h.id
          ORDER BY h.rank;
      ELSE
        UPDATE :"queue_schema".job j SET
            state = CAST(CASE u.action WHEN 'fail' THEN 'retry' ELSE 'created' END AS :"queue_schema".job_state),
            retry_count = CASE u.action WHEN 'reschedule' THEN 0 ELSE j.retry_count END,
            -- A failure leaves started_on: the next claim counts an attempt more.
            started_on = CASE u.action WHEN 'fail' THEN j.started_on END,
            heartbeat_on = NULL,
            heartbeat_seconds = NULL,
            -- See queue_sweep: an answer ends the count of lost leases.
            priority = CASE WHEN u.action <> 'release' AND j.output -> 'lost' IS NOT NULL THEN 0 ELSE j.priority END,
            start_after = now() + u.delay * interval '1 millisecond',
            created_on = now() + u.delay * interval '1 millisecond',
            output = CASE u.action WHEN 'fail' THEN jsonb_build_object('message', u.error) WHEN 'release' THEN j.output END
          FROM unnest(ids, actions, delays, errors) AS u(id, action, delay, error)
          WHERE j.name = queue AND j.id = ANY (hits) AND j.id = u.id AND j.state = 'active';
      END IF;
    END IF;

    IF cardinality(done) < all_of THEN
      RETURN QUERY
        SELECT 'lost', queue, u.id::text, u.claim, NULL::integer, NULL, NULL, NULL::bigint
        FROM unnest(names, ids, claims) AS u(name, id, claim) WHERE u.name = queue AND u.id <> ALL (done);
    END IF;

    taken := 0;
    IF most IS NOT NULL THEN
      RETURN QUERY SELECT c.* FROM :"schema".queue_claim(
        queue, queue = flows, most, lease, CASE queue WHEN flows THEN since_flows ELSE since_steps END, alone) c;
      GET DIAGNOSTICS taken = ROW_COUNT;
    END IF;

    -- Other workers are told of jobs that may start now and did not start here. The look is a range with an order,
    -- as in queue_claim, because the planner could otherwise read the whole backlog of a table that was never analyzed.
    IF cardinality(runs) > 0 AND taken >= COALESCE(most, 0) THEN
      IF queue = flows THEN
        PERFORM pg_notify(channel, queue) WHERE EXISTS (
          SELECT FROM unnest(runs) AS r(run) WHERE (
            SELECT j.start_after FROM :"queue_schema".job j
            WHERE j.name = flows AND j.state = 'created' AND j.policy = 'stately'
              AND COALESCE(j.singleton_key, '') >= r.run AND COALESCE(j.singleton_key, '') <= r.run
            ORDER BY COALESCE(j.singleton_key, '') LIMIT 1) <= now());
      ELSE
        PERFORM pg_notify(channel, queue) WHERE EXISTS (
          SELECT FROM unnest(runs) AS r(run) WHERE (
            SELECT j.start_after FROM :"queue_schema".job j
            WHERE j.name = steps AND j.state < 'active' AND j.policy = 'exclusive'
              AND COALESCE(j.singleton_key, '') >= r.run AND COALESCE(j.singleton_key, '') <= r.run
            ORDER BY COALESCE(j.singleton_key, '') LIMIT 1) <= now());
      END IF;
    END IF;
  END LOOP;

  -- A settlement that a crash takes back is a delivery that comes again, and user code does not run
  -- before step_started is on the disk, and this claim with it.
  ignored := set_config('synchronous_commit', 'off', true);
END
$$;
