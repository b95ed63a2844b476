-- Whether a flow's message carries more than "look at this run": the first delivery of a run may have
-- to create it, and a divergence is counted. Such a message is never dropped in favour of another one.
-- What cannot be read counts as special, and so does what merely contains the words.
CREATE OR REPLACE FUNCTION :"schema".queue_is_special(data jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  body bytea;
BEGIN
  body := decode(data ->> 'data', 'base64');
  RETURN body IS NULL OR position('"runInput"'::bytea IN body) > 0 OR position('"replayDivergence"'::bytea IN body) > 0;
EXCEPTION WHEN others THEN
  RETURN true;
END
$$;
