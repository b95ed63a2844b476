// Loaded into the process under observation: a line per second with the bytes that JavaScript uses.
import { appendFile } from 'node:fs/promises';

const file = /** @type {string} */ (process.env.SOAK_HEAP);
setInterval(() => appendFile(file, `${process.memoryUsage().heapUsed}\n`), 1000).unref();
