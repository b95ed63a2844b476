import { getRun } from 'workflow/api';

type Context = { params: Promise<{ runId: string }> };

export async function GET(_request: Request, { params }: Context) {
  const run = getRun((await params).runId);
  const status = await run.status;
  return Response.json({
    status,
    ...(status === 'completed' && { result: await run.returnValue }),
  });
}
