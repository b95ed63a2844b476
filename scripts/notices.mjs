// Writes the licences and notices of the crates that are linked into the addon: part of `npm pack`.
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Their terms allow what this package does. `AND` needs all parts of an expression, `OR` one of them. */
const ACCEPTABLE = new Set([
  'Apache-2.0',
  'Apache-2.0 WITH LLVM-exception',
  'BSD-2-Clause',
  'BSD-3-Clause',
  'ISC',
  'MIT',
  'MIT-0',
  'Unicode-3.0',
  'Unlicense',
  'Zlib',
]);
const LICENSE_FILE = /^(licen[cs]e|copying|copyright|notice|unlicense)/i;
const SHORTEST_TEXT = 60;
const OUTPUT = 'THIRD-PARTY-NOTICES.md';

/**
 * @typedef {{ id: string, name: string, version: string, license: string | null, manifest_path: string, targets: { kind: string[] }[] }} Package
 * @typedef {{ id: string, deps: { pkg: string, dep_kinds: { kind: string | null }[] }[] }} Node
 */

/** The crates that are linked into the addon of any platform, without those that only run in the compiler. */
export function linkedCrates() {
  const { napi } = JSON.parse(readFileSync('package.json', 'utf8'));
  /** @type {Map<string, Package>} */
  const linked = new Map();
  for (const target of napi.targets) {
    const args = ['metadata', '--locked', '--format-version', '1', '--features', 'node'];
    const output = execFileSync('cargo', [...args, '--filter-platform', target], {
      maxBuffer: 2 ** 28,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    /** @type {{ packages: Package[], resolve: { root: string, nodes: Node[] } }} */
    const { packages, resolve } = JSON.parse(String(output));
    const byId = new Map(packages.map((each) => [each.id, each]));
    const nodes = new Map(resolve.nodes.map((node) => [node.id, node]));
    const found = new Set([resolve.root]);
    for (const id of found) {
      for (const { pkg, dep_kinds } of nodes.get(id)?.deps ?? []) {
        const crate = byId.get(pkg);
        const runs = crate?.targets.every(({ kind }) => !kind.includes('proc-macro'));
        if (crate && runs && dep_kinds.some(({ kind }) => kind === null)) {
          found.add(pkg);
          linked.set(pkg, crate);
        }
      }
    }
  }
  return [...linked.values()].sort((a, b) =>
    `${a.name} ${a.version}` < `${b.name} ${b.version}` ? -1 : 1,
  );
}

/** @param {string | null} expression of SPDX, or of before it: `MIT/Apache-2.0` */
export function isAcceptable(expression) {
  const text = (expression ?? '').replaceAll(/[()]/g, '').replaceAll('/', ' OR ');
  return text
    .split(' AND ')
    .every((part) => part.split(' OR ').some((license) => ACCEPTABLE.has(license.trim())));
}

/** The texts that a crate brings. @param {Package} crate */
export function textsOf({ manifest_path, license }) {
  const folder = dirname(manifest_path);
  const names = readdirSync(folder, { withFileTypes: true })
    .filter((entry) => entry.isFile() && LICENSE_FILE.test(entry.name))
    .map(({ name }) => name);
  // Of several to choose from, MIT is the shortest.
  const offersMit = names.some((name) => /mit/i.test(name)) && !license?.includes('AND');
  const texts = names
    .filter((name) => !offersMit || /mit|notice|copyright/i.test(name))
    .map((name) => readFileSync(join(folder, name), 'utf8').trim())
    // Some are the path that a link led to.
    .filter((text) => text.length >= SHORTEST_TEXT);
  if (texts.length > 0) return texts;
  // Some crates name their licence and do not bring its text.
  if (license?.includes('Apache-2.0')) {
    return [`Under the Apache License, Version 2.0, whose text is in LICENSE.md of this package.`];
  }
  return license?.includes('MIT') ? [MIT] : [];
}

const MIT = `Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.`;

/** @param {Package[]} crates */
export function noticesOf(crates) {
  /** Crates of one author share a text. @type {Map<string, string[]>} */
  const byText = new Map();
  for (const crate of crates) {
    const title = `${crate.name} ${crate.version} (${crate.license})`;
    if (!isAcceptable(crate.license)) throw new Error(`The licence of ${title} is not acceptable`);
    const texts = textsOf(crate);
    if (texts.length === 0) throw new Error(`${title} brings no text of its licence`);
    const text = texts.join('\n\n---\n\n');
    byText.set(text, [...(byText.get(text) ?? []), title]);
  }
  const sections = [...byText].map(
    ([text, titles]) =>
      `## ${titles.join(', ')}\n\n\`\`\`text\n${text.replaceAll('```', "'''")}\n\`\`\`\n`,
  );
  return `# Notices of the Rust crates that are linked into this package\n\n${sections.join('\n')}`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  process.chdir(fileURLToPath(new URL('..', import.meta.url)));
  writeFileSync(OUTPUT, noticesOf(linkedCrates()));
}
