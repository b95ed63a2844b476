/**
 * A PostgreSQL World for durable JavaScript workflows (npm `workflow` 4.8).
 *
 * Errors: every method rejects with the SDK's errors, recognised by `name` (`EntityConflictError`,
 * `RunExpiredError`, `HookNotFoundError`, …), each with a numeric `status`. A database that cannot be
 * reached, or refuses a statement for now, is a `WorkflowWorldError` with `status` 503 and `code` `TRANSPORT`,
 * `CONTENTION` or `REFUSED`: the call may be repeated; a wrong argument is one with 400; a wrong
 * setting is one with `code` `CONFIGURATION`; a database without our tables is one with `code`
 * `NOT_SET_UP`, whose message names the command to run; a queue driver that does not take a message is
 * one with `status` 503 and `code` `QUEUE`; a Drizzle table without Drizzle is one with `code`
 * `NOT_INSTALLED`.
 */
import type { World } from '@workflow/world';

/** Every option falls back to its environment variable, then to its default. */
export interface PostgresWorldConfig {
  /**
   * PostgreSQL URL. Environment: `WORKFLOW_POSTGRES_URL`, `DATABASE_URL`.
   * Default: `postgres://world:world@localhost:5432/world`.
   */
  connectionString?: string;
  /**
   * URL of a direct connection for LISTEN, where `connectionString` is a transaction pooler.
   * Environment: `WORKFLOW_POSTGRES_LISTEN_URL`.
   */
  listenConnectionString?: string;
  /**
   * Authenticates deliveries. Several tokens, separated by commas, are all accepted and the first is
   * sent, so that tokens can be rotated. Environment: `WORKFLOW_POSTGRES_SECURITY_TOKEN`. Default:
   * `secret`, which is refused, as is every token that documentation shows, unless `NODE_ENV` is `development` or
   * `test`. A token of fewer than 16 characters is warned of.
   */
  securityToken?: string;
  /** Makes the queue driver. Default: `() => createPgBossHttpProxyQueue()`. */
  queueFactory?: () => QueueDriver;
  /** Schema of the workflow tables. Environment: `WORKFLOW_POSTGRES_SCHEMA`. Default: `workflow_world`. */
  schema?: string;
  /** Schema of the pg-boss tables. Environment: `WORKFLOW_POSTGRES_QUEUE_SCHEMA`. Default: `workflow_pgboss`. */
  queueSchema?: string;
  /**
   * Connections at most, one more for LISTEN, and up to two that keep leases alive while deliveries run. What a burst
   * has opened beyond two is closed when it has rested for 5 seconds. Environment: `WORKFLOW_POSTGRES_MAX_POOL_SIZE`. Default: 10.
   */
  maxPoolSize?: number;
  /**
   * Whether statements are prepared once per connection. Off for poolers that do not know prepared
   * statements. Environment: `WORKFLOW_POSTGRES_STATEMENT_CACHE`. Default: true.
   */
  statementCache?: boolean;
  /** Prefix of the queue names. Environment: `WORKFLOW_POSTGRES_JOB_PREFIX`. Default: `workflow_`. */
  jobPrefix?: string;
  /**
   * Deliveries at the same time, for workflows and for steps each, so that long steps never hold up
   * replays. Environment: `WORKFLOW_POSTGRES_WORKER_CONCURRENCY`. Default: 10.
   */
  queueConcurrency?: number;
  /**
   * How many deliveries of a kind there may be while all of those only wait, as steps do that await other runs:
   * messages are due, no delivery has ended for 4 seconds, and the process is idle. The same number as
   * `queueConcurrency` forbids it. Environment: `WORKFLOW_POSTGRES_WORKER_CONCURRENCY_LIMIT`. Default: ten
   * times `queueConcurrency`.
   */
  queueConcurrencyLimit?: number;
  /**
   * How often in a row the process may die that delivers a message, before the message is given up.
   * Environment: `WORKFLOW_POSTGRES_MAX_LOST_LEASES`. Default: 10.
   */
  maxLostLeases?: number;
  /** How long the SDK collects the chunks of a stream before it writes them, in milliseconds. Default: 0. */
  streamFlushIntervalMs?: number;
  /**
   * Part of the SDK's queue names, and of ours: a namespace has queues of its own, which the setup makes
   * where it is given the same one. Environment: `WORKFLOW_QUEUE_NAMESPACE`. Default: none.
   */
  namespace?: string;
  /**
   * Whether SIGTERM and SIGINT close a started World before they end the process: for a worker process
   * that has no signal handling of its own. A second signal ends it at once. Default: false, for an app
   * knows best how it wants to end.
   */
  closeOnSignals?: boolean;
  /** Receives what is worth telling. Default: `console`, without the debug lines. */
  log?: (line: LogLine) => void;
}

