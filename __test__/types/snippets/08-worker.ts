// worker.ts
import { createWorld, createPgBossHttpProxyQueue } from "@workflow/world-postgres";

const world = createWorld({
  queueFactory: () =>
    createPgBossHttpProxyQueue({
      baseUrl: "http://localhost:3000", // Your app URL
    }),
});

await world.start();
