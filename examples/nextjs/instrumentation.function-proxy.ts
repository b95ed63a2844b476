// In place of instrumentation.ts: workflows and steps are called in this process, not over HTTP.
export async function register() {
  if (process.env.NEXT_RUNTIME !== 'edge') {
    const { createWorld, createPgBossFunctionProxyQueue } = await import(
      '@workflow/world-postgres'
    );
    // The SDK's build generates them. Imported here: at the top they would break edge routes.
    const { POST: workflowEntrypoint } = await import('./app/.well-known/workflow/v1/flow/route');
    const { POST: stepEntrypoint } = await import('./app/.well-known/workflow/v1/step/route');

    const world = createWorld({
      queueFactory: () => createPgBossFunctionProxyQueue({ stepEntrypoint, workflowEntrypoint }),
    });
    await world.start();
  }
}
