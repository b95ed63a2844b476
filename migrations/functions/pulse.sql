-- Whether leases could be renewed at all: a process that comes to take over an expired lease must know whether
-- its holder is gone, or PostgreSQL was (a restart, a failover to a standby, a machine that slept, a network that
-- was cut for all). Heartbeats, renewals and sweeps note in one row that they came through. While any process
-- works, one of them does so at least every 2 s; a longer silence is a gap.

-- Notes that a process came through, and returns the row: a gap that ends with this very call is in it. Writes
-- about once a second, and never waits: who finds the row locked need not write it as well.
CREATE OR REPLACE FUNCTION :"schema".pulse() RETURNS :"schema".workflow_pulse LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  moment timestamptz := clock_timestamp();
  pulse  :"schema".workflow_pulse;
BEGIN
  SELECT * INTO pulse FROM :"schema".workflow_pulse;
  IF moment > pulse.at + interval '1.5 seconds' THEN
    IF moment > pulse.at + interval '3 seconds' THEN
      pulse.gap_from := pulse.at;
      pulse.gap_to := moment;
    END IF;
    PERFORM FROM :"schema".workflow_pulse p WHERE p.at = pulse.at FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
      UPDATE :"schema".workflow_pulse p SET at = moment, gap_from = pulse.gap_from, gap_to = pulse.gap_to
        WHERE p.at = pulse.at;
      pulse.at := moment;
    END IF;
  END IF;
  RETURN pulse;
END
$$;

-- When a lease ends that was good until `until`. Where a gap left its holder less than 3 s of it, the lease lasts
-- as long again from the end of the gap. A gap that began after `until` changes nothing: a lease does not live
-- for ever because its holder was the last process to work.
CREATE OR REPLACE FUNCTION :"schema".lease_end(until timestamptz, lease interval, pulse :"schema".workflow_pulse) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN (pulse).gap_from < until AND (pulse).gap_to > until - interval '3 seconds'
       THEN GREATEST(until, (pulse).gap_to + lease) ELSE until END;
