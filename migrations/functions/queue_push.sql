-- Takes messages into pg-boss's job table, in one statement and one commit.
--
-- Whoever locks several jobs walks flows before steps and each of them by key, so that no two
-- statements wait for each other.
--
-- A message with `claims` is meant for a free slot of the caller: where nothing speaks against it, it
-- is inserted as active under the caller's lease, neither announced nor fetched, and its row of the
-- answer has an `out_claim`.
--
-- created_on of a delayed job is its due time. pg-boss fetches by (priority DESC, created_on); so the
-- due jobs are one range of that index, and a claim never reads past those that sleep.
-- A step may run for longer than the day that pg-boss allows its queues: the lease alone says whether
-- its worker lives, so that a supervising pg-boss of the user's takes nothing away.
CREATE OR REPLACE FUNCTION :"schema".queue_push(
  flows       text,       -- name of the queue
  steps       text,
  channel     text,       -- pg-boss's own
  lease       integer,    -- seconds
  announce_ms bigint,     -- who is due later than this is found in time without being announced
  names       text[],     -- the queue of each message
  ids         uuid[],
  keys        text[],     -- run id of a flow, idempotency key of a step
  groups      text[],     -- run id
  message_ids text[],
  datas       text[],     -- JSON of pg-boss's `data`
  delays      bigint[],   -- ms
  claims      boolean[],
  quiets      boolean[],  -- the caller's own worker looks in time: announce nothing
  durable     boolean,    -- false: a delivery that is not acknowledged yet would push all this again
  request     bigint,     -- the caller's own number of this call
  tries       integer     -- how many tries of the same call went before, their answers lost
) RETURNS TABLE (
  out_call       integer,
  out_message_id text,    -- of the job that will be executed
  out_claim      bigint,  -- epoch µs of the claim
  out_waits      boolean  -- something new waits to be claimed
) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
  announced text[] := '{}';
  flow      boolean;
  active    boolean;
  due       timestamptz;
  job_key   text;
  occupied  boolean;
  other     record;
  ignored   text;
BEGIN
  -- A job that has ended since leaves nothing by which a try that comes last could be told.
  IF :"schema".overtaken_calls(ARRAY[request], ARRAY[tries]) <> '{}' THEN
    RETURN;
  END IF;
  FOR i IN 1 .. cardinality(names) LOOP
    flow := names[i] = flows;
    active := claims[i];
    due := now() + delays[i] * interval '1 millisecond';
    job_key := keys[i];
    out_call := i - 1;
    out_message_id := message_ids[i];
    out_claim := NULL;

    IF tries > 0 THEN
      -- The first try may have come through, with a claim that nobody knows of: no other claim, and no
      -- heartbeat, has the time of the insert.
      SELECT j.state, CASE WHEN j.state = 'active' AND j.heartbeat_on = j.created_on
               THEN (extract(epoch FROM j.started_on) * 1000000)::bigint END AS claim INTO other
        FROM :"queue_schema".job j WHERE j.name = names[i] AND j.id = ids[i];
      IF FOUND THEN
        out_claim := other.claim;
        out_waits := other.state < 'active';
        RETURN NEXT;
        CONTINUE;
      END IF;
    END IF;

    FOR round IN 1 .. 101 LOOP
      IF round > 100 THEN
        RAISE serialization_failure USING MESSAGE = format('no queue "%s", or no progress in it', names[i]);
      END IF;

      occupied := false;
      IF flow THEN
        -- A plain read is enough to drop a wake. What waits now is delivered after this moment, and so
        -- reads the log after the event that the wake is for was committed. A delivery that is active
        -- may have read it before, and does not count.
        SELECT j.id, j.start_after, j.data, j.output INTO other FROM :"queue_schema".job j
          WHERE j.name = flows AND j.state = 'created' AND j.policy = 'stately' AND COALESCE(j.singleton_key, '') = job_key;
        occupied := FOUND;
      END IF;

      IF NOT occupied THEN
        INSERT INTO :"queue_schema".job (
            id, name, data, state, singleton_key, group_id, start_after, created_on, keep_until,
            retry_limit, expire_seconds, deletion_seconds, policy, started_on, heartbeat_on, heartbeat_seconds)
          SELECT ids[i], q.name, datas[i]::jsonb,
            CAST(CASE WHEN active THEN 'active' ELSE 'created' END AS :"queue_schema".job_state),
            job_key, groups[i], due, due, due + q.retention_seconds * interval '1 second',
            q.retry_limit, GREATEST(q.expire_seconds, 31536000), q.deletion_seconds, q.policy,
            CASE WHEN active THEN clock_timestamp() END, CASE WHEN active THEN now() END, CASE WHEN active THEN lease END
          FROM :"queue_schema".queue q WHERE q.name = names[i]
          ON CONFLICT DO NOTHING
          RETURNING (extract(epoch FROM started_on) * 1000000)::bigint INTO out_claim;
        out_waits := NOT active;
        EXIT WHEN FOUND;

        IF flow THEN
          -- The run is being delivered, or another message of it came first: wait beside that.
          active := false;
        ELSE
          SELECT j.id, j.data INTO other FROM :"queue_schema".job j
            WHERE j.name = steps AND j.state <= 'active' AND j.policy = 'exclusive' AND COALESCE(j.singleton_key, '') = job_key;
          IF FOUND THEN
            out_message_id := COALESCE(other.data ->> 'messageId', other.id::text);
            out_waits := false;
            EXIT;
          END IF;
        END IF;

      ELSIF NOT :"schema".queue_is_special(datas[i]::jsonb) THEN
        out_message_id := COALESCE(other.data ->> 'messageId', other.id::text);
        -- Not a message that kills processes: see queue_sweep.
        out_waits := other.start_after > due AND other.output -> 'lost' IS NULL;
        EXIT WHEN NOT out_waits;
        -- A message of its own, were it not for the one that waits: its attempts count anew. Else wakes that come
        -- between failures would count them up without a pause, until the pause after one is of minutes.
        UPDATE :"queue_schema".job j
          SET start_after = LEAST(j.start_after, due), created_on = LEAST(j.created_on, due), retry_count = 0, started_on = NULL
          WHERE j.name = flows AND j.id = other.id AND j.state = 'created';
        EXIT WHEN FOUND;
        out_message_id := message_ids[i];

      ELSIF NOT :"schema".queue_is_special(other.data) THEN
        UPDATE :"queue_schema".job j
          SET data = datas[i]::jsonb, start_after = LEAST(j.start_after, due), created_on = LEAST(j.created_on, due),
              retry_count = 0, started_on = NULL
          WHERE j.name = flows AND j.id = other.id AND j.state = 'created' AND NOT :"schema".queue_is_special(j.data);
        out_waits := true;
        EXIT WHEN FOUND;

      ELSE
        -- Both must arrive: this one waits as a second job of the same group.
        job_key := keys[i] || '#' || message_ids[i];
        active := false;
      END IF;
    END LOOP;

    IF out_waits AND NOT quiets[i] AND delays[i] <= announce_ms AND names[i] <> ALL (announced) THEN
      announced := announced || names[i];
    END IF;
    RETURN NEXT;
  END LOOP;

  IF announced <> '{}' THEN
    PERFORM pg_notify(channel, a.name) FROM unnest(announced) AS a(name);
  END IF;
  -- See append_events: what a crash takes, it takes together with all that came later.
  IF NOT durable THEN
    ignored := set_config('synchronous_commit', 'off', true);
  END IF;
END
$$;
