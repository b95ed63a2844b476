// instrumentation.ts
export async function register() {
  if (process.env.NEXT_RUNTIME !== 'edge') {
    const { createWorld } = await import("@workflow/world-postgres");

    const world = createWorld();
    await world.start();
  }
}
