/**
 * The rules of a {@link QueueDriver}, as tests for `node --test`:
 *
 * ```js
 * import { testQueueDriver } from '@workflow/world-postgres/testing';
 *
 * testQueueDriver('my queue', ({ queue, proxy }) => createMyQueue({ name: queue, proxy }));
 * ```
 *
 * A worker that is killed is not among them: only you know how long your queue takes to notice.
 * Messages are left behind in the queues of the tests, one of them with a delay of 60 days: give them
 * a broker that can be thrown away.
 */
import type { QueueDriver, WkfProxy } from './index.js';

/** What one instance of a driver is made for. Every instance has an app of its own. */
export interface DriverTarget {
  /**
   * A name of one test alone. Instances that are given the same name are processes at the same queue:
   * what one of them pushes, any that was started delivers.
   */
  queue: string;
  /** The app's URL, for drivers that deliver by HTTP. */
  baseUrl: string;
  /** The token that the app accepts. */
  securityToken: string;
  /** The app's routes, for drivers that call them. */
  stepEntrypoint: (request: Request) => Promise<Response>;
  workflowEntrypoint: (request: Request) => Promise<Response>;
  /** Delivers to these routes: for drivers that are given their proxy. */
  proxy: WkfProxy;
}

export interface QueueDriverTestOptions {
  /**
   * The queue may deliver a message more often than it fails, and does not know idempotency keys.
   * That is allowed, and costs work. Default: false.
   */
  duplicates?: boolean;
  /** Whether the queue keeps a message back for `delaySeconds`. Default: true. */
  delays?: boolean;
  /** Bytes of the largest body, for queues with a limit of their own. Default: 1 MiB. */
  largestBody?: number;
  /** How long the delivery lasts that must not be taken for lost, in milliseconds. Default: 5000. */
  longDeliveryMs?: number;
  /** What takes longer than this has failed, in milliseconds. Default: 60 000. */
  limitMs?: number;
  /** A driver whose broker cannot be reached: its pushes must reject. Without it, that is not tested. */
  createUnreachableDriver?: (target: DriverTarget) => QueueDriver | Promise<QueueDriver>;
  /**
   * A database that `workflow-postgres-setup` has prepared, for the tests of a World with this driver;
   * they are skipped without one. Environment: `WORKFLOW_POSTGRES_URL`.
   */
  connectionString?: string;
  /** Schema of the workflow tables. Environment: `WORKFLOW_POSTGRES_SCHEMA`. */
  schema?: string;
}

/** Registers the tests. `createDriver` is called once per instance and must not deliver by itself. */
export function testQueueDriver(
  name: string,
  createDriver: (target: DriverTarget) => QueueDriver | Promise<QueueDriver>,
  options?: QueueDriverTestOptions,
): void;
