import { runs as rootRuns } from '@workflow/world-postgres';
import * as schema from '@workflow/world-postgres/schema';
import { and, desc, eq, getTableColumns, type InferSelectModel, isNull } from 'drizzle-orm';
import { drizzle } from 'drizzle-orm/node-postgres';

type Is<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : never;
type Status = 'pending' | 'running' | 'completed' | 'failed' | 'cancelled';

const { hooksWithPayloads, runs, runsWithPayloads, steps, streamChunks, streams } = schema;
const db = drizzle('postgres://', { schema });

const failed = await db
  .select({ id: runs.runId, status: runs.status, ended: runs.completedAt })
  .from(runs)
  .where(and(eq(runs.status, 'failed'), isNull(runs.expiredAt)))
  .orderBy(desc(runs.createdAt));
export const rows: Is<typeof failed, { id: string; status: Status; ended: Date | null }[]> = true;

const joined = await db
  .select({ run: runs.runId, step: steps.stepName })
  .from(runs)
  .leftJoin(steps, eq(steps.runId, runs.runId));
export const nullable: Is<typeof joined, { run: string; step: string | null }[]> = true;

const [payload] = await db.select().from(runsWithPayloads);
export const view: [
  Is<typeof payload.input, Uint8Array | null>,
  Is<typeof payload.specVersion, number | null>,
] = [true, true];
const [hook] = await db.select({ metadata: hooksWithPayloads.metadata }).from(hooksWithPayloads);
export const metadata: Is<typeof hook.metadata, Uint8Array | null> = true;

const chunks = await db
  .select({ name: streams.name, data: streamChunks.data })
  .from(streamChunks)
  .innerJoin(streams, eq(streams.id, streamChunks.streamId));
export const bytes: Is<typeof chunks, { name: string; data: Uint8Array }[]> = true;

export const same: [
  Is<typeof rootRuns, typeof runs>,
  Is<ReturnType<typeof schema.workflowSchema>['runs'], typeof runs>,
  Is<InferSelectModel<typeof rootRuns>['createdAt'], Date>,
] = [true, true, true];

const found = await db.query.runs.findFirst({ columns: { jobPrefix: true } });
export const relational: Is<typeof found, { jobPrefix: string } | undefined> = true;
export const columns = Object.keys(getTableColumns(rootRuns));

// @ts-expect-error: not a status
eq(runs.status, 'lost');
// @ts-expect-error: not a column
export const none = runs.nothing;
