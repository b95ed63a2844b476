// Outlives the process that started it by a moment: when that process ends, however it ends, its
// end of our stdin closes, and the PostgreSQL servers below <directory> go away with their data.
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

const directory = process.argv[2];

process.stdin.resume().on('close', async () => {
  for (const name of readdirSync(directory)) {
    const pidFile = path.join(directory, name, 'postmaster.pid');
    try {
      const pid = Number.parseInt(readFileSync(pidFile, 'utf8'), 10);
      process.kill(pid, 'SIGQUIT');
      // The process itself may stay for a while as a zombie of a slow init.
      while (existsSync(pidFile) && process.kill(pid, 0)) await sleep(10);
    } catch {
      // no server, or it has gone
    }
  }
  rmSync(directory, { recursive: true, force: true, maxRetries: 5 });
});
