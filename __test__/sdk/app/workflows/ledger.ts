import { appendFileSync } from 'node:fs';
import { FatalError, getStepMetadata, getWorkflowMetadata } from 'workflow';

/**
 * Runs the body of a step and leaves a line for its begin and one for how it ended, so that tests can
 * count executions. A file, because it must also work while PostgreSQL does not.
 */
export async function observed<T>(step: string, body: () => T | Promise<T>): Promise<T> {
  record(step, 'begin');
  try {
    const result = await body();
    record(step, 'end');
    return result;
  } catch (error) {
    // Only the other errors ask for another execution.
    record(step, FatalError.is(error) ? 'end' : 'throw');
    throw error;
  }
}

function record(step: string, phase: 'begin' | 'end' | 'throw') {
  const file = process.env.TEST_LEDGER;
  if (!file) return;
  const { workflowRunId: runId } = getWorkflowMetadata();
  const { stepId, attempt } = getStepMetadata();
  // The clocks of the processes may differ; this one is the machine's.
  const moment = Number(process.hrtime.bigint() / 1_000_000n);
  const line = { phase, runId, stepId, step, attempt, pid: process.pid, at: Date.now(), moment };
  appendFileSync(file, `${JSON.stringify(line)}\n`);
}
