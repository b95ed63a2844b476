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