/** Nothing is logged per job but at level `debug`; passwords, tokens and payloads never are. */
export interface LogLine {
  level: 'debug' | 'info' | 'warn' | 'error';
  message: string;
  [field: string]: unknown;
}

/** The World of the SDK, with both ends of its life. */
export interface PostgresWorld extends World {
  /**
   * Checks the configuration and the database, starts the queue driver, and makes this World the one
   * that the SDK uses where `WORKFLOW_TARGET_WORLD` names this package or is not set: `start(workflow)`
   * anywhere in the process then pushes into this World's driver. Keeps the process alive until
   * `close()`. Any further call returns the first one's promise.
   */
  start(): Promise<void>;
  /**
   * Stops claiming, lets running deliveries finish for up to 10 seconds, hands the rest back to the
   * queue and closes all connections. Idempotent; the World cannot be used afterwards.
   */
  close(): Promise<void>;
  /** For probes. Never rejects, and answers within a few seconds also while PostgreSQL is away. */
  health(): Promise<WorldHealth>;
}

export interface WorldHealth {
  /**
   * PostgreSQL answers and takes writes, leases are renewed in time, and the queue driver is healthy. How much work
   * waits plays no part in it.
   */
  healthy: boolean;
  /** Why leases of running steps could not be renewed, if they could not. */
  error?: string;
  /** Between `start()` and `close()`. */
  started: boolean;
  /** `error`: why nothing can be written. A server that is read-only is reachable all the same. */
  database: { reachable: boolean; roundTripMs?: number; error?: string };
  /**
   * How this process hears of new work and of stream chunks: by LISTEN, or by polling while that does
   * not work (a transaction pooler, a lost connection that is being reopened); idle: nobody asked yet.
   */
  notifications: 'listening' | 'polling' | 'idle';
  /** What the queue driver says of itself, if it says anything. */
  queue?: QueueHealth;
}

export interface QueueHealth {
  healthy?: boolean;
  error?: string;
  [detail: string]: unknown;
}

/** The `queue` of a World with one of the pg-boss drivers. */
export interface PgBossQueueHealth extends QueueHealth {
  worker: 'running' | 'stopped';
  /** Whether the target takes deliveries. Absent where no worker was started. */
  targetReachable?: boolean;
  /** Why the target takes no deliveries, or did not take one within the last minute, and what to look at. */
  targetError?: string;
  /** How long the message that has waited longest has been due, in milliseconds; 0: none waits. */
  oldestDueMs: number;
  /** What the worker of this process does and did since its start. */
  deliveries?: {
    targetReady: boolean;
    listening: boolean;
    runningFlows: number;
    runningSteps: number;
    /** At the same time, of each kind: `queueConcurrency`. */
    capacity: number;
    /** The same now: more while all of those only wait; see `queueConcurrencyLimit`. */
    flowSlots: number;
    stepSlots: number;
    deliveries: number;
    completed: number;
    failed: number;
    rescheduled: number;
    unreachable: number;
    leasesLost: number;
    leasesSwept: number;
    runsRescued: number;
    /** Messages that are not delivered any more, after too many failures or deaths of their process. */
    givenUp: number;
    /** Ended deliveries that PostgreSQL refuses to settle. Any: unhealthy. */
    refused: number;
    claimedAtOnce: number;
    /** Since jobs were last settled and claimed, or there was nothing to do. More than 30 s: unhealthy. */
    lastTurnMs: number;
    /** Since the leases of running deliveries were renewed. More than 4 s: unhealthy. `null`: nothing runs. */
    lastHeartbeatMs: number | null;
    /** Since expired leases were last looked for. More than 30 s: unhealthy. */
    lastSweepMs: number;
    /** The longest time of the last 30 seconds for which the event loop did not turn. From 5 s on: unhealthy. */
    eventLoopLagMs: number;
  };
}

