-- The only writer of the log. Appends a batch of events, each to its run, and moves the entities
-- that they are about, in one statement and one commit. Calls arrive ordered by run id; calls of
-- one run keep the order in which they were made.
--
-- Every rule of an event is checked under the lock of its run, so that event order, commit order
-- and visibility order are the same. It is an advisory lock: that of a row is written to the WAL. What
-- a rule refuses is an outcome, not an exception: one refused call must not undo the others of its batch.
--
-- The lock_timeout, here and in the other functions, is shorter than any caller waits for an answer. So a statement
-- that waits for a lock ends before it is given up, also behind a pooler, and never beside its repetition.
--
-- A call's own row comes last among its rows and carries its outcome:
--   appended             the event is in the log at `slot`
--   unchanged            nothing to append: the run runs already, is a legacy run being cancelled, or a later
--                        try of this call came first
--   entity_conflict      exists already, is in a terminal state, or is another request's attempt
--   run_not_found, step_not_found, hook_not_found, wait_not_found
--   run_expired          the run has ended
--   too_early            the step may start again in `entity` (JSON) seconds, or another process runs it,
--                        whose lease ends by then unless it is renewed
--   precondition_failed  an external event came after the snapshot of the caller
--   log_lost             the snapshot of the caller is newer than the log, which has lost its end
--   held_back            an external event that has to wait for a replay: the call is to be made again
--   run_not_supported    the run was made for a newer spec version, named by `entity`
--   legacy_unsupported   the event cannot be appended to a run of spec version 1
-- `entity` is the entity after the event. Rows of outcome 'log' are the whole log of a run that
-- run_started returns. step_started returns the step's input as `payload` and `data`. run_started returns
-- the `data` 'true' where external events wait until its replay has ended.
--
-- An external event is what a replay waits for and does not write itself. Where many of them arrive, each
-- could make another replay stale: so the refusal of one holds external events of its run back until the next
-- replay has ended.
--
-- The commit waits for the disk where somebody could act on what it says, and step_created does not. A
-- crash of the server loses the end of its WAL, never the middle; a lost step_created was not followed by
-- the step's code, and its run's next replay makes it again, wherever in the log. run_started has to be on the
-- disk: the delivery that made it may outlive the crash, and no replay reads what it appends then, before
-- the run_started of the next delivery.
--
-- search_path, here and in each function: a role that may create in another schema of the path, such as public,
-- could else put a function or an operator of its own in the place of PostgreSQL's.
CREATE OR REPLACE FUNCTION :"schema".append_events(
  run_ids         text[],
  types           text[],
  correlation_ids text[],
  spec_versions   integer[],
  datas           text[],     -- JSON of the event's data without its payload
  payloads        bytea[],
  occurred_ats    bigint[],   -- epoch ms
  snapshots       bigint[],   -- epoch ms of the newest event that a replay has seen (412 guard)
  names           text[],     -- workflow name, step name or hook token
  deployment_ids  text[],
  details         text[],     -- JSON of the execution context or of the error
  times           bigint[],   -- epoch ms of a wait's resumeAt or a step's retryAfter
  webhooks        boolean[],
  leases          bigint[],   -- ms of the lease that a step_started takes, if it does; of a call that a
                              -- replay makes, for how long external events are held back, if they are
  shared          boolean[],  -- of such a step_started: the process executes other steps too
  attempt_requests bigint[],  -- the step_started whose attempt an outcome settles; NULL: whichever there is
  requests        bigint[],   -- the caller's own number of each call
  tries           integer[],  -- how many tries of the same call went before, their answers lost
  new_job_prefix  text        -- the queues that serve runs created by this batch
) RETURNS TABLE (
  out_call           integer,
  out_outcome        text,
  out_slot           integer,
  out_type           text,
  out_correlation_id text,
  out_created_at     bigint,
  out_occurred_at    bigint,
  out_spec_version   integer,
  out_data           text,
  out_payload        bytea,
  out_entity         text
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
  max_spec_version CONSTANT integer := 3;
  -- So often a step's attempt is lost beside other steps without being counted: they cannot all be innocent for ever.
  max_uncounted    CONSTANT integer := 10;
  run       :"schema".workflow_runs;
  step      :"schema".workflow_steps;
  hook      :"schema".workflow_hooks;
  wait      :"schema".workflow_waits;
  last_slot integer;
  last_at   timestamptz;
  at        timestamptz;
  ended     boolean;
  legacy    boolean;
  durable   boolean := false;
  external_event boolean;
  earlier   record;
  overtaken bigint[];
  free_at   timestamptz;
  handed_over boolean;
  bystander boolean;
  ignored   text;
BEGIN
  -- All before any look or write: a batch that waits for a lock must hold nothing that others wait for.
  PERFORM pg_advisory_xact_lock(k.key)
    FROM (SELECT DISTINCT hashtextextended(r.run_id, 0) AS key FROM unnest(run_ids) AS r(run_id) ORDER BY key) k;
  overtaken := :"schema".overtaken_calls(requests, tries);

  FOR i IN 1 .. cardinality(run_ids) LOOP
    out_call := i - 1;
    out_slot := NULL;
    out_type := types[i];
    out_correlation_id := correlation_ids[i];
    out_created_at := NULL;
    out_occurred_at := occurred_ats[i];
    out_spec_version := spec_versions[i];
    out_data := NULL;
    out_payload := NULL;
    out_entity := NULL;

    IF requests[i] = ANY (overtaken) THEN
      out_outcome := 'unchanged';
      RETURN NEXT;
      CONTINUE;
    END IF;

    IF i = 1 OR run.run_id IS DISTINCT FROM run_ids[i] THEN
      SELECT * INTO run FROM :"schema".workflow_runs WHERE run_id = run_ids[i];
      SELECT slot, created_at INTO last_slot, last_at FROM :"schema".workflow_events
        WHERE run_id = run_ids[i] ORDER BY slot DESC LIMIT 1;
      last_slot := COALESCE(last_slot, 0);
    END IF;

    -- Created here, by its own event or by a first delivery that overtook it (resilient start).
    IF run.run_id IS NULL AND (types[i] = 'run_created'
                               OR (types[i] = 'run_started' AND names[i] IS NOT NULL AND spec_versions[i] > 1)) THEN
      at := date_trunc('milliseconds', clock_timestamp());
      INSERT INTO :"schema".workflow_runs (run_id, workflow_name, deployment_id, spec_version, execution_context,
                                           job_prefix, created_at, updated_at)
        VALUES (run_ids[i], names[i], deployment_ids[i], spec_versions[i], details[i], new_job_prefix, at, at)
        RETURNING * INTO run;
      durable := true;
      last_slot := 1;
      last_at := at;
      INSERT INTO :"schema".workflow_events (run_id, slot, type, created_at, occurred_at, spec_version, request_id, data, payload)
        VALUES (run_ids[i], 1, 'run_created', at, :"schema".from_epoch_ms(occurred_ats[i]), spec_versions[i], requests[i], datas[i],
                payloads[i]);
      IF types[i] = 'run_created' THEN
        out_outcome := 'appended';
        out_slot := 1;
        out_created_at := :"schema".epoch_ms(at);
        out_entity := :"schema".run_json(run);
        RETURN NEXT;
        CONTINUE;
      END IF;
    END IF;

    IF run.run_id IS NULL THEN
      out_outcome := CASE WHEN types[i] LIKE 'hook\_%' AND types[i] <> 'hook_created' THEN 'hook_not_found' ELSE 'run_not_found' END;
      RETURN NEXT;
      CONTINUE;
    END IF;

    -- The first try of this very call may be in the log, its answer lost. run_started needs no such look: a
    -- run that runs already answers it in full.
    IF tries[i] > 0 AND types[i] <> 'run_started' THEN
      SELECT slot, type, created_at, data INTO earlier FROM :"schema".workflow_events
        WHERE run_id = run.run_id AND request_id = requests[i]
        ORDER BY slot DESC LIMIT 1;
      IF FOUND THEN
        out_outcome := 'appended';
        out_slot := earlier.slot;
        out_type := earlier.type;
        out_created_at := :"schema".epoch_ms(earlier.created_at);
        CASE split_part(earlier.type, '_', 1)
        WHEN 'run' THEN
          out_entity := :"schema".run_json(run);
        WHEN 'step' THEN
          SELECT * INTO step FROM :"schema".workflow_steps WHERE run_id = run.run_id AND step_id = correlation_ids[i];
          out_entity := :"schema".step_json(step);
          IF earlier.type = 'step_started' AND (step.status <> 'running' OR step.lease_request <> requests[i]) THEN
            -- The answer was lost for so long that another request has started the step, or settled it.
            out_outcome := CASE WHEN step.status IN ('pending', 'running') THEN 'too_early' ELSE 'entity_conflict' END;
            out_entity := GREATEST(1, ceil(extract(epoch FROM step.lease_until - clock_timestamp())));
          ELSIF earlier.type = 'step_started' THEN
            SELECT payload, data INTO out_payload, out_data FROM :"schema".workflow_events
              WHERE run_id = run.run_id AND slot = step.input_slot;
          END IF;
        WHEN 'wait' THEN
          -- Gone with the end of its run, perhaps.
          SELECT :"schema".wait_json(w) INTO out_entity FROM :"schema".workflow_waits w
            WHERE run_id = run.run_id AND correlation_id = correlation_ids[i];
        ELSE
          IF earlier.type = 'hook_conflict' THEN
            out_data := earlier.data;
          ELSIF earlier.type <> 'hook_disposed' THEN
            SELECT :"schema".hook_json(h) INTO out_entity FROM :"schema".workflow_hooks h
              WHERE run_id = run.run_id AND hook_id = correlation_ids[i];
          END IF;
        END CASE;
        RETURN NEXT;
        CONTINUE;
      END IF;
    END IF;

    IF types[i] = 'run_created' THEN
      out_outcome := 'entity_conflict';
      RETURN NEXT;
      CONTINUE;
    END IF;

    IF run.spec_version > max_spec_version THEN
      out_outcome := 'run_not_supported';
      out_entity := run.spec_version;
      RETURN NEXT;
      CONTINUE;
    END IF;

    ended := run.status IN ('completed', 'failed', 'cancelled');
    external_event := snapshots[i] IS NULL AND types[i] IN ('hook_received', 'step_completed', 'step_failed', 'wait_completed');
    at := GREATEST(date_trunc('milliseconds', clock_timestamp()), last_at);
    IF external_event THEN
      -- Strictly later than all before it, so that the guard's millisecond comparison is exact.
      at := GREATEST(at, last_at + interval '1 millisecond');
    END IF;

    -- Runs of spec version 1 can be inspected, cancelled and resumed, not executed.
    legacy := COALESCE(run.spec_version, 1) <= 1;
    IF legacy AND types[i] NOT IN ('wait_completed', 'hook_received') THEN
      IF types[i] = 'run_cancelled' THEN
        IF NOT ended THEN
          durable := true;
          UPDATE :"schema".workflow_runs SET status = 'cancelled', completed_at = at, updated_at = at
            WHERE run_id = run.run_id RETURNING * INTO run;
          DELETE FROM :"schema".workflow_hooks WHERE run_id = run.run_id;
          DELETE FROM :"schema".workflow_waits WHERE run_id = run.run_id;
        END IF;
        out_outcome := 'unchanged';
        out_entity := :"schema".run_json(run);
      ELSE
        out_outcome := 'legacy_unsupported';
      END IF;
      RETURN NEXT;
      CONTINUE;
    END IF;

    -- An expression without a query in it costs plpgsql next to nothing.
    IF external_event AND run.held_until > clock_timestamp() AND NOT ended THEN
      out_outcome := 'held_back';
      RETURN NEXT;
      CONTINUE;
    END IF;

    IF last_at <> :"schema".from_epoch_ms(snapshots[i]) AND NOT ended THEN
      -- A standby was promoted that had not got all of the log: what the replay has seen is no more.
      IF last_at < :"schema".from_epoch_ms(snapshots[i]) THEN
        out_outcome := 'log_lost';
        RETURN NEXT;
        CONTINUE;
      END IF;
      IF EXISTS (
        SELECT FROM (
          SELECT created_at FROM :"schema".workflow_events
            WHERE run_id = run.run_id AND external ORDER BY slot DESC LIMIT 1
        ) newest WHERE created_at > :"schema".from_epoch_ms(snapshots[i])
      ) THEN
        IF leases[i] IS NOT NULL AND COALESCE(run.held_until < clock_timestamp(), true) THEN
          UPDATE :"schema".workflow_runs SET held_until = clock_timestamp() + leases[i] * interval '1 millisecond'
            WHERE run_id = run.run_id RETURNING * INTO run;
        END IF;
        out_outcome := 'precondition_failed';
        RETURN NEXT;
        CONTINUE;
      END IF;
    END IF;

    out_outcome := 'appended';

    CASE types[i]
    WHEN 'run_started' THEN
      IF ended THEN
        out_outcome := 'run_expired';
      ELSIF run.status = 'running' THEN
        out_outcome := 'unchanged';
        IF leases[i] IS NOT NULL AND run.held_until > clock_timestamp() THEN
          UPDATE :"schema".workflow_runs SET held_until = clock_timestamp() + leases[i] * interval '1 millisecond'
            WHERE run_id = run.run_id RETURNING * INTO run;
          out_data := 'true';
        END IF;
      ELSE
        UPDATE :"schema".workflow_runs SET status = 'running', started_at = at, updated_at = at
          WHERE run_id = run.run_id RETURNING * INTO run;
      END IF;
      out_entity := :"schema".run_json(run);

    WHEN 'run_completed', 'run_failed', 'run_cancelled' THEN
      IF NOT ended THEN
        UPDATE :"schema".workflow_runs SET
            status = CASE types[i] WHEN 'run_completed' THEN 'completed' WHEN 'run_failed' THEN 'failed' ELSE 'cancelled' END,
            output_slot = CASE WHEN types[i] = 'run_completed' THEN last_slot + 1 END,
            error = CASE WHEN types[i] = 'run_failed' THEN details[i] END,
            completed_at = at,
            updated_at = at
          WHERE run_id = run.run_id RETURNING * INTO run;
        -- Tokens are free for other runs from the very commit that ends this one.
        DELETE FROM :"schema".workflow_hooks WHERE run_id = run.run_id;
        DELETE FROM :"schema".workflow_waits WHERE run_id = run.run_id;
      ELSIF types[i] <> 'run_cancelled' OR run.status <> 'cancelled' THEN
        out_outcome := 'entity_conflict';
      END IF;
      out_entity := :"schema".run_json(run);

    WHEN 'step_created' THEN
      -- Looked for, and not left to ON CONFLICT, which writes a record more: nobody else inserts meanwhile.
      IF ended OR EXISTS (SELECT FROM :"schema".workflow_steps WHERE run_id = run.run_id AND step_id = correlation_ids[i]) THEN
        out_outcome := 'entity_conflict';
      ELSE
        INSERT INTO :"schema".workflow_steps (run_id, step_id, step_name, input_slot, spec_version, created_at, updated_at)
          VALUES (run.run_id, correlation_ids[i], names[i], last_slot + 1, spec_versions[i], at, at)
          RETURNING * INTO step;
        out_entity := :"schema".step_json(step);
      END IF;

    WHEN 'step_started' THEN
      SELECT * INTO step FROM :"schema".workflow_steps WHERE run_id = run.run_id AND step_id = correlation_ids[i];
      free_at := CASE WHEN step.status = 'running' AND leases[i] IS NOT NULL THEN step.lease_until END;
      IF free_at > 'epoch' AND free_at <= clock_timestamp() THEN
        -- Perhaps nobody could have renewed it: in the latest gap that is known, or in one that this very call ends.
        SELECT :"schema".lease_end(free_at, leases[i] * interval '1 millisecond', p) INTO free_at FROM :"schema".workflow_pulse p;
        IF free_at <= clock_timestamp() THEN
          free_at := :"schema".lease_end(step.lease_until, leases[i] * interval '1 millisecond', :"schema".pulse());
        END IF;
      END IF;
      -- The run's end is told first: a cancel that overtook step_created leaves messages of steps that never were.
      IF ended AND step.status IS DISTINCT FROM 'running' THEN
        out_outcome := 'run_expired';
      ELSIF step.run_id IS NULL THEN
        out_outcome := 'step_not_found';
      ELSIF step.status NOT IN ('pending', 'running') THEN
        out_outcome := 'entity_conflict';
      ELSIF step.retry_after > at THEN
        out_outcome := 'too_early';
        out_entity := ceil(extract(epoch FROM step.retry_after - at));
      ELSIF free_at > clock_timestamp() THEN
        out_outcome := 'too_early';
        out_entity := GREATEST(1, ceil(extract(epoch FROM free_at - clock_timestamp())));
      -- Its process died with it, or is cut off. Ending the run must stop a step that kills its processes.
      ELSIF ended AND step.lease_until IS NOT NULL THEN
        out_outcome := 'run_expired';
      ELSE
        -- An attempt is the step's own where its code failed, or its process died of it. One that was handed over
        -- goes on elsewhere, and one that was lost beside other steps was probably lost because of one of them.
        handed_over := step.status = 'running' AND step.lease_until = 'epoch';
        bystander := step.status = 'running' AND step.lease_until > 'epoch' AND step.lease_shared AND step.uncounted < max_uncounted;
        UPDATE :"schema".workflow_steps SET
            status = 'running', attempt = attempt + CASE WHEN handed_over OR bystander THEN 0 ELSE 1 END,
            uncounted = uncounted + CASE WHEN bystander THEN 1 ELSE 0 END,
            started_at = COALESCE(started_at, at), retry_after = NULL, updated_at = at,
            lease_until = clock_timestamp() + leases[i] * interval '1 millisecond', lease_request = requests[i],
            lease_shared = shared[i]
          WHERE run_id = run.run_id AND step_id = correlation_ids[i] RETURNING * INTO step;
        SELECT payload, data INTO out_payload, out_data FROM :"schema".workflow_events
          WHERE run_id = run.run_id AND slot = step.input_slot;
        out_entity := :"schema".step_json(step);
      END IF;

    -- Allowed when the run has ended: a step that was running then may still report. Refused where another
    -- request has started the step since: the attempt is that one's.
    WHEN 'step_completed', 'step_failed', 'step_retrying' THEN
      UPDATE :"schema".workflow_steps SET
          status = CASE types[i] WHEN 'step_completed' THEN 'completed' WHEN 'step_failed' THEN 'failed' ELSE 'pending' END,
          output_slot = CASE WHEN types[i] = 'step_completed' THEN last_slot + 1 END,
          error = CASE WHEN types[i] = 'step_completed' THEN error ELSE details[i] END,
          completed_at = CASE WHEN types[i] <> 'step_retrying' THEN at END,
          retry_after = CASE WHEN types[i] = 'step_retrying' THEN :"schema".from_epoch_ms(times[i]) END,
          lease_until = NULL,
          updated_at = at
        WHERE run_id = run.run_id AND step_id = correlation_ids[i] AND status IN ('pending', 'running')
          -- Attempt 0: a failover to an asynchronous standby has lost the start, and nobody else has started it.
          AND (attempt_requests[i] IS NULL OR lease_request = attempt_requests[i] OR attempt = 0)
        RETURNING * INTO step;
      IF step.run_id IS NOT NULL THEN
        out_entity := :"schema".step_json(step);
      ELSIF EXISTS (SELECT FROM :"schema".workflow_steps WHERE run_id = run.run_id AND step_id = correlation_ids[i]) THEN
        out_outcome := 'entity_conflict';
      ELSE
        out_outcome := 'step_not_found';
      END IF;

    WHEN 'hook_created' THEN
      IF ended OR EXISTS (SELECT FROM :"schema".workflow_hooks WHERE run_id = run.run_id AND hook_id = correlation_ids[i]) THEN
        out_outcome := 'entity_conflict';
      ELSE
        LOOP
          INSERT INTO :"schema".workflow_hooks (run_id, hook_id, token, metadata_slot, is_webhook, spec_version, created_at)
            VALUES (run.run_id, correlation_ids[i], names[i], last_slot + 1, webhooks[i], spec_versions[i], at)
            ON CONFLICT DO NOTHING RETURNING * INTO hook;
          IF hook.run_id IS NOT NULL THEN
            out_entity := :"schema".hook_json(hook);
            EXIT;
          END IF;
          SELECT * INTO hook FROM :"schema".workflow_hooks
            WHERE :"schema".token_digest(token) = :"schema".token_digest(names[i]) AND token = names[i];
          -- Not found: its owner let go of the token between the two statements, so try again.
          IF hook.run_id IS NOT NULL THEN
            -- The loser leaves a row without a token: a repeat must not win after all, once the token is free.
            INSERT INTO :"schema".workflow_hooks (run_id, hook_id, metadata_slot, is_webhook, spec_version, created_at, disposed_at)
              VALUES (run.run_id, correlation_ids[i], last_slot + 1, webhooks[i], spec_versions[i], at, at);
            out_type := 'hook_conflict';
            out_data := json_build_object('token', names[i], 'conflictingRunId', hook.run_id);
            EXIT;
          END IF;
        END LOOP;
      END IF;

    WHEN 'hook_received' THEN
      SELECT * INTO hook FROM :"schema".workflow_hooks
        WHERE run_id = run.run_id AND hook_id = correlation_ids[i] AND disposed_at IS NULL;
      IF hook.run_id IS NOT NULL THEN
        out_entity := :"schema".hook_json(hook);
      ELSIF NOT legacy THEN
        out_outcome := 'hook_not_found';
      END IF;

    WHEN 'hook_disposed' THEN
      UPDATE :"schema".workflow_hooks SET token = NULL, disposed_at = at
        WHERE run_id = run.run_id AND hook_id = correlation_ids[i] AND disposed_at IS NULL RETURNING * INTO hook;
      IF hook.run_id IS NULL THEN
        out_outcome := 'hook_not_found';
      END IF;

    WHEN 'wait_created' THEN
      IF ended THEN
        out_outcome := 'entity_conflict';
      ELSE
        INSERT INTO :"schema".workflow_waits (run_id, correlation_id, resume_at, spec_version, created_at, updated_at)
          VALUES (run.run_id, correlation_ids[i], :"schema".from_epoch_ms(times[i]), spec_versions[i], at, at)
          ON CONFLICT DO NOTHING RETURNING * INTO wait;
        IF wait.run_id IS NULL THEN
          out_outcome := 'entity_conflict';
        ELSE
          out_entity := :"schema".wait_json(wait);
        END IF;
      END IF;

    WHEN 'wait_completed' THEN
      UPDATE :"schema".workflow_waits SET status = 'completed', completed_at = at, updated_at = at
        WHERE run_id = run.run_id AND correlation_id = correlation_ids[i] AND status = 'waiting' RETURNING * INTO wait;
      IF wait.run_id IS NOT NULL THEN
        out_entity := :"schema".wait_json(wait);
      ELSIF ended OR EXISTS (SELECT FROM :"schema".workflow_waits WHERE run_id = run.run_id AND correlation_id = correlation_ids[i]) THEN
        out_outcome := 'entity_conflict';
      ELSIF NOT legacy THEN
        out_outcome := 'wait_not_found';
      END IF;
    END CASE;

    IF out_outcome = 'appended' THEN
      durable := durable OR out_type <> 'step_created';
      last_slot := last_slot + 1;
      last_at := at;
      out_slot := last_slot;
      out_created_at := :"schema".epoch_ms(at);
      INSERT INTO :"schema".workflow_events (run_id, slot, type, correlation_id, created_at, occurred_at, spec_version,
                                             external, request_id, data, payload)
        VALUES (run.run_id, last_slot, out_type, correlation_ids[i], at, :"schema".from_epoch_ms(occurred_ats[i]),
                spec_versions[i], external_event, requests[i],
                CASE WHEN out_type = 'hook_conflict' THEN out_data WHEN types[i] <> 'run_started' THEN datas[i] END,
                CASE WHEN out_type NOT IN ('hook_conflict', 'run_started') THEN payloads[i] END);
    END IF;

    -- The log comes with the first answer of a delivery, so that a replay needs no second read.
    IF types[i] = 'run_started' AND out_outcome IN ('appended', 'unchanged') THEN
      RETURN QUERY SELECT i - 1, 'log', slot, type, correlation_id, :"schema".epoch_ms(created_at),
          :"schema".epoch_ms(occurred_at), spec_version, data, payload, NULL::text
        FROM :"schema".workflow_events WHERE run_id = run.run_id ORDER BY slot;
    END IF;
    RETURN NEXT;
  END LOOP;

  IF NOT durable THEN
    ignored := set_config('synchronous_commit', 'off', true);
  END IF;
END
$$;
