import { start } from 'workflow/api';
import { signUp } from '@/workflows/sign-up';

export async function POST(request: Request) {
  const { email } = await request.json();
  if (typeof email !== 'string' || !email.includes('@')) {
    return Response.json({ error: 'no such address' }, { status: 400 });
  }
  const { runId } = await start(signUp, [email]);
  return Response.json({ runId }, { status: 202 });
}
