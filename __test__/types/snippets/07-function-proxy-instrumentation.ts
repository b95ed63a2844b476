// instrumentation.ts
export async function register() {
  if (process.env.NEXT_RUNTIME !== 'edge') {
    const { createWorld, createPgBossFunctionProxyQueue } =
      await import("@workflow/world-postgres");

    const { __wkf_entrypoint: workflowEntrypoint } =
      await import('./app/.well-known/workflow/v1/flow/route');
    const { __wkf_entrypoint: stepEntrypoint } =
      await import('./app/.well-known/workflow/v1/step/route');

    const world = createWorld({
      queueFactory: () =>
        createPgBossFunctionProxyQueue({
          stepEntrypoint,
          workflowEntrypoint,
        }),
    });

    await world.start();
  }
}
