import { setTimeout } from 'node:timers/promises';
import { createHook, createWebhook, type RequestWithResponse, sleep } from 'workflow';
import { observed } from './ledger';

interface Item {
  value: number;
  last?: boolean;
}

async function double(value: number) {
  'use step';
  return observed('double', () => value * 2);
}

async function answer(request: RequestWithResponse, body: unknown) {
  'use step';
  return observed('answer', () => request.respondWith(Response.json({ received: body })));
}

export async function approval(token: string) {
  'use workflow';
  using hook = createHook<unknown>({ token, metadata: { asks: 'approval' } });
  return await hook;
}

export async function collect(token: string) {
  'use workflow';
  using hook = createHook<Item>({ token });
  const doubled: number[] = [];
  for await (const { value, last } of hook) {
    doubled.push(await double(value));
    if (last) break;
  }
  return doubled;
}

export async function webhook() {
  'use workflow';
  using hook = createWebhook({ respondWith: 'manual' });
  const request = await hook;
  const body = await request.json();
  await answer(request, body);
  return { method: request.method, body };
}

export async function claim(token: string) {
  'use workflow';
  using hook = createHook<unknown>({ token });
  const conflict = await hook.getConflict();
  return conflict ? { owner: conflict.runId } : { payload: await hook };
}

export async function contend(token: string) {
  'use workflow';
  using hook = createHook<unknown>({ token });
  try {
    return await hook;
  } catch (error) {
    return (error as Error).name;
  }
}

/** Disposes of its hook and goes on: the token is free while this run lives. */
export async function handOver(token: string, next: string) {
  'use workflow';
  const first = createHook<unknown>({ token });
  const payload = await first;
  first.dispose();
  using second = createHook<unknown>({ token: next });
  return [payload, await second];
}

export async function approvalWithin(token: string, ms: number) {
  'use workflow';
  using hook = createHook<unknown>({ token });
  return await Promise.race([hook, sleep(ms).then(() => 'too late')]);
}

/** Whoever resumes it races its disposal, and the steps that follow. */
export async function disposing(token: string, ms: number) {
  'use workflow';
  const hook = createHook<number>({ token });
  const value = await Promise.race([hook, sleep(ms).then(() => 0)]);
  hook.dispose();
  return (await double(value)) + (await double(1));
}

async function work(branch: number, ms: number) {
  'use step';
  return observed('work', () => setTimeout(ms, branch));
}

async function note(branch: number, winner: string) {
  'use step';
  return observed('note', () => `${branch} ${winner}`);
}

/** Each branch races a callback or a step against a watchdog, over and over, as agents do. */
export async function storm(token: string, branches: number, rounds: number, ms: number) {
  'use workflow';
  return await Promise.all(
    Array.from({ length: branches }, async (_, branch) => {
      const winners: string[] = [];
      for (let round = 0; round < rounds; round++) {
        using hook = createHook<number>({ token: `${token} ${branch} ${round}` });
        const winner = await Promise.race([
          branch % 2 === 0
            ? hook.then(() => 'callback')
            : work(branch, ms * (0.7 + 0.6 * Math.random())).then(() => 'step'),
          sleep(ms).then(() => 'watchdog'),
        ]);
        winners.push(winner);
        // The next step depends on the winner: a replay that sees another winner cannot read the log.
        if (winner === 'watchdog') await double(branch);
        else await note(branch, winner);
      }
      return winners;
    }),
  );
}

/** Takes payloads until it has had `count` of them, with a step for each. */
export async function flood(token: string, count: number) {
  'use workflow';
  using hook = createHook<number>({ token });
  const seen: number[] = [];
  for await (const value of hook) {
    seen.push(await double(value));
    if (seen.length === count) break;
  }
  return seen.length;
}
