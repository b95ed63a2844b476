import { resumeHook } from 'workflow/api';
import { HookNotFoundError } from 'workflow/errors';
import type { Confirmation } from '@/workflows/sign-up';

type Context = { params: Promise<{ token: string }> };

export async function POST(_request: Request, { params }: Context) {
  const { token } = await params;
  try {
    await resumeHook<Confirmation>(token, { at: new Date() });
    return new Response(null, { status: 204 });
  } catch (error) {
    if (!HookNotFoundError.is(error)) throw error;
    return Response.json({ error: 'nobody waits for that' }, { status: 404 });
  }
}
