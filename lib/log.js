/** @typedef {import('../index.js').LogLine} LogLine */

/**
 * Where log lines go unless the `log` option says otherwise. Debug lines, of which there may be one
 * per job, go nowhere.
 * @param {LogLine} line
 */
export function logToConsole({ level, message, ...fields }) {
  if (level === 'debug') return;
  const details = Object.entries(fields).map(
    ([name, value]) => ` ${name}=${JSON.stringify(value)}`,
  );
  console[level](`[@workflow/world-postgres] ${message}${details.join('')}`);
}

/**
 * Hands a line to the log function, whose failures must not reach whoever has something to tell.
 * @param {(line: LogLine) => void} log
 * @param {LogLine} line
 */
export function tell(log, line) {
  try {
    log(line);
  } catch (error) {
    console.error('[@workflow/world-postgres] The log function failed:', error);
  }
}

/**
 * For the core: a function that never throws.
 * @param {(line: LogLine) => void} [log]
 * @returns {(level: string, message: string, fields: string) => void}
 */
export function logger(log = logToConsole) {
  return (level, message, fields) => tell(log, { ...JSON.parse(fields), level, message });
}
