const SIGNALS = /** @type {const} */ (['SIGTERM', 'SIGINT']);

/**
 * The first signal closes, and then ends the process as if nobody had listened. A second one does so
 * at once.
 * @param {() => Promise<void>} close
 * @returns {() => void} stops listening
 */
export function closeOnSignals(close) {
  /** @param {NodeJS.Signals} signal */
  async function onSignal(signal) {
    stop();
    // What could not be handed back is found when its lease expires.
    await close().catch(() => {});
    process.kill(process.pid, signal);
  }
  function stop() {
    for (const signal of SIGNALS) process.off(signal, onSignal);
  }
  for (const signal of SIGNALS) process.on(signal, onSignal);
  return stop;
}
