// Outlives the process that started it by a moment: when that process ends, however it ends, its
// end of our stdin closes, and the PostgreSQL server below <directory> goes away with its data.
import { existsSync, readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

const directory = process.argv[2];
const pidFile = path.join(directory, 'data', 'postmaster.pid');

process.stdin.resume().on('close', async () => {
  try {
    const pid = Number.parseInt(readFileSync(pidFile, 'utf8'), 10);
    process.kill(pid, 'SIGQUIT');
    // The process itself may stay for a while as a zombie of a slow init.
    while (existsSync(pidFile) && process.kill(pid, 0)) await sleep(10);
  } catch {
    // no server, or it has gone
  }
  rmSync(directory, { recursive: true, force: true, maxRetries: 5 });
});
