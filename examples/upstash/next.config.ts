import type { NextConfig } from 'next';
import { withWorkflow } from 'workflow/next';

const nextConfig: NextConfig = {
  // Nothing imports it: the SDK requires what WORKFLOW_TARGET_WORLD names, at run time.
  outputFileTracingIncludes: { '/*': ['./node_modules/@workflow/world-postgres/**'] },
};

export default withWorkflow(nextConfig);
