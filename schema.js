import {
  bigint,
  boolean,
  customType,
  integer,
  pgSchema,
  text,
  timestamp,
} from 'drizzle-orm/pg-core';
import { tables } from './lib/tables.js';

/** @param {string} [name] */
export const workflowSchema = (name) =>
  tables({ bigint, boolean, customType, integer, pgSchema, text, timestamp }, name);

export const {
  runs,
  events,
  steps,
  hooks,
  waits,
  streams,
  streamChunks,
  runsWithPayloads,
  stepsWithPayloads,
  hooksWithPayloads,
} = workflowSchema();
