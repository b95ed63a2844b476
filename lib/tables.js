/**
 * Our tables and views as Drizzle objects. Takes Drizzle as an argument, because `/schema` imports it
 * and the root loads it only when it is needed.
 *
 * Columns that hold JSON are `text` in the database too: users may put a NUL into what they hold,
 * which only JSON text can keep, as an escape.
 * @param {Pick<typeof import('drizzle-orm/pg-core'),
 *   'bigint' | 'boolean' | 'customType' | 'integer' | 'pgSchema' | 'text' | 'timestamp'>} drizzle
 * @param {string} [name] of the PostgreSQL schema
 * @returns {import('../schema.js').WorkflowSchema}
 */
export function tables(
  { bigint, boolean, customType, integer, pgSchema, text, timestamp },
  name = process.env.WORKFLOW_POSTGRES_SCHEMA || 'workflow_world',
) {
  const schema = pgSchema(name);
  const time = (/** @type {string} */ column) =>
    timestamp(column, { withTimezone: true, mode: 'date' });
  /** @type {import('drizzle-orm/pg-core').CustomTypeParams<{ data: Uint8Array, driverData: Uint8Array | string }>} */
  const bytes = {
    dataType: () => 'bytea',
    // Text where PostgreSQL has put the row into JSON, as Drizzle's nested queries have it do.
    fromDriver: (value) =>
      typeof value === 'string' ? Buffer.from(value.slice('\\x'.length), 'hex') : value,
  };
  const bytea = customType(bytes);

  const runColumns = () => ({
    runId: text('run_id').notNull(),
    workflowName: text('workflow_name').notNull(),
    deploymentId: text('deployment_id').notNull(),
    status: text('status', {
      enum: ['pending', 'running', 'completed', 'failed', 'cancelled'],
    }).notNull(),
    specVersion: integer('spec_version'),
    executionContext: text('execution_context'),
    error: text('error'),
    outputSlot: integer('output_slot'),
    jobPrefix: text('job_prefix').notNull(),
    rescuedSlot: integer('rescued_slot'),
    heldUntil: time('held_until'),
    createdAt: time('created_at').notNull(),
    updatedAt: time('updated_at').notNull(),
    startedAt: time('started_at'),
    completedAt: time('completed_at'),
    expiredAt: time('expired_at'),
  });
  const stepColumns = () => ({
    runId: text('run_id').notNull(),
    stepId: text('step_id').notNull(),
    stepName: text('step_name').notNull(),
    status: text('status', {
      enum: ['pending', 'running', 'completed', 'failed', 'cancelled'],
    }).notNull(),
    attempt: integer('attempt').notNull(),
    inputSlot: integer('input_slot').notNull(),
    outputSlot: integer('output_slot'),
    error: text('error'),
    specVersion: integer('spec_version'),
    createdAt: time('created_at').notNull(),
    updatedAt: time('updated_at').notNull(),
    startedAt: time('started_at'),
    completedAt: time('completed_at'),
    retryAfter: time('retry_after'),
    leaseUntil: time('lease_until'),
    leaseRequest: bigint('lease_request', { mode: 'number' }),
    leaseShared: boolean('lease_shared'),
    uncounted: integer('uncounted').notNull(),
  });
  const hookColumns = () => ({
    runId: text('run_id').notNull(),
    hookId: text('hook_id').notNull(),
    token: text('token'),
    metadataSlot: integer('metadata_slot').notNull(),
    isWebhook: boolean('is_webhook'),
    specVersion: integer('spec_version'),
    createdAt: time('created_at').notNull(),
    disposedAt: time('disposed_at'),
  });
  const payloads = () => ({ input: bytea('input'), output: bytea('output') });

  return {
    runs: schema.table('workflow_runs', runColumns()),
    events: schema.table('workflow_events', {
      runId: text('run_id').notNull(),
      slot: integer('slot').notNull(),
      type: text('type').notNull(),
      correlationId: text('correlation_id'),
      createdAt: time('created_at').notNull(),
      occurredAt: time('occurred_at'),
      requestId: bigint('request_id', { mode: 'number' }),
      specVersion: integer('spec_version'),
      external: boolean('external').notNull(),
      data: text('data'),
      payload: bytea('payload'),
    }),
    steps: schema.table('workflow_steps', stepColumns()),
    hooks: schema.table('workflow_hooks', hookColumns()),
    waits: schema.table('workflow_waits', {
      runId: text('run_id').notNull(),
      correlationId: text('correlation_id').notNull(),
      status: text('status', { enum: ['waiting', 'completed'] }).notNull(),
      resumeAt: time('resume_at'),
      specVersion: integer('spec_version'),
      createdAt: time('created_at').notNull(),
      updatedAt: time('updated_at').notNull(),
      completedAt: time('completed_at'),
    }),
    streams: schema.table('workflow_streams', {
      name: text('name').notNull(),
      id: bigint('id', { mode: 'number' }).notNull(),
      runId: text('run_id').notNull(),
      nextIndex: integer('next_index').notNull(),
      closed: boolean('closed').notNull(),
      createdAt: time('created_at').notNull(),
      updatedAt: time('updated_at').notNull(),
    }),
    streamChunks: schema.table('workflow_stream_chunks', {
      streamId: bigint('stream_id', { mode: 'number' }).notNull(),
      index: integer('index').notNull(),
      requestId: bigint('request_id', { mode: 'number' }),
      data: bytea('data').notNull(),
    }),
    runsWithPayloads: schema.view('runs', { ...runColumns(), ...payloads() }).existing(),
    stepsWithPayloads: schema.view('steps', { ...stepColumns(), ...payloads() }).existing(),
    hooksWithPayloads: schema
      .view('hooks', { ...hookColumns(), metadata: bytea('metadata') })
      .existing(),
  };
}
