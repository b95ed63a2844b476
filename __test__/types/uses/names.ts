import type {
  Entrypoint,
  FunctionProxyOptions,
  HttpProxyOptions,
  LogLine,
  MessageData,
  PgBossFunctionProxyQueueOptions,
  PgBossHttpProxyQueueOptions,
  PostgresWorld,
  PostgresWorldConfig,
  QueueDriver,
  WkfProxy,
  WorldHealth,
} from '@workflow/world-postgres';
import {
  createFunctionProxy,
  createHttpProxy,
  createPgBossFunctionProxyQueue,
  createPgBossHttpProxyQueue,
  createWorld,
} from '@workflow/world-postgres';
import type * as drivers from '@workflow/world-postgres/queue-drivers/types';
import { type DriverTarget, testQueueDriver } from '@workflow/world-postgres/testing';

type Is<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : never;

export const sameTypesInBothPlaces: [
  Is<drivers.MessageData, MessageData>,
  Is<drivers.QueueDriver, QueueDriver>,
  Is<drivers.WkfProxy, WkfProxy>,
] = [true, true, true];

export const makers: [
  (options?: PostgresWorldConfig) => PostgresWorld,
  (options?: PgBossHttpProxyQueueOptions) => QueueDriver,
  (options: PgBossFunctionProxyQueueOptions) => QueueDriver,
  (options: HttpProxyOptions) => WkfProxy,
  (options: FunctionProxyOptions) => WkfProxy,
] = [
  createWorld,
  createPgBossHttpProxyQueue,
  createPgBossFunctionProxyQueue,
  createHttpProxy,
  createFunctionProxy,
];

const post: Entrypoint = async (request: Request) => Response.json(await request.json());
const module: Entrypoint = { POST: async (_: Request) => new Response() };

testQueueDriver('mine', (_: DriverTarget): QueueDriver => createPgBossHttpProxyQueue());

/** The World serves as the SDK's, and tells how it is. */
export async function use(world: PostgresWorld): Promise<WorldHealth> {
  const asSdk: import('@workflow/world').World = world;
  await asSdk.runs.list({});
  createFunctionProxy({ stepEntrypoint: post, workflowEntrypoint: module, securityToken: 't' });
  createWorld({ log: ({ level, message, ...fields }: LogLine) => console[level](message, fields) });
  // @ts-expect-error: a name that does not exist
  createWorld({ conectionString: 'postgres://' });
  return world.health();
}
