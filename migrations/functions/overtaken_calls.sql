-- Which of these calls a later try of themselves has overtaken: the network may deliver the first try of a call
-- after its repetition was committed. Such a call must do nothing more, and nobody waits for its answer.
--
-- A repetition leaves its number here, in its own transaction; a first try leaves nothing. Called under the lock
-- of what the calls change, so that of two tries at once the second one sees the number of the first.
CREATE OR REPLACE FUNCTION :"schema".overtaken_calls(
  requests bigint[],   -- the caller's own number of each call, the same for all its tries
  tries    integer[]   -- how many tries of it went before
) RETURNS bigint[] LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
BEGIN
  IF 0 < ANY (tries) THEN
    INSERT INTO :"schema".workflow_repeated_calls AS c (request_id, last_try, repeated_at)
      SELECT u.request, u.try, now() FROM unnest(requests, tries) AS u(request, try) WHERE u.try > 0
      ON CONFLICT (request_id) DO UPDATE SET last_try = EXCLUDED.last_try, repeated_at = EXCLUDED.repeated_at
      WHERE c.last_try < EXCLUDED.last_try;
    -- No network keeps a statement for a day.
    DELETE FROM :"schema".workflow_repeated_calls c WHERE c.request_id = ANY (ARRAY(
      SELECT o.request_id FROM :"schema".workflow_repeated_calls o
      WHERE o.repeated_at < now() - interval '1 day' ORDER BY o.repeated_at LIMIT 100 FOR UPDATE SKIP LOCKED));
  END IF;
  RETURN ARRAY(
    SELECT c.request_id FROM :"schema".workflow_repeated_calls c
    WHERE c.request_id = ANY (requests) AND c.last_try > tries[array_position(requests, c.request_id)]);
END
$$;
