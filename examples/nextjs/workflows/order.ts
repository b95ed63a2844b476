import { createHook, getStepMetadata, getWritable, RetryableError, sleep } from 'workflow';
import { type ProductId, products } from '@/lib/products';
import { courier, gateway, warehouse } from '@/lib/shop';

export interface Order {
  id: string;
  product: ProductId;
  quantity: number;
}

export interface Approval {
  approved: boolean;
  by: string;
}

export type Receipt =
  | {
      orderId: string;
      status: 'shipped';
      cents: number;
      trackingNumber: string;
      approvedBy: string;
    }
  | { orderId: string; status: 'declined'; declinedBy: string };

export const approvalToken = (orderId: string) => `approve:${orderId}`;

/**
 * From order to parcel. Each step runs once and is remembered: whatever is restarted in between,
 * the card is not charged twice and the approval is not asked for again.
 */
export async function processOrder(order: Order): Promise<Receipt> {
  'use workflow';

  const [shelf, cents] = await Promise.all([reserveStock(order), quotePrice(order)]);
  const paymentId = await chargeCard(cents);

  // A durable timer: no process has to stay alive for it.
  await sleep('2s');

  using approval = createHook<Approval>({ token: approvalToken(order.id) });
  await askForApproval(order);
  const { approved, by } = await approval;

  if (!approved) {
    await Promise.all([refundCard(paymentId), releaseStock(shelf)]);
    await closeProgress(`Order declined by ${by}`);
    return { orderId: order.id, status: 'declined', declinedBy: by };
  }

  const trackingNumber = await shipOrder(order);
  await closeProgress(`Done: on its way as ${trackingNumber}`);
  return { orderId: order.id, status: 'shipped', cents, trackingNumber, approvedBy: by };
}

async function reserveStock({ product, quantity }: Order) {
  'use step';
  const { shelf } = await warehouse.reserve(product, quantity);
  await report(`Reserved ${quantity} × ${products[product].name} on shelf ${shelf}`);
  return shelf;
}

async function quotePrice({ product, quantity }: Order) {
  'use step';
  const cents = products[product].cents * quantity;
  await report(`Total: ${euros(cents)}`);
  return cents;
}

async function chargeCard(cents: number) {
  'use step';
  const { stepId, attempt } = getStepMetadata();
  await report(`Charging the card, attempt ${attempt} …`);
  try {
    // The step's id is the same on each attempt: the gateway charges once.
    const payment = await gateway.charge(cents, { key: stepId, available: attempt > 1 });
    await report(`Charged ${euros(cents)} (${payment.paymentId})`);
    return payment.paymentId;
  } catch (error) {
    throw new RetryableError((error as Error).message, { retryAfter: '1s' });
  }
}

async function askForApproval(order: Order) {
  'use step';
  await report(`Waiting for somebody to approve ${order.id}`);
}

async function shipOrder(order: Order) {
  'use step';
  const { trackingNumber } = await courier.book(order.id);
  await report(`Courier booked: ${trackingNumber}`);
  return trackingNumber;
}

async function refundCard(paymentId: string) {
  'use step';
  await gateway.refund(paymentId);
  await report(`Refunded ${paymentId}`);
}

async function releaseStock(shelf: string) {
  'use step';
  await warehouse.release(shelf);
  await report(`Released shelf ${shelf}`);
}

async function closeProgress(line: string) {
  'use step';
  const writer = getWritable<string>().getWriter();
  await writer.write(`${line}\n`);
  await writer.close();
}

/** Adds a line to the run's stream, for whoever is watching or will watch. */
async function report(line: string) {
  const writer = getWritable<string>().getWriter();
  await writer.write(`${line}\n`);
  writer.releaseLock();
}

const euros = (cents: number) => `€${(cents / 100).toFixed(2)}`;
