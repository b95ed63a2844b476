-- The only writer of streams: appends chunks, one index each, and closes the stream where `closing`.
--
-- Indexes are given out under the lock of the stream's row, which is held until the commit: they are
-- dense, in commit order, and a reader that sees the row sees all chunks before its next_index.
-- The first close wins; what comes after it is ignored.
CREATE OR REPLACE FUNCTION :"schema".stream_append(
  stream_name   text,
  stream_run_id text,
  new_chunks    bytea[],
  closing       boolean,
  channel       text,
  request       bigint,    -- the caller's own number of this write
  tries         integer    -- how many tries of the same write went before, their answers lost
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' AS $$
DECLARE
  added CONSTANT integer := cardinality(new_chunks);
  stream      bigint;
  first_index integer;
BEGIN
  UPDATE :"schema".workflow_streams
  SET next_index = next_index + added, closed = closing, updated_at = now()
  WHERE name = stream_name AND NOT closed
  RETURNING id, next_index - added INTO stream, first_index;

  IF NOT FOUND THEN
    -- New, closed, or made by another writer just now.
    INSERT INTO :"schema".workflow_streams AS s (name, run_id, next_index, closed)
    VALUES (stream_name, stream_run_id, added, closing)
    ON CONFLICT (name) DO UPDATE
    SET next_index = s.next_index + added, closed = closing, updated_at = now()
    WHERE NOT s.closed
    RETURNING s.id, s.next_index - added INTO stream, first_index;
    IF NOT FOUND THEN
      RETURN;
    END IF;
  END IF;

  -- Under the lock of the row: another try that was under way has ended now. (One that closed the stream did
  -- not come so far.)
  IF :"schema".overtaken_calls(ARRAY[request], ARRAY[tries]) <> '{}' OR tries > 0 AND EXISTS (
    SELECT FROM :"schema".workflow_stream_chunks c WHERE c.stream_id = stream AND c.request_id = request
  ) THEN
    UPDATE :"schema".workflow_streams SET next_index = first_index, closed = closing WHERE id = stream;
    RETURN;
  END IF;

  INSERT INTO :"schema".workflow_stream_chunks (stream_id, index, request_id, data)
  SELECT stream, first_index + chunk.at - 1, CASE WHEN chunk.at = 1 THEN request END, chunk.data
  FROM unnest(new_chunks) WITH ORDINALITY AS chunk(data, at);

  PERFORM pg_notify(channel, stream_name);
END
$$;
