import { appendFileSync } from 'node:fs';
import { getStepMetadata, getWorkflowMetadata } from 'workflow';

/**
 * Runs the body of a step and leaves a line for its begin and one for its end, so that tests can
 * count executions. A file, because it must also work while PostgreSQL does not.
 */
export async function observed<T>(step: string, body: () => T | Promise<T>): Promise<T> {
  record(step, 'begin');
  const result = await body();
  record(step, 'end');
  return result;
}

function record(step: string, phase: 'begin' | 'end') {
  const file = process.env.TEST_LEDGER;
  if (!file) return;
  const { workflowRunId: runId } = getWorkflowMetadata();
  const { stepId, attempt } = getStepMetadata();
  const line = { phase, runId, stepId, step, attempt, pid: process.pid, at: Date.now() };
  appendFileSync(file, `${JSON.stringify(line)}\n`);
}
