import type {
  QueueDriver,
  MessageData,
  WkfProxy,
  PostgresWorldConfig
} from "@workflow/world-postgres";
