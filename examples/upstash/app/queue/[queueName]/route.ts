// Where QStash posts to: QSTASH_TARGET_URL is this app's URL and /queue. The SDK's build makes the
// handlers; they let in only what QStash has signed.
import { POST as flow } from '../../.well-known/workflow/v1/flow/route';
import { POST as step } from '../../.well-known/workflow/v1/step/route';

type Context = { params: Promise<{ queueName: string }> };

export async function POST(request: Request, { params }: Context) {
  const { queueName } = await params;
  return queueName.startsWith('__wkf_step_') ? step(request) : flow(request);
}
