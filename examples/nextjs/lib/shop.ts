// The outside world, simulated: in your app these are other services.
import { setTimeout as delay } from 'node:timers/promises';
import type { ProductId } from './products';

export const warehouse = {
  async reserve(product: ProductId, quantity: number) {
    await delay(500);
    return { shelf: `${product[0]}-${quantity}`.toUpperCase() };
  },
  async release(_shelf: string) {
    await delay(300);
  },
};

export const gateway = {
  /** Like a real one: slow, at times unavailable, and idempotent by key. */
  async charge(cents: number, { key, available }: { key: string; available: boolean }) {
    await delay(600);
    if (!available) throw new Error('payment gateway timed out');
    return { paymentId: `pay_${key.slice(-8).toLowerCase()}`, cents };
  },
  async refund(_paymentId: string) {
    await delay(400);
  },
};

export const courier = {
  async book(orderId: string) {
    await delay(700);
    return { trackingNumber: `TRK-${orderId.toUpperCase()}` };
  },
};
