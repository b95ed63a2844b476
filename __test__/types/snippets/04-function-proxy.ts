import { createWorld, createPgBossFunctionProxyQueue } from "@workflow/world-postgres";

// Import entrypoints from your Next.js API routes
import { __wkf_entrypoint as workflowEntrypoint } from './app/.well-known/workflow/v1/flow/route';
import { __wkf_entrypoint as stepEntrypoint } from './app/.well-known/workflow/v1/step/route';

const world = createWorld({
  queueFactory: () =>
    createPgBossFunctionProxyQueue({
      stepEntrypoint,
      workflowEntrypoint,
    }),
});

await world.start();
