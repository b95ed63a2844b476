// What TypeScript says in a project that has installed the package.
import assert from 'node:assert/strict';
import { cp, readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { consumer } from '../support/consumer.mjs';

const REQUIRED = ['@workflow/world', '@types/node', 'undici-types'];
const DRIZZLE = ['drizzle-orm', '@types/pg', 'pg-types', 'pg-protocol'];

const resolutions = {
  node16: { module: ts.ModuleKind.Node16, moduleResolution: ts.ModuleResolutionKind.Node16 },
  bundler: { module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler },
};

/**
 * @param {string} folder
 * @param {ts.CompilerOptions} options
 * @returns {Promise<string[]>} one line per diagnostic
 */
async function check(folder, options) {
  const names = (await readdir(folder)).filter((name) => name.endsWith('.ts'));
  const program = ts.createProgram(
    names.map((name) => path.join(folder, name)),
    {
      strict: true,
      noEmit: true,
      target: ts.ScriptTarget.ES2022,
      // No DOM: a worker has none.
      lib: ['lib.es2022.d.ts'],
      types: ['node'],
      typeRoots: [path.join(folder, '../node_modules/@types')],
      ...options,
    },
  );
  return ts.getPreEmitDiagnostics(program).map(({ file, start, code, messageText }) => {
    const line = file ? file.getLineAndCharacterOfPosition(start ?? 0).line + 1 : 0;
    const place = file ? `${path.relative(folder, file.fileName)}:${line}` : 'project';
    return `${place} TS${code} ${ts.flattenDiagnosticMessageText(messageText, '\n')}`;
  });
}

/**
 * @param {import('../support/database.mjs').Test} t
 * @param {string} folder
 * @param {string[]} dependencies
 */
async function projectWith(t, folder, dependencies) {
  const project = await consumer(t, dependencies);
  const copy = path.join(project, folder);
  await cp(fileURLToPath(new URL(folder, import.meta.url)), copy, { recursive: true });
  return copy;
}

for (const [name, resolution] of Object.entries(resolutions)) {
  describe(`with module resolution ${name}`, () => {
    // drizzle-orm's own declarations need skipLibCheck. Ours do not, nor do they need drizzle-orm.
    const variants = [
      { having: 'drizzle-orm', dependencies: [...REQUIRED, ...DRIZZLE], skipLibCheck: true },
      { having: 'no drizzle-orm', dependencies: REQUIRED, skipLibCheck: false },
    ];
    for (const { having, dependencies, skipLibCheck } of variants) {
      test(`each snippet of the first README compiles as printed, having ${having}`, async (t) => {
        const folder = await projectWith(t, 'snippets', dependencies);
        const found = await check(folder, { ...resolution, skipLibCheck });
        assert.deepEqual(
          found.map((line) => line.replace(/(TS2835).*/s, '$1')),
          name === 'node16' ? await extensionlessImports(folder) : [],
          found.join('\n'),
        );
      });
    }

    test('all public names are there, the same in every place', async (t) => {
      const folder = await projectWith(t, 'uses', [...REQUIRED, ...DRIZZLE]);
      assert.deepEqual(await check(folder, { ...resolution, skipLibCheck: true }), []);
    });
  });
}

/**
 * Node itself has no extensionless relative imports in ES modules, so node16 refuses them whatever
 * they import. The snippets that have them are for bundlers.
 * @param {string} folder
 */
async function extensionlessImports(folder) {
  const expected = [];
  for (const name of ['04-function-proxy.ts', '07-function-proxy-instrumentation.ts']) {
    const lines = (await readFile(path.join(folder, name), 'utf8')).split('\n');
    for (const [index, line] of lines.entries()) {
      if (line.includes("'./app/")) expected.push(`${name}:${index + 1} TS2835`);
    }
  }
  return expected;
}
