import type { PostgresWorld } from '@workflow/world-postgres';
import { getWorld } from 'workflow/runtime';

export const dynamic = 'force-dynamic';

/** For load balancers: 200 or 503. The details are nobody else's business. */
export async function GET() {
  // The World that instrumentation.ts has started.
  const { healthy, started } = await (getWorld() as PostgresWorld).health();
  return Response.json({ healthy, started }, { status: healthy ? 200 : 503 });
}
