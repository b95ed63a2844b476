/**
 * The tables and views of this package as Drizzle objects, to read what it stores: each table column
 * by column, each view with the payloads of its entity. Needs `drizzle-orm`.
 *
 * They are for reading. The event log and what is derived from it are written in one transaction by
 * the World alone, and `workflow-postgres-setup` makes the tables: keep these objects out of the
 * schema that drizzle-kit manages.
 */
// Without drizzle-orm, which is optional, the objects are `any`: not an error in every project.
// @ts-ignore
import type { PgColumn, PgTableWithColumns, PgViewWithSelection } from 'drizzle-orm/pg-core';

type Status = 'pending' | 'running' | 'completed' | 'failed' | 'cancelled';

/** JSON, in a column of type text: only so can PostgreSQL keep a NUL in it. Read it by `JSON.parse`. */
type JsonText = string;

interface RunRow {
  runId: string;
  workflowName: string;
  deploymentId: string;
  status: Status;
  specVersion: number | null;
  executionContext: JsonText | null;
  /** Why the run failed. */
  error: JsonText | null;
  /** The event that carries the output. The input is on the first event. */
  outputSlot: number | null;
  jobPrefix: string;
  rescuedSlot: number | null;
  /** Until then external events of the run wait for a replay. */
  heldUntil: Date | null;
  createdAt: Date;
  updatedAt: Date;
  startedAt: Date | null;
  completedAt: Date | null;
  expiredAt: Date | null;
}

interface EventRow {
  runId: string;
  /** Counts the events of a run, from 1. */
  slot: number;
  /** Such as `step_completed`. */
  type: string;
  /** The id of the step, hook or wait. */
  correlationId: string | null;
  createdAt: Date;
  occurredAt: Date | null;
  /** By it a call that is repeated, because its answer was lost with the connection, is recognised. */
  requestId: number | null;
  specVersion: number | null;
  external: boolean;
  /** What the event says, without its payload. */
  data: JsonText | null;
  /** In the SDK's serialisation. */
  payload: Uint8Array | null;
}

interface StepRow {
  runId: string;
  stepId: string;
  stepName: string;
  status: Status;
  attempt: number;
  /** The events that carry input and output. */
  inputSlot: number;
  outputSlot: number | null;
  error: JsonText | null;
  specVersion: number | null;
  createdAt: Date;
  updatedAt: Date;
  startedAt: Date | null;
  completedAt: Date | null;
  retryAfter: Date | null;
  /** Of the process that runs the step's code. */
  leaseUntil: Date | null;
  leaseRequest: number | null;
  leaseShared: boolean | null;
  uncounted: number;
}

interface HookRow {
  runId: string;
  hookId: string;
  /** `null` once the hook is disposed. */
  token: string | null;
  /** The event that carries the metadata. */
  metadataSlot: number;
  isWebhook: boolean | null;
  specVersion: number | null;
  createdAt: Date;
  disposedAt: Date | null;
}

interface WaitRow {
  runId: string;
  correlationId: string;
  status: 'waiting' | 'completed';
  resumeAt: Date | null;
  specVersion: number | null;
  createdAt: Date;
  updatedAt: Date;
  completedAt: Date | null;
}

interface StreamRow {
  name: string;
  id: number;
  runId: string;
  /** The number of chunks. */
  nextIndex: number;
  closed: boolean;
  createdAt: Date;
  updatedAt: Date;
}

interface StreamChunkRow {
  /** The `id` of the stream. */
  streamId: number;
  index: number;
  /** Of the first chunk of each write, as in `events`. */
  requestId: number | null;
  data: Uint8Array;
}

interface Payloads {
  input: Uint8Array | null;
  output: Uint8Array | null;
}

type DataType<Data> = Data extends string
  ? 'string'
  : Data extends number
    ? 'number'
    : Data extends boolean
      ? 'boolean'
      : Data extends Date
        ? 'date'
        : 'custom';

type Columns<Table extends string, Row> = {
  [Name in keyof Row]: PgColumn<{
    name: string;
    tableName: Table;
    dataType: DataType<NonNullable<Row[Name]>>;
    columnType: string;
    data: NonNullable<Row[Name]>;
    driverParam: unknown;
    notNull: null extends Row[Name] ? false : true;
    hasDefault: false;
    isPrimaryKey: false;
    isAutoincrement: false;
    hasRuntimeDefault: false;
    enumValues: NonNullable<Row[Name]> extends infer Data extends string
      ? [Data, ...Data[]]
      : undefined;
    baseColumn: never;
    identity: undefined;
    generated: undefined;
  }>;
};

type Table<Name extends string, Row> = PgTableWithColumns<{
  name: Name;
  schema: string;
  columns: Columns<Name, Row>;
  dialect: 'pg';
}>;

type View<Name extends string, Row> = PgViewWithSelection<Name, true, Columns<Name, Row>>;

export interface WorkflowSchema {
  runs: Table<'workflow_runs', RunRow>;
  /** The log: every other table of a run is derived from it. */
  events: Table<'workflow_events', EventRow>;
  steps: Table<'workflow_steps', StepRow>;
  /** With the disposed ones of runs that have not ended. */
  hooks: Table<'workflow_hooks', HookRow>;
  waits: Table<'workflow_waits', WaitRow>;
  /**
   * One row per stream, with its name, its run and whether it is closed: what a list of streams is
   * asked for. Their data is in `streamChunks`, whose rows name their stream by number only.
   */
  streams: Table<'workflow_streams', StreamRow>;
  streamChunks: Table<'workflow_stream_chunks', StreamChunkRow>;
  runsWithPayloads: View<'runs', RunRow & Payloads>;
  stepsWithPayloads: View<'steps', StepRow & Payloads>;
  /** Without the disposed ones. */
  hooksWithPayloads: View<'hooks', HookRow & { metadata: Uint8Array | null }>;
}

/**
 * All of them in another PostgreSQL schema. Default: the one that the others here are in, which is
 * `WORKFLOW_POSTGRES_SCHEMA`, or `workflow_world`.
 */
export function workflowSchema(name?: string): WorkflowSchema;

export const runs: WorkflowSchema['runs'];
export const events: WorkflowSchema['events'];
export const steps: WorkflowSchema['steps'];
export const hooks: WorkflowSchema['hooks'];
export const waits: WorkflowSchema['waits'];
export const streams: WorkflowSchema['streams'];
export const streamChunks: WorkflowSchema['streamChunks'];
export const runsWithPayloads: WorkflowSchema['runsWithPayloads'];
export const stepsWithPayloads: WorkflowSchema['stepsWithPayloads'];
export const hooksWithPayloads: WorkflowSchema['hooksWithPayloads'];
