-- :"schema" stands for the quoted schema name, as in psql.
--
-- workflow_events is the log. Every other row of a run is derived from it, in the transaction that
-- appends the event. Payloads are stored once, on the event that carried them; entities name the
-- slot of that event.
--
-- CHECK constraints tie states to their timestamps, except on the two tables that each step writes
-- several times: there PostgreSQL would spend more on reading the constraints than on the row.
--
-- All times are written truncated to milliseconds: JavaScript reads them so, and a replay must see
-- the very same value each time. Text that users may put a NUL into is kept as JSON text, where NUL
-- is an escape that PostgreSQL can store.

CREATE TABLE :"schema".workflow_runs (
  run_id            text COLLATE "C" PRIMARY KEY,
  workflow_name     text NOT NULL,
  deployment_id     text NOT NULL,
  status            text NOT NULL DEFAULT 'pending',
  spec_version      integer,
  execution_context text,
  error             text,
  output_slot       integer,
  -- The queues that serve this run; a sweep wakes only runs of its own.
  job_prefix        text NOT NULL,
  -- The last slot at which the sweep woke this run: a run that is parked is woken once.
  rescued_slot      integer,
  -- Until then external events wait: a replay was refused because of one, and the next is to come through.
  held_until        timestamptz,
  created_at        timestamptz NOT NULL,
  updated_at        timestamptz NOT NULL,
  started_at        timestamptz,
  completed_at      timestamptz,
  expired_at        timestamptz,
  CONSTRAINT run_status CHECK (status IN ('pending', 'running', 'completed', 'failed', 'cancelled')),
  CONSTRAINT run_started CHECK (status <> 'running' OR started_at IS NOT NULL),
  CONSTRAINT run_ended CHECK ((status IN ('completed', 'failed', 'cancelled')) = (completed_at IS NOT NULL)),
  CONSTRAINT run_error CHECK ((status = 'failed') = (error IS NOT NULL)),
  CONSTRAINT run_output CHECK (output_slot IS NULL OR status = 'completed')
  -- A new version of a row beside the old one is written to the WAL as their difference.
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);

CREATE INDEX workflow_runs_status ON :"schema".workflow_runs (status, run_id);
CREATE INDEX workflow_runs_name ON :"schema".workflow_runs (workflow_name, run_id);
-- Correlation ids are ULIDs whose time is their run's start: this index finds the run of a step,
-- hook or wait id, so that the hot tables need no index on those ids alone.
CREATE INDEX workflow_runs_started ON :"schema".workflow_runs (started_at);

CREATE TABLE :"schema".workflow_events (
  run_id         text COLLATE "C" NOT NULL,
  slot           integer NOT NULL,
  type           text NOT NULL,
  correlation_id text COLLATE "C",
  created_at     timestamptz NOT NULL,
  occurred_at    timestamptz,
  -- The number that the caller gave its call: by it a call that is repeated, because its answer was lost
  -- with the connection, is recognised.
  request_id     bigint,
  spec_version   integer,
  -- An event that a replay waits for and did not write itself: the payloads of hooks, the ends of steps, sleeps that
  -- were cut short. A snapshot of the log that is older than such an event is refused (status 412).
  external       boolean NOT NULL DEFAULT false,
  data           text,
  payload        bytea,
  PRIMARY KEY (run_id, slot)
);

-- The 412 guard asks for the newest external event of a run.
CREATE INDEX workflow_events_external ON :"schema".workflow_events (run_id, slot) WHERE external;

CREATE TABLE :"schema".workflow_steps (
  run_id       text COLLATE "C" NOT NULL,
  step_id      text COLLATE "C" NOT NULL,
  step_name    text NOT NULL,
  status       text NOT NULL DEFAULT 'pending',
  attempt      integer NOT NULL DEFAULT 0,
  input_slot   integer NOT NULL,
  output_slot  integer,
  error        text,
  spec_version integer,
  created_at   timestamptz NOT NULL,
  updated_at   timestamptz NOT NULL,
  started_at   timestamptz,
  completed_at timestamptz,
  retry_after  timestamptz,
  -- Of the process that runs the step's code. The epoch: that process has handed the step over.
  lease_until  timestamptz,
  -- The number of the step_started that began the current attempt: only its own process may renew the lease,
  -- give it back or settle the step.
  lease_request bigint,
  -- That process executes other steps too: should it die, any of them may be the cause.
  lease_shared boolean,
  -- How many attempts were lost so, and not counted.
  uncounted    integer NOT NULL DEFAULT 0,
  PRIMARY KEY (run_id, step_id)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);

