import { createHook, getStepMetadata, RetryableError, sleep } from 'workflow';

export interface Order {
  id: string;
  cents: number;
}

/** Each step runs once and is remembered: whatever is restarted in between, nobody is charged twice. */
export async function processOrder({ id, cents }: Order) {
  'use workflow';

  const paymentId = await charge(id, cents);
  // A durable timer: no process has to stay alive for it.
  await sleep('1s');

  using approval = createHook<{ by: string }>({ token: `approve:${id}` });
  const { by } = await approval;

  const parcel = await ship(id);
  return { id, paymentId, approvedBy: by, parcel };
}

async function charge(id: string, cents: number) {
  'use step';
  // The gateway is down at first, as gateways are.
  if (getStepMetadata().attempt === 1) {
    throw new RetryableError('the gateway does not answer', { retryAfter: '1s' });
  }
  return `payment of ${cents} for ${id}`;
}

async function ship(id: string) {
  'use step';
  return `parcel with ${id}`;
}
