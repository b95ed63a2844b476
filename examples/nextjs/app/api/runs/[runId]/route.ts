import { WorkflowRunNotFoundError } from 'workflow/errors';
import { getRunDetails } from '@/lib/runs';

type Context = { params: Promise<{ runId: string }> };

export async function GET(_request: Request, { params }: Context) {
  const { runId } = await params;
  try {
    return Response.json(await getRunDetails(runId));
  } catch (error) {
    if (!WorkflowRunNotFoundError.is(error)) throw error;
    return Response.json({ error: `no run ${runId}` }, { status: 404 });
  }
}
