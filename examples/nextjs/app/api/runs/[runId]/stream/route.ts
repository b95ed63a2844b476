import { getRun } from 'workflow/api';

type Context = { params: Promise<{ runId: string }> };

/** What the run has reported so far, and then each line as it is written. */
export async function GET(_request: Request, { params }: Context) {
  const { runId } = await params;
  const lines = getRun(runId).getReadable<string>();
  return new Response(lines.pipeThrough(new TextEncoderStream()), {
    headers: { 'content-type': 'text/plain; charset=utf-8' },
  });
}