/** Creates a World. Does no I/O; settings are read and connections opened on first use. */
export function createWorld(options?: PostgresWorldConfig): PostgresWorld;

/**
 * One message for a workflow or a step. `JSON.stringify` turns `data` into a base64 string; the
 * proxies and drivers of this package take it in both forms.
 */
export interface MessageData {
  /** The queue's name without its prefix: the name of the workflow or step. */
  id: string;
  /**
   * A second message of the same key must be dropped while the first is waiting or being executed; after
   * that the key is as good as new. Steps have one. Messages to a workflow have none, unless your own
   * `world.queue()` gives them one: the built-in queue merges those that wait by their run, whatever their
   * key, and looks at the key where a message is about no run.
   */
  idempotencyKey?: string;
  /** `__wkf_workflow_<id>` or `__wkf_step_<id>`. */
  queueName: string;
  /** The JSON body of the delivery. */
  data: Uint8Array | string;
  /** `msg_` and a ULID. */
  messageId: string;
  /** From 1; counts failed deliveries. */
  attempt: number;
  /** Sent with the delivery, such as `traceparent`. */
  headers?: Record<string, string>;
  /** Deliver no earlier than this. */
  delaySeconds?: number;
}

/**
 * A queue.
 *
 * It delivers each message to a {@link WkfProxy}, at least once, until that resolves. A rejection means:
 * deliver it again later, each time after a longer pause and with `attempt` one higher. The SDK gives
 * up a step after 48 failed attempts, if they are counted.
 *
 * Waits are not its business. Where a workflow sleeps or a step is to be retried later, the World
 * pushes a fresh message with `delaySeconds` into its own driver. A driver that ignores `delaySeconds`,
 * or caps it, breaks nothing: what it delivers too early is held for up to a second and pushed again.
 *
 * Messages of one `idempotencyKey`, which are those of one step, should not live side by side. A driver that
 * lets them costs messages, not executions: a step that runs is leased, and what delivers it meanwhile is
 * told to come back.
 */
export interface QueueDriver {
  /**
   * Resolves when the message is stored; a string is taken as the id under which it is known. A
   * rejection reaches the sender as a `WorkflowWorldError` with `status` 503, `code` `QUEUE` and the `cause`.
   */
  pushStep(message: MessageData): Promise<unknown>;
  pushFlow(message: MessageData): Promise<unknown>;
  /** Starts consuming. Called once, by `world.start()`; a World that only enqueues is not started. */
  start(): Promise<void>;
  /** Stops consuming and lets running deliveries end. Called once, by `world.close()`. */
  close?(): Promise<void>;
  /** Becomes the `queue` of `world.health()`; `healthy: false` makes the World unhealthy. */
  health?(): Promise<QueueHealth>;
}

/**
 * Executes messages, for a queue of your own.
 *
 * Resolves with the answer when the message is dealt with, after however long its step takes. Rejects
 * otherwise, so that a consumer that merely awaits it does not acknowledge what failed: with a
 * `WorkflowWorldError` of `status` 503, which holds the `response`, if there was one. Its `code` is
 * `NOT_TAKEN` where the answer is not that of a World that knows the token (no header `x-workflow-world`, or
 * its 401): no attempt was made, and the next one has the same number. Otherwise it is `DELIVERY_FAILED`. A
 * message that is none (`status` 400) or a wrong setting rejects as such.
 */
export interface WkfProxy {
  proxyWorkflow(message: MessageData): Promise<Response>;
  proxyStep(message: MessageData): Promise<Response>;
}

/**
 * Whatever is not given is taken from the World that the driver is made for, then from the environment;
 * and what the World was not given it takes from here.
 */
