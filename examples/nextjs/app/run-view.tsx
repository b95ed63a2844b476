'use client';

import { useEffect, useState } from 'react';
import { products } from '@/lib/products';
import { type Activity, activities } from '@/lib/progress';
import type { RunDetails, RunEvent } from '@/lib/runs';

const isOver = (run: RunDetails) => run.status !== 'pending' && run.status !== 'running';

export function RunView({ runId }: { runId: string }) {
  const run = useRun(runId);
  const lines = useStream(runId);

  if (!run) return <p className="card placeholder">Loading …</p>;

  const rows = activities(run.events);
  const approvalIsOpen = rows.some((row) => row.kind === 'hook' && row.state === 'waiting');

  return (
    <>
      <section className="card headline">
        <div>
          <h2>
            {run.order.quantity} × {products[run.order.product].name}
            <span className={`pill ${run.status}`}>{run.status}</span>
          </h2>
          <p className="id">
            order {run.order.id} · {run.runId}
          </p>
        </div>
        {approvalIsOpen && !isOver(run) && <Approval orderId={run.order.id} />}
        {run.result?.status === 'shipped' && (
          <p className="outcome">
            Shipped as <b>{run.result.trackingNumber}</b>, approved by {run.result.approvedBy}
          </p>
        )}
        {run.result?.status === 'declined' && (
          <p className="outcome">Declined by {run.result.declinedBy}, money returned</p>
        )}
        {run.error && <p className="outcome error">{run.error}</p>}
      </section>

      <Timeline run={run} rows={rows} />

      <div className="columns">
        <section className="card">
          <h3>Stream</h3>
          <pre className="stream">{lines || ' '}</pre>
        </section>
        <EventLog run={run} />
      </div>
    </>
  );
}

function Approval({ orderId }: { orderId: string }) {
  const [busy, setBusy] = useState(false);
  const decide = async (approved: boolean) => {
    setBusy(true);
    await fetch(`/api/orders/${orderId}/approval`, {
      method: 'POST',
      body: JSON.stringify({ approved, by: 'you' }),
    });
  };
  return (
    <div className="approval">
      <button type="button" className="primary" disabled={busy} onClick={() => decide(true)}>
        Approve
      </button>
      <button type="button" disabled={busy} onClick={() => decide(false)}>
        Decline
      </button>
    </div>
  );
}

function Timeline({ run, rows }: { run: RunDetails; rows: Activity[] }) {
  const begin = Date.parse(run.createdAt);
  const last = run.events.at(-1);
  const end = isOver(run) && last ? Date.parse(last.at) : Date.now();
  const percent = (time: number) => (100 * Math.max(0, time - begin)) / Math.max(1, end - begin);

  return (
    <section className="card">
      <h3>Progress</h3>
      <ol className="timeline">
        {rows.map((row) => (
          <li key={row.id} className={row.state}>
            <i className={`dot ${row.state}`} />
            <span className="name">{row.kind === 'timer' ? 'sleep' : row.name}</span>
            <span className="state">
              {row.state}
              {row.attempts > 1 && ` · attempt ${row.attempts}`}
            </span>
            <span className="track" title={row.detail}>
              {row.spans.map(({ from, to }) => (
                <i
                  key={from}
                  className={`bar ${row.kind} ${to ? '' : 'open'}`}
                  style={{ left: `${percent(from)}%`, right: `${100 - percent(to ?? end)}%` }}
                />
              ))}
            </span>
          </li>
        ))}
      </ol>
    </section>
  );
}

function EventLog({ run }: { run: RunDetails }) {
  const begin = Date.parse(run.createdAt);
  const offset = ({ at }: RunEvent) => `+${((Date.parse(at) - begin) / 1000).toFixed(2)} s`;
  return (
    <section className="card">
      <h3>Event log</h3>
      <ol className="events">
        {run.events.map((event) => (
          <li key={event.id}>
            <time>{offset(event)}</time>
            <code>{event.type}</code>
            <span>
              {event.name}
              {event.detail && <em> {event.detail}</em>}
            </span>
          </li>
        ))}
      </ol>
    </section>
  );
}

function useRun(runId: string) {
  const [run, setRun] = useState<RunDetails>();

  useEffect(() => {
    let timer: ReturnType<typeof setTimeout>;
    let stopped = false;
    const poll = async () => {
      const response = await fetch(`/api/runs/${runId}`).catch(() => undefined);
      if (stopped) return;
      const latest: RunDetails | undefined = response?.ok ? await response.json() : undefined;
      if (latest) setRun(latest);
      if (!latest || !isOver(latest)) timer = setTimeout(poll, 300);
    };
    poll();
    return () => {
      stopped = true;
      clearTimeout(timer);
    };
  }, [runId]);

  return run;
}

/** Everything the run has written to its stream; read anew when the connection breaks. */
function useStream(runId: string) {
  const [text, setText] = useState('');

  useEffect(() => {
    const abort = new AbortController();
    const read = async () => {
      setText('');
      const response = await fetch(`/api/runs/${runId}/stream`, { signal: abort.signal });
      if (!response.ok) throw new Error(response.statusText);
      const reader = response.body?.getReader();
      const decoder = new TextDecoder();
      for (;;) {
        const chunk = await reader?.read();
        if (!chunk || chunk.done) return;
        const part = decoder.decode(chunk.value, { stream: true });
        setText((before) => before + part);
      }
    };
    const follow = async () => {
      while (!abort.signal.aborted) {
        try {
          return await read();
        } catch {
          await new Promise((resolve) => setTimeout(resolve, 1000));
        }
      }
    };
    follow();
    return () => abort.abort();
  }, [runId]);

  return text;
}
