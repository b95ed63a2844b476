/**
 * PostgreSQL for what is stored, Upstash QStash for what is to be done: for apps without any process of
 * their own. QStash posts each message to the app, which executes it and answers.
 */
import type { WorkflowRun } from '@workflow/world';
import type { PostgresWorld, PostgresWorldConfig, QueueDriver } from './index.js';

/** Every option falls back to its environment variable. */
export interface QStashOptions {
  /** Environment: `QSTASH_TOKEN`. Without one there is no queue: an error, never a substitute. */
  token?: string;
  /**
   * Where the app is reached from outside. Environment: `QSTASH_TARGET_URL`. Either its base URL, then
   * deliveries go to the SDK's routes (`/.well-known/workflow/v1/flow` and `…/step`); or an endpoint of
   * your own whose path ends with `/queue`, then they go to `<targetUrl>/<queue name>`.
   */
  targetUrl?: string;
  /**
   * By which deliveries are verified. Environment: `QSTASH_CURRENT_SIGNING_KEY`. Without it no delivery is
   * executed.
   */
  currentSigningKey?: string;
  /** The key that comes after it, for rotation. Environment: `QSTASH_NEXT_SIGNING_KEY`. */
  nextSigningKey?: string;
  /** QStash's own address. Environment: `QSTASH_URL`. Default: `https://qstash.upstash.io`. */
  baseUrl?: string;
  /**
   * How often QStash repeats a delivery that was not answered. Where a handler fails, the World publishes the
   * message anew, until the SDK's own limit of 48. Default: 3, which every plan allows.
   */
  retries?: number;
  /**
   * Milliseconds between them, an expression of QStash over `retried`. Default:
   * `min(900000, 2000 * pow(20, retried))`: 2 s, 40 s, 13 min. Longer in sum than QStash's
   * deduplication remembers, so that what it gave up can be sent again.
   */
  retryDelay?: string;
  /** The longest delay that the plan allows; a longer wait is chained. Default: 7 days. */
  maxDelaySeconds?: number;
}

export interface PostgresUpstashWorldConfig
  extends Omit<PostgresWorldConfig, 'connectionString' | 'queueFactory' | 'securityToken'> {
  /** Environment: `WORKFLOW_POSTGRES_URL`, `DATABASE_URL`. A pooled URL is fine: nothing is LISTENed to. */
  databaseUrl?: string;
  qstash?: QStashOptions;
  /** Stored on runs. Environment: `DEPLOYMENT_ID`. Default: `postgres-upstash`. */
  deploymentId?: string;
  /** Connections at most, per function instance. Default: 3. */
  maxPoolSize?: number;
  /** After how many seconds a connection that rests is closed. Default: 10. */
  idleTimeoutSeconds?: number;
}

export interface NewRun {
  runId: string;
  workflowName: string;
  deploymentId: string;
  /** As the SDK serialises it, or plain JSON. */
  input: unknown;
  executionContext?: Record<string, unknown>;
  /** Default: the World's own. Runs of version 1 cannot be started. */
  specVersion?: number;
  /** A new run is pending, from now on: the rest of what a run has is taken, and does not count. */
  status?: 'pending';
  createdAt?: Date;
  updatedAt?: Date;
}

export interface PostgresUpstashWorld extends PostgresWorld {
  runs: PostgresWorld['runs'] & {
    /** Appends the `run_created` event of a run and returns the run. Does not start it. */
    create(run: NewRun): Promise<WorkflowRun>;
  };
}

/** Creates a World. Does no I/O; settings are read and connections opened on first use. */
export function createPostgresUpstashWorld(
  options?: PostgresUpstashWorldConfig,
): PostgresUpstashWorld;

/** The same, for `WORKFLOW_TARGET_WORLD="@workflow/world-postgres/upstash"`. */
export const createWorld: typeof createPostgresUpstashWorld;

/**
 * QStash alone, for `createWorld({ queueFactory: () => createQStashQueue() })`. Throws where a setting is
 * missing. The World then takes deliveries that QStash signed, and no others.
 */
export function createQStashQueue(options?: QStashOptions): QueueDriver;
