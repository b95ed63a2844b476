import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { getTableColumns, getTableName, getViewName, getViewSelectedFields } from 'drizzle-orm';
import { getTableConfig, getViewConfig } from 'drizzle-orm/pg-core';
import { workflowSchema } from '../../schema.js';
import { testDatabase } from '../support/database.mjs';

const database = await testDatabase({ after });
const { runsWithPayloads, stepsWithPayloads, hooksWithPayloads, ...tables } = workflowSchema(
  database.schema,
);

const { rows } = await database.pool.query(
  `SELECT table_name, column_name AS name, data_type AS type, is_nullable = 'NO' AS "notNull"
   FROM information_schema.columns WHERE table_schema = $1 ORDER BY table_name, ordinal_position`,
  [database.schema],
);

/** @param {string} relation */
const inDatabase = (relation) =>
  rows
    .filter(({ table_name }) => table_name === relation)
    .map(({ name, type, notNull }) => ({ key: camelCase(name), name, type, notNull }));

/** @param {Record<string, any>} columns */
const inDrizzle = (columns) =>
  Object.entries(columns).map(([key, column]) => ({
    key,
    name: column.name,
    type: column.getSQLType().replace(/^timestamp.*with time zone$/, 'timestamp with time zone'),
    notNull: column.notNull,
  }));

/** @param {string} name */
const camelCase = (name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());

describe('the Drizzle objects have the columns of the database, no fewer and no more', () => {
  for (const table of Object.values(tables)) {
    test(getTableName(table), () => {
      assert.equal(getTableConfig(table).schema, database.schema);
      assert.deepEqual(inDrizzle(getTableColumns(table)), inDatabase(getTableName(table)));
    });
  }

  // PostgreSQL calls every column of a view nullable; ours are as their tables have them.
  for (const { view, of } of [
    { view: runsWithPayloads, of: tables.runs },
    { view: stepsWithPayloads, of: tables.steps },
    { view: hooksWithPayloads, of: tables.hooks },
  ]) {
    test(`view ${getViewName(view)}`, () => {
      assert.equal(getViewConfig(view).schema, database.schema);
      const required = inDatabase(getTableName(of)).filter(({ notNull }) => notNull);
      const keys = new Set(required.map(({ key }) => key));
      assert.deepEqual(
        inDrizzle(getViewSelectedFields(view)),
        inDatabase(getViewName(view)).map((column) => ({
          ...column,
          notNull: keys.has(column.key),
        })),
      );
    });
  }

  test('for all tables and views but those that only the package itself looks at', () => {
    assert.deepEqual(
      [...new Set(rows.map(({ table_name }) => table_name))].sort(),
      [
        ...Object.values(tables).map((table) => getTableName(table)),
        ...[
          'runs',
          'steps',
          'hooks',
          'workflow_migrations',
          'workflow_repeated_calls',
          'workflow_pulse',
          'workflow_rescues',
        ],
      ].sort(),
    );
  });
});

test('without WORKFLOW_POSTGRES_SCHEMA they are in workflow_world', () => {
  const given = process.env.WORKFLOW_POSTGRES_SCHEMA;
  try {
    for (const [value, expected] of [
      [undefined, 'workflow_world'],
      ['', 'workflow_world'],
      ['elsewhere', 'elsewhere'],
    ]) {
      delete process.env.WORKFLOW_POSTGRES_SCHEMA;
      if (value !== undefined) process.env.WORKFLOW_POSTGRES_SCHEMA = value;
      assert.equal(getTableConfig(workflowSchema().runs).schema, expected);
    }
  } finally {
    delete process.env.WORKFLOW_POSTGRES_SCHEMA;
    if (given !== undefined) process.env.WORKFLOW_POSTGRES_SCHEMA = given;
  }
});
