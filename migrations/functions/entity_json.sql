-- One shape per entity, for single reads, lists and the results of append_events alike.
-- Each body is an expression that was read when the function was made: the planner puts it into the query that
-- calls it, where names of a query's own text could mean something else (search_path).
-- Keys are the SDK's; times are epoch milliseconds; payloads are not part of it.

CREATE OR REPLACE FUNCTION :"schema".epoch_ms(at timestamptz) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (extract(epoch FROM at) * 1000)::bigint;

-- In two parts, each of which a double holds exactly: to_timestamp() alone is a millisecond off in the year
-- 270,000, which JavaScript's Dates reach.
CREATE OR REPLACE FUNCTION :"schema".from_epoch_ms(ms bigint) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
RETURN to_timestamp(ms / 65536000 * 65536) + ms % 65536000 * interval '1 millisecond';

CREATE OR REPLACE FUNCTION :"schema".run_json(r :"schema".workflow_runs) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN json_build_object(
  'runId', r.run_id,
  'status', r.status,
  'deploymentId', r.deployment_id,
  'workflowName', r.workflow_name,
  'specVersion', r.spec_version,
  'executionContext', r.execution_context::json,
  'error', r.error::json,
  'expiredAt', :"schema".epoch_ms(r.expired_at),
  'startedAt', :"schema".epoch_ms(r.started_at),
  'completedAt', :"schema".epoch_ms(r.completed_at),
  'createdAt', :"schema".epoch_ms(r.created_at),
  'updatedAt', :"schema".epoch_ms(r.updated_at)
)::text;

CREATE OR REPLACE FUNCTION :"schema".step_json(s :"schema".workflow_steps) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN json_build_object(
  'runId', s.run_id,
  'stepId', s.step_id,
  'stepName', s.step_name,
  'status', s.status,
  'attempt', s.attempt,
  'error', s.error::json,
  'specVersion', s.spec_version,
  'startedAt', :"schema".epoch_ms(s.started_at),
  'completedAt', :"schema".epoch_ms(s.completed_at),
  'createdAt', :"schema".epoch_ms(s.created_at),
  'updatedAt', :"schema".epoch_ms(s.updated_at),
  'retryAfter', :"schema".epoch_ms(s.retry_after)
)::text;

CREATE OR REPLACE FUNCTION :"schema".hook_json(h :"schema".workflow_hooks) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN json_build_object(
  'runId', h.run_id,
  'hookId', h.hook_id,
  'token', h.token,
  'ownerId', '',
  'projectId', '',
  'environment', '',
  'isWebhook', h.is_webhook,
  'specVersion', h.spec_version,
  'createdAt', :"schema".epoch_ms(h.created_at)
)::text;

CREATE OR REPLACE FUNCTION :"schema".wait_json(w :"schema".workflow_waits) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN json_build_object(
  'waitId', w.run_id || '-' || w.correlation_id,
  'runId', w.run_id,
  'status', w.status,
  'resumeAt', :"schema".epoch_ms(w.resume_at),
  'completedAt', :"schema".epoch_ms(w.completed_at),
  'createdAt', :"schema".epoch_ms(w.created_at),
  'updatedAt', :"schema".epoch_ms(w.updated_at),
  'specVersion', w.spec_version
)::text;