-- An index entry holds some 2,700 bytes, and a token may be longer: a JWT, a signed URL. Its digest stands for it.
-- A cast is the only immutable way from text to bytes; it takes a backslash for an escape unless there are two.
CREATE FUNCTION :"schema".token_digest(token text) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sha256(replace(token, E'\\', E'\\\\')::bytea);

CREATE TABLE :"schema".workflow_hooks (
  run_id        text COLLATE "C" NOT NULL,
  hook_id       text COLLATE "C" NOT NULL,
  -- NULL once disposed, or where another hook had it: the row stays until its run ends, so that the
  -- hook cannot be created twice.
  token         text COLLATE "C",
  metadata_slot integer NOT NULL,
  is_webhook    boolean,
  spec_version  integer,
  created_at    timestamptz NOT NULL,
  disposed_at   timestamptz,
  PRIMARY KEY (run_id, hook_id),
  CONSTRAINT hook_disposed CHECK ((token IS NULL) = (disposed_at IS NOT NULL))
);

CREATE UNIQUE INDEX workflow_hooks_token ON :"schema".workflow_hooks (:"schema".token_digest(token));
CREATE INDEX workflow_hooks_id ON :"schema".workflow_hooks (hook_id);

CREATE TABLE :"schema".workflow_waits (
  run_id         text COLLATE "C" NOT NULL,
  correlation_id text COLLATE "C" NOT NULL,
  status         text NOT NULL DEFAULT 'waiting',
  resume_at      timestamptz,
  spec_version   integer,
  created_at     timestamptz NOT NULL,
  updated_at     timestamptz NOT NULL,
  completed_at   timestamptz,
  PRIMARY KEY (run_id, correlation_id),
  CONSTRAINT wait_status CHECK (status IN ('waiting', 'completed')),
  CONSTRAINT wait_ended CHECK ((status = 'completed') = (completed_at IS NOT NULL))
);

-- No reference to workflow_runs: the SDK's health check writes to streams of runs that never exist.
CREATE TABLE :"schema".workflow_streams (
  name       text COLLATE "C" PRIMARY KEY,
  id         bigint GENERATED ALWAYS AS IDENTITY,
  run_id     text COLLATE "C" NOT NULL,
  next_index integer NOT NULL DEFAULT 0,
  closed     boolean NOT NULL DEFAULT false,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);

CREATE INDEX workflow_streams_run ON :"schema".workflow_streams (run_id);

-- By number, not by name: a chunk is often smaller than the name of its stream.
CREATE TABLE :"schema".workflow_stream_chunks (
  stream_id bigint NOT NULL,
  index     integer NOT NULL,
  -- Of the first chunk of each write, as in workflow_events.
  request_id bigint,
  data      bytea NOT NULL,
  PRIMARY KEY (stream_id, index)
);

-- One row: when a process last came through to renew or look after leases, and the latest time in which none did.
-- Without an index: a transaction that stays open, such as a backup's, keeps all versions of the row in it.
CREATE TABLE :"schema".workflow_pulse (
  at       timestamptz NOT NULL,
  gap_from timestamptz NOT NULL,
  gap_to   timestamptz NOT NULL
);

INSERT INTO :"schema".workflow_pulse VALUES (now(), 'epoch', 'epoch');

-- Where the search for stranded runs is, of each prefix of queue names.
CREATE TABLE :"schema".workflow_rescues (
  job_prefix text COLLATE "C" PRIMARY KEY,
  -- The run behind which it goes on; '' begins a pass.
  place      text COLLATE "C" NOT NULL,
  due_at     timestamptz NOT NULL
);

-- Calls that were sent again because their answer was lost, by the caller's number; see overtaken_calls.
CREATE TABLE :"schema".workflow_repeated_calls (
  request_id  bigint PRIMARY KEY,
  last_try    integer NOT NULL,
  repeated_at timestamptz NOT NULL
);

CREATE INDEX workflow_repeated_calls_age ON :"schema".workflow_repeated_calls (repeated_at);

-- Not compressed: chunks are small or packed already, and a writer waits for each.
ALTER TABLE :"schema".workflow_stream_chunks ALTER data SET STORAGE EXTERNAL;
