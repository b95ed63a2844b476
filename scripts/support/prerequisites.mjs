import { execFileSync } from 'node:child_process';

const needed = { node: [20, 19], rust: [1, 94] };

/** Ends the process with a message that says what to do when this machine cannot build the addon. */
export function checkPrerequisites() {
  const problems = [...nodeProblems(), ...rustProblems(), ...compilerProblems()];
  if (problems.length === 0) return;
  console.error(['This needs:', ...problems.map((problem) => `  - ${problem}`)].join('\n'));
  process.exit(1);
}

function nodeProblems() {
  return isAtLeast(process.versions.node, needed.node)
    ? []
    : [
        `Node.js ${needed.node.join('.')} or newer (this is ${process.version}): https://nodejs.org`,
      ];
}

function rustProblems() {
  const wanted = `stable Rust ${needed.rust.join('.')} or newer`;
  const rustc = versionOf('rustc');
  if (!rustc || !versionOf('cargo')) {
    return [`${wanted} (cargo and rustc are not on the PATH): install it from https://rustup.rs`];
  }
  return isAtLeast(rustc, needed.rust)
    ? []
    : [`${wanted} (rustc here is ${rustc}): run \`rustup update stable\``];
}

/** Rust links with the system's C compiler, and one dependency has C of its own. */
function compilerProblems() {
  if (process.platform === 'win32' || versionOf('cc') !== undefined) return [];
  const how =
    process.platform === 'darwin' ? 'xcode-select --install' : 'apt-get install build-essential';
  return [`a C compiler (cc is not on the PATH): ${how}, or what your system has for it`];
}

/** @param {string} program */
function versionOf(program) {
  try {
    const output = execFileSync(program, ['--version'], { stdio: ['ignore', 'pipe', 'ignore'] });
    return /\d+\.\d+(\.\d+)?/.exec(String(output))?.[0] ?? '';
  } catch {
    return undefined;
  }
}

/** @param {string} version @param {number[]} minimum */
function isAtLeast(version, [major, minor]) {
  const [actualMajor, actualMinor] = version.split('.').map(Number);
  return actualMajor > major || (actualMajor === major && actualMinor >= minor);
}
