'use client';

import { type FormEvent, useCallback, useEffect, useState } from 'react';
import { products } from '@/lib/products';
import type { RunSummary } from '@/lib/runs';
import { RunView } from './run-view';

export default function Page() {
  const [runs, setRuns] = useState<RunSummary[]>([]);
  const [selected, setSelected] = useState<string>();

  const refresh = useCallback(async () => {
    const response = await fetch('/api/runs').catch(() => undefined);
    if (response?.ok) setRuns(await response.json());
  }, []);

  useEffect(() => {
    refresh();
    const timer = setInterval(refresh, 1000);
    return () => clearInterval(timer);
  }, [refresh]);

  const placeOrder = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget);
    const response = await fetch('/api/orders', {
      method: 'POST',
      body: JSON.stringify({
        product: form.get('product'),
        quantity: Number(form.get('quantity')),
      }),
    });
    const { runId } = await response.json();
    setSelected(runId);
    await refresh();
  };

  const shown = selected ?? runs[0]?.runId;

  return (
    <div className="layout">
      <aside>
        <header className="brand">
          <h1>Orders</h1>
          <p>Durable workflows on PostgreSQL</p>
        </header>

        <form className="card order" onSubmit={placeOrder}>
          <label>
            Product
            <select name="product">
              {Object.entries(products).map(([id, { name, cents }]) => (
                <option key={id} value={id}>
                  {name} · €{cents / 100}
                </option>
              ))}
            </select>
          </label>
          <label>
            Quantity
            <input name="quantity" type="number" min="1" max="99" defaultValue="2" />
          </label>
          <button type="submit" className="primary">
            Place order
          </button>
        </form>

        <nav className="card runs" aria-label="Runs">
          <h2>Runs</h2>
          {runs.length === 0 && <p className="empty">None yet: place an order.</p>}
          {runs.map(({ runId, status, createdAt, order }) => (
            <button
              type="button"
              key={runId}
              className={runId === shown ? 'run selected' : 'run'}
              onClick={() => setSelected(runId)}
            >
              <i className={`dot ${status}`} title={status} />
              <span>
                {order.quantity} × {products[order.product].name}
              </span>
              <time>{new Date(createdAt).toLocaleTimeString('en-GB')}</time>
            </button>
          ))}
        </nav>
      </aside>

      <main>
        {shown ? (
          <RunView key={shown} runId={shown} />
        ) : (
          <p className="card placeholder">
            Place an order. It reserves stock, charges a card at a gateway that fails the first
            time, sleeps, waits for your approval and ships: all of it survives a restart of this
            app at any moment.
          </p>
        )}
      </main>
    </div>
  );
}