export interface PgBossQueueOptions {
  connectionString?: string;
  securityToken?: string;
  /** Schema of the workflow tables. */
  schema?: string;
  /** Schema of the pg-boss tables. */
  queueSchema?: string;
  jobPrefix?: string;
  queueConcurrency?: number;
  queueConcurrencyLimit?: number;
  /** Keeps finished jobs, for a dashboard. Default: false, they are deleted. */
  keepCompleted?: boolean;
  maxLostLeases?: number;
  namespace?: string;
  log?: (line: LogLine) => void;
}

export interface PgBossHttpProxyQueueOptions extends PgBossQueueOptions {
  /** Port of the app on this machine, if no `baseUrl` is given. Environment: `WORKFLOW_POSTGRES_APP_PORT`, `PORT`. Default: 3000. */
  port?: number;
  /** Base URL of the app. Environment: `WORKFLOW_POSTGRES_APP_URL`. */
  baseUrl?: string;
  /**
   * URL of an HTTP proxy between the workers and the app. Environment: `WORKFLOW_POSTGRES_HTTP_PROXY`. Default: none:
   * `HTTP_PROXY` and `HTTPS_PROXY` do not count, for a delivery carries the token.
   */
  httpProxy?: string;
}

/** The default driver: jobs in pg-boss's tables, delivered to the app over HTTP. Workers start with `start()`. */
export function createPgBossHttpProxyQueue(options?: PgBossHttpProxyQueueOptions): QueueDriver;

/**
 * What the SDK's build generates as a route: its handler, or the module that exports it as `POST`
 * (workflow 4.8) or `__wkf_entrypoint`.
 */
export type Entrypoint =
  | ((request: Request) => Promise<Response>)
  | { POST: (request: Request) => Promise<Response> }
  | { __wkf_entrypoint: (request: Request) => Promise<Response> };

export interface Entrypoints {
  /** `.well-known/workflow/v1/flow` */
  workflowEntrypoint: Entrypoint;
  /** `.well-known/workflow/v1/step`. Default: `workflowEntrypoint`, for SDKs with a single route. */
  stepEntrypoint?: Entrypoint;
}

export interface PgBossFunctionProxyQueueOptions extends PgBossQueueOptions, Entrypoints {}

/**
 * The same jobs, executed by functions of this process: no socket between the worker and your code.
 * Not for development, where it runs the code that was loaded first, and steps run outside of the
 * request scope of a framework (`cookies()`, `revalidatePath()` of Next).
 */
export function createPgBossFunctionProxyQueue(
  options: PgBossFunctionProxyQueueOptions,
): QueueDriver;

export interface HttpProxyOptions {
  /** Base URL of the app. Environment: `WORKFLOW_POSTGRES_APP_URL`. */
  baseUrl?: string;
  /** URL of an HTTP proxy between this process and the app. Environment: `WORKFLOW_POSTGRES_HTTP_PROXY`. Default: none. */
  httpProxy?: string;
  /** Port of the app on this machine, if no `baseUrl` is given. */
  port?: number;
  /** The token that the app was given. Environment: `WORKFLOW_POSTGRES_SECURITY_TOKEN`. */
  securityToken?: string;
}

/** Executes messages by HTTP: for a queue of your own. No deadline: a step may run for hours. */
export function createHttpProxy(options?: HttpProxyOptions): WkfProxy;

export interface FunctionProxyOptions extends Entrypoints {
  /** The token that the app was given. Environment: `WORKFLOW_POSTGRES_SECURITY_TOKEN`. */
  securityToken?: string;
}

/** Executes messages by functions of this process: for a queue of your own. */
export function createFunctionProxy(options: FunctionProxyOptions): WkfProxy;

/**
 * The tables as Drizzle objects, for queries of your own: see `@workflow/world-postgres/schema`, which has
 * more. `drizzle-orm` is loaded when one of these is first touched.
 */
export { events, hooks, runs, steps, streams } from './schema.js';

export type {
  NewRun,
  PostgresUpstashWorld,
  PostgresUpstashWorldConfig,
  QStashOptions,
} from './upstash.js';
export { createPostgresUpstashWorld, createQStashQueue } from './upstash.js';
