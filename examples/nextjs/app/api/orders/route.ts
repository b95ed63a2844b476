import { start } from 'workflow/api';
import { type ProductId, products } from '@/lib/products';
import { processOrder } from '@/workflows/order';

export async function POST(request: Request) {
  const { product = 'espresso', quantity = 1 } = await request.json();
  if (!Object.hasOwn(products, product) || !Number.isInteger(quantity) || quantity < 1) {
    return Response.json({ error: 'no such product or quantity' }, { status: 400 });
  }
  const orderId = crypto.randomUUID().slice(0, 8);
  const run = await start(processOrder, [{ id: orderId, product: product as ProductId, quantity }]);
  return Response.json({ runId: run.runId, orderId }, { status: 201 });
}
