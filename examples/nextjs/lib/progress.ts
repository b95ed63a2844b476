import type { RunEvent } from './runs';

export type State = 'queued' | 'running' | 'retrying' | 'waiting' | 'done' | 'failed';

export interface Activity {
  id: string;
  kind: 'step' | 'timer' | 'hook';
  name: string;
  state: State;
  detail?: string;
  attempts: number;
  /** When it was being worked on or waited for, as epoch milliseconds; the last may be open. */
  spans: { from: number; to?: number }[];
}

const kinds = { step: 'step', wait: 'timer', hook: 'hook' } as const;

/** What the run has done and is doing, from its event log. */
export function activities(events: RunEvent[]): Activity[] {
  const bySubject = new Map<string, Activity>();

  for (const { type, subject, name, detail, at } of events) {
    if (!subject) continue;
    const time = Date.parse(at);
    const [prefix, verb] = type.split('_') as [keyof typeof kinds, string];

    let activity = bySubject.get(subject);
    if (!activity) {
      const kind = kinds[prefix];
      activity = { id: subject, kind, name: name ?? kind, state: 'queued', attempts: 0, spans: [] };
      bySubject.set(subject, activity);
    }
    const begin = (state: State) => {
      // A step that starts again without having ended lost its process.
      const open = activity.spans.at(-1);
      if (open) open.to ??= time;
      activity.state = state;
      activity.spans.push({ from: time });
    };
    const end = (state: State) => {
      const open = activity.spans.at(-1);
      if (!open || open.to) return;
      activity.state = state;
      activity.detail = detail;
      open.to = time;
    };

    if (verb === 'started') {
      activity.attempts += 1;
      begin('running');
    } else if (verb === 'created' && prefix !== 'step') begin('waiting');
    else if (verb === 'retrying') end('retrying');
    else if (verb === 'failed' || verb === 'conflict') end('failed');
    else if (verb === 'completed' || verb === 'received' || verb === 'disposed') end('done');
  }
  return [...bySubject.values()];
}
