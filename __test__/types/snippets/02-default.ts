import { createWorld } from "@workflow/world-postgres";

const world = createWorld();
await world.start();
