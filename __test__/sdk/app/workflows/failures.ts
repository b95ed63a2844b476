import { FatalError, getStepMetadata, RetryableError } from 'workflow';
import { observed } from './ledger';

async function flaky(failures: number, message: string, retryAfter?: number | Date) {
  'use step';
  return observed('flaky', () => {
    const { attempt } = getStepMetadata();
    if (attempt > failures) return attempt;
    throw retryAfter === undefined
      ? new Error(message)
      : new RetryableError(message, { retryAfter });
  });
}

async function refuse(message: string): Promise<never> {
  'use step';
  return observed('refuse', () => {
    throw new FatalError(message);
  });
}

async function hopeless(message: string): Promise<never> {
  'use step';
  return observed('hopeless', () => {
    throw new Error(message);
  });
}
hopeless.maxRetries = 2;

export async function retries(failures: number, message: string, retryAfter?: number | Date) {
  'use workflow';
  return flaky(failures, message, retryAfter);
}

export async function fatal(message: string) {
  'use workflow';
  return refuse(message).catch((error) => ({
    fatal: FatalError.is(error),
    message: error.message,
  }));
}

export async function exhausted(message: string) {
  'use workflow';
  return hopeless(message).catch((error) => ({ message: error.message }));
}

export async function uncaught(message: string) {
  'use workflow';
  return refuse(message);
}

export async function failing(message: string) {
  'use workflow';
  throw new RangeError(message);
}

async function stumble(value: number, failures: number, retryAfter: number) {
  'use step';
  return observed('stumble', () => {
    const { attempt } = getStepMetadata();
    if (attempt > failures) return value;
    throw new RetryableError(`attempt ${attempt}`, { retryAfter });
  });
}

async function pass(value: number) {
  'use step';
  return observed('pass', () => value);
}

/** Branches whose steps fail once, twice and so on before they succeed, each followed by a step of its own. */
export async function stumbling(branches: number, retryAfter: number) {
  'use workflow';
  const values = await Promise.all(
    Array.from({ length: branches }, async (_, n) => pass(await stumble(n, n, retryAfter))),
  );
  return values.reduce((total, n) => total + n, 0);
}
