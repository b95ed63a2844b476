// What an app reads through Drizzle, with either copy of it: ours may well be the other one.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { after, describe, test } from 'node:test';
import * as esm from 'drizzle-orm';
import * as esmClient from 'drizzle-orm/node-postgres';
import * as esmCore from 'drizzle-orm/pg-core';
import * as root from '../../index.js';
import {
  bytes,
  event,
  liveHook,
  openWait,
  openWorld,
  pendingStep,
  runningRun,
  runningStep,
} from '../storage/fixture.mjs';
import { testDatabase } from '../support/database.mjs';

const database = await testDatabase({ after });
// Read when the objects are made.
process.env.WORKFLOW_POSTGRES_SCHEMA = database.schema;
const schema = await import('../../schema.js');
const require = createRequire(import.meta.url);

/** @type {{ orm: typeof esm, core: typeof esmCore, client: typeof esmClient }} */
const modules = { orm: esm, core: esmCore, client: esmClient };
/** @type {typeof modules} */
const commonJs = {
  orm: require('drizzle-orm'),
  core: require('drizzle-orm/pg-core'),
  client: require('drizzle-orm/node-postgres'),
};
assert.notEqual(modules.core.PgTable, commonJs.core.PgTable);

const world = openWorld(database);
after(() => world.close());
const runId = await runningRun(world);
const done = await runningStep(world, runId);
await world.events.create(runId, event('step_completed', done, { result: bytes('result') }));
const waiting = await pendingStep(world, runId);
const hook = await liveHook(world, runId, { metadata: bytes('metadata') });
const wait = await openWait(world, runId);
await world.writeToStream('words', runId, bytes('one'));
await world.writeToStream('words', runId, bytes('two'));
await world.events.create(
  await runningRun(world),
  event('run_failed', undefined, { error: { message: 'lost' } }),
);

for (const [copy, { orm, core, client }] of Object.entries({ ESM: modules, CommonJS: commonJs })) {
  const { and, asc, count, eq, getTableColumns, getTableName, is, relations, Table } = orm;

  for (const [source, { runs, events, steps, hooks, streams }] of Object.entries({
    root,
    schema,
  })) {
    describe(`with the objects of ${source} and drizzle-orm as ${copy}`, () => {
      const db = client.drizzle(database.pool, { schema: { runs, events, steps, hooks, streams } });

      test('rows are what the World reads', async () => {
        const [row] = await db.select().from(runs).where(eq(runs.runId, runId));
        const run = await world.runs.get(runId);
        assert.equal(row.status, 'running');
        assert.deepEqual(row.createdAt, run.createdAt);
        assert.deepEqual(row.startedAt, run.startedAt);
        assert.equal(row.completedAt, null);
        assert.deepEqual(JSON.parse(row.executionContext ?? ''), run.executionContext);
        const [failed] = await db.select().from(runs).where(eq(runs.status, 'failed'));
        assert.equal(JSON.parse(failed.error ?? '').message, 'lost');
      });

      test('tables are joined, grouped and aliased', async () => {
        const joined = await db
          .select({ step: steps.stepId, status: steps.status, run: runs.status, event: events })
          .from(runs)
          .innerJoin(steps, eq(steps.runId, runs.runId))
          .leftJoin(events, and(eq(events.runId, runs.runId), eq(events.slot, steps.outputSlot)))
          .where(eq(runs.runId, runId))
          .orderBy(asc(steps.stepId));
        assert.deepEqual(
          joined.map(({ step, status, run, event }) => [step, status, run, event?.type]),
          [
            [done, 'completed', 'running', 'step_completed'],
            [waiting, 'pending', 'running', undefined],
          ],
        );
        assert.deepEqual(joined[0].event?.payload, Buffer.from('result'));

        const other = core.alias(runs, 'other');
        assert.deepEqual(
          await db
            .select({ id: runs.runId, same: count(other.runId) })
            .from(runs)
            .leftJoin(other, eq(other.status, runs.status))
            .where(eq(runs.runId, runId))
            .groupBy(runs.runId),
          [{ id: runId, same: 1 }],
        );
      });

      test('relational queries find rows, and nested ones with their bytes', async () => {
        const where = eq(runs.runId, runId);
        const found = await db.query.runs.findMany({ where, columns: { runId: true } });
        assert.deepEqual(found, [{ runId }]);
        assert.equal((await db.query.hooks.findFirst())?.token, hook.token);

        const related = client.drizzle(database.pool, {
          schema: {
            runs,
            events,
            logs: relations(runs, ({ many }) => ({ events: many(events) })),
            owners: relations(events, ({ one }) => ({
              run: one(runs, { fields: [events.runId], references: [runs.runId] }),
            })),
          },
        });
        const run = await related.query.runs.findFirst({ where, with: { events: true } });
        const first = run?.events.find(({ slot }) => slot === 1);
        assert.deepEqual(first?.payload, Buffer.from('input'));
        assert.ok(first.createdAt instanceof Date);
      });

      test('streams are listed by run', async () => {
        const [row] = await db.select().from(streams).where(eq(streams.runId, runId));
        assert.deepEqual([row.name, row.nextIndex, row.closed], ['words', 2, false]);
        assert.equal(typeof row.id, 'number');
      });

      test('Drizzle takes the objects for tables', () => {
        assert.ok(is(runs, Table) && is(runs, core.PgTable));
        assert.equal(getTableName(runs), 'workflow_runs');
        assert.deepEqual(Object.keys(getTableColumns(events)), [
          'runId',
          'slot',
          'type',
          'correlationId',
          'createdAt',
          'occurredAt',
          'requestId',
          'specVersion',
          'external',
          'data',
          'payload',
        ]);
        assert.ok('stepId' in steps);
        assert.equal({ ...steps }.stepId, steps.stepId);
      });
    });
  }

  test(`views carry the payloads, with drizzle-orm as ${copy}`, async () => {
    const db = client.drizzle(database.pool);
    const { runsWithPayloads, stepsWithPayloads, hooksWithPayloads, waits } = schema;
    const [run] = await db.select().from(runsWithPayloads).where(eq(runsWithPayloads.runId, runId));
    assert.deepEqual([run.input, run.output], [Buffer.from('input'), null]);
    const [step] = await db
      .select()
      .from(stepsWithPayloads)
      .where(eq(stepsWithPayloads.stepId, done));
    assert.deepEqual([step.input, step.output], [Buffer.from('arguments'), Buffer.from('result')]);
    const [{ metadata }] = await db.select().from(hooksWithPayloads);
    assert.deepEqual(metadata, Buffer.from('metadata'));
    const [{ correlationId, resumeAt, status }] = await db.select().from(waits);
    assert.deepEqual([correlationId, resumeAt, status], [wait.waitId, wait.resumeAt, 'waiting']);
  });

  test(`chunks are joined to their stream, with drizzle-orm as ${copy}`, async () => {
    const { streams, streamChunks } = schema;
    const chunks = await client
      .drizzle(database.pool)
      .select({ data: streamChunks.data })
      .from(streamChunks)
      .innerJoin(streams, eq(streams.id, streamChunks.streamId))
      .where(eq(streams.name, 'words'))
      .orderBy(asc(streamChunks.index));
    assert.deepEqual(
      chunks.map(({ data }) => Buffer.from(data).toString()),
      ['one', 'two'],
    );
  });
}
