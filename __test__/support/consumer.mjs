import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const root = fileURLToPath(new URL('../..', import.meta.url));
const run = promisify(execFile);

/**
 * A project outside the repository that has the packed package and, of the repository's dependencies,
 * those that are named: what others resolve to does not leak in.
 * @param {import('./database.mjs').Test} t
 * @param {string[]} dependencies
 * @returns {Promise<string>} its directory
 */
export async function consumer(t, dependencies) {
  const project = await mkdtemp(path.join(tmpdir(), 'world-postgres-consumer-'));
  t.after(() => rm(project, { recursive: true, force: true }));
  const { stdout } = await run('npm', ['pack', '--json', '--pack-destination', project], {
    cwd: root,
  });
  const [{ filename }] = JSON.parse(stdout);
  await run('tar', ['-xzf', filename], { cwd: project });

  const place = async (/** @type {string} */ name) => {
    const target = path.join(project, 'node_modules', name);
    await mkdir(path.dirname(target), { recursive: true });
    return target;
  };
  await rename(path.join(project, 'package'), await place('@workflow/world-postgres'));
  for (const name of dependencies) {
    await symlink(path.join(root, 'node_modules', name), await place(name), 'junction');
  }
  await writeFile(path.join(project, 'package.json'), '{ "private": true, "type": "module" }');
  return project;
}
