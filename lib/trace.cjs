const { readFileSync } = require('node:fs');
const { join } = require('node:path');

/**
 * Never called: names the files that are loaded by ways which bundlers cannot see, so that file
 * tracing copies them (`output: 'standalone'`). Only CommonJS with `__dirname` is traced.
 */
exports.trace = () => {
  readFileSync(join(__dirname, '../package.json'));
  readFileSync(join(__dirname, '../index.js'));
  readFileSync(join(__dirname, '../upstash.js'));
  readFileSync(join(__dirname, './calls.js'));
  readFileSync(join(__dirname, './configuration.js'));
  readFileSync(join(__dirname, './core.js'));
  readFileSync(join(__dirname, './drizzle.js'));
  readFileSync(join(__dirname, './entrypoints.js'));
  readFileSync(join(__dirname, './errors.js'));
  readFileSync(join(__dirname, './events.js'));
  readFileSync(join(__dirname, './executions.js'));
  readFileSync(join(__dirname, './exit.js'));
  readFileSync(join(__dirname, './foreign.js'));
  readFileSync(join(__dirname, './handler.js'));
  readFileSync(join(__dirname, './health.js'));
  readFileSync(join(__dirname, './input.js'));
  readFileSync(join(__dirname, './log.js'));
  readFileSync(join(__dirname, './messages.js'));
  readFileSync(join(__dirname, './native.js'));
  readFileSync(join(__dirname, './pgboss.js'));
  readFileSync(join(__dirname, './proxies.js'));
  readFileSync(join(__dirname, './qstash.js'));
  readFileSync(join(__dirname, './queue.js'));
  readFileSync(join(__dirname, './shared.js'));
  readFileSync(join(__dirname, './signals.js'));
  readFileSync(join(__dirname, './storage.js'));
  readFileSync(join(__dirname, './streams.js'));
  readFileSync(join(__dirname, './tables.js'));
  readFileSync(join(__dirname, './trace.cjs'));
  readFileSync(join(__dirname, './upstash.js'));
  readFileSync(join(__dirname, './world.js'));
  readFileSync(join(__dirname, '../native/index.cjs'));
  readFileSync(join(__dirname, '../native/world-postgres.linux-x64-gnu.node'));
  readFileSync(join(__dirname, '../native/world-postgres.linux-arm64-gnu.node'));
  readFileSync(join(__dirname, '../native/world-postgres.linux-x64-musl.node'));
  readFileSync(join(__dirname, '../native/world-postgres.linux-arm64-musl.node'));
  readFileSync(join(__dirname, '../native/world-postgres.darwin-x64.node'));
  readFileSync(join(__dirname, '../native/world-postgres.darwin-arm64.node'));
  readFileSync(join(__dirname, '../native/world-postgres.win32-x64-msvc.node'));
};
