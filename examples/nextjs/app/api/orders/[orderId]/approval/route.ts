import { resumeHook } from 'workflow/api';
import { HookNotFoundError } from 'workflow/errors';
import { type Approval, approvalToken } from '@/workflows/order';

type Context = { params: Promise<{ orderId: string }> };

export async function POST(request: Request, { params }: Context) {
  const { orderId } = await params;
  const { approved = true, by = 'somebody' } = await request.json();
  try {
    await resumeHook<Approval>(approvalToken(orderId), {
      approved: Boolean(approved),
      by: String(by),
    });
    return new Response(null, { status: 204 });
  } catch (error) {
    if (!HookNotFoundError.is(error)) throw error;
    return Response.json({ error: 'this order waits for no approval' }, { status: 404 });
  }
}
