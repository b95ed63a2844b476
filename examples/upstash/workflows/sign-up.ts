import { createHook, getStepMetadata, sleep } from 'workflow';
import { sendMail } from '@/lib/mail';

export interface Confirmation {
  at: Date;
}

/** From an address to a member. Between its steps, nothing of it is anywhere but in the database. */
export async function signUp(email: string) {
  'use workflow';

  using confirmation = createHook<Confirmation>();
  await mail(email, `Please confirm: ${confirmation.token}`);

  const confirmed = await Promise.race([confirmation, sleep('3 days')]);
  if (!confirmed) return { email, member: false };

  await mail(email, 'Welcome!');
  // Days, in earnest: QStash comes back when they are over.
  await sleep('3 seconds');
  await mail(email, 'How do you like it?');
  return { email, member: true, since: confirmed.at };
}

async function mail(to: string, text: string) {
  'use step';
  // QStash may deliver twice: with the step's id as idempotency key, a mail service sends once.
  await sendMail({ to, text, idempotencyKey: getStepMetadata().stepId });
}
