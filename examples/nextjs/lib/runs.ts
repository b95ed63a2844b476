import { hydrateResourceIO, observabilityRevivers, parseStepName } from 'workflow/observability';
import { getWorld } from 'workflow/runtime';
import type { Order, Receipt } from '@/workflows/order';

export interface RunSummary {
  runId: string;
  status: 'pending' | 'running' | 'completed' | 'failed' | 'cancelled';
  createdAt: string;
  order: Order;
}

export interface RunEvent {
  id: string;
  type: string;
  /** Which step, timer or hook the event is about. */
  subject?: string;
  name?: string;
  detail?: string;
  at: string;
}

export interface RunDetails extends RunSummary {
  result?: Receipt;
  error?: string;
  events: RunEvent[];
}

export async function listRuns(): Promise<RunSummary[]> {
  const { data } = await getWorld().runs.list({ pagination: { limit: 20 } });
  return data.map(summary);
}

export async function getRunDetails(runId: string): Promise<RunDetails> {
  const world = getWorld();
  // The run first: its last event is in the log once it says that it has ended.
  const run = await world.runs.get(runId);
  const { data } = await world.events.list({
    runId,
    pagination: { limit: 1000, sortOrder: 'asc' },
  });
  return {
    ...summary(run),
    result: hydrateResourceIO(run, observabilityRevivers).output as Receipt | undefined,
    error: run.error?.message,
    events: data.map(toRunEvent),
  };
}

type World = ReturnType<typeof getWorld>;
type Run = Awaited<ReturnType<World['runs']['get']>>;
type WorldEvent = Awaited<ReturnType<World['events']['get']>>;

function summary(run: Run): RunSummary {
  const [order] = hydrateResourceIO(run, observabilityRevivers).input as unknown as [Order];
  return { runId: run.runId, status: run.status, createdAt: run.createdAt.toISOString(), order };
}

function toRunEvent(event: WorldEvent): RunEvent {
  const data = (('eventData' in event && event.eventData) || {}) as {
    stepName?: string;
    token?: string;
    error?: unknown;
  };
  return {
    id: event.eventId,
    type: event.eventType,
    subject: event.correlationId,
    name: data.stepName ? parseStepName(data.stepName)?.shortName : data.token,
    detail: typeof data.error === 'string' ? data.error : undefined,
    at: event.createdAt.toISOString(),
  };
}
