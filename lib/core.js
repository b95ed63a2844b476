import { call, callSync } from './errors.js';
import { logger } from './log.js';
import { native } from './native.js';
import { share } from './shared.js';

/**
 * The core of this configuration, which all Worlds and drivers of the process share.
 * @param {import('../native/index.cjs').Configuration} configuration
 * @param {(line: import('../index.js').LogLine) => void} [log]
 */
export function shareCore(configuration, log) {
  return share(
    `core ${configuration.coreKey}`,
    () => openCore(configuration, log),
    (core) => call(core.close()),
  );
}

/**
 * A core for one user alone.
 * @param {import('../native/index.cjs').Configuration} configuration
 * @param {(line: import('../index.js').LogLine) => void} [log]
 */
export function openCore(configuration, log) {
  return callSync(() => new (native().Core)(configuration, logger(log)));
}
