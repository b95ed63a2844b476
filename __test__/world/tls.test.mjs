import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { appendFile, chmod, chown, stat } from 'node:fs/promises';
import path from 'node:path';
import { test } from 'node:test';
import { createWorld } from '../../index.js';
import { startPostgres } from '../../scripts/support/postgres.mjs';
import { refusal } from '../storage/fixture.mjs';

/** @param {string} directory @param {boolean} isCa as `openssl req -x509` makes it, unless told otherwise */
function selfSigned(directory, isCa) {
  const [key, certificate] = [path.join(directory, 'tls.key'), path.join(directory, 'tls.crt')];
  const options = ['-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=localhost'];
  const extensions = ['-addext', 'subjectAltName=DNS:localhost'];
  if (!isCa) extensions.push('-addext', 'basicConstraints=critical,CA:FALSE');
  execFileSync(
    'openssl',
    ['req', '-x509', ...options, ...extensions, '-keyout', key, '-out', certificate],
    { stdio: 'ignore' },
  );
  return [certificate, key];
}

function hasOpenssl() {
  try {
    return execFileSync('openssl', ['version']).length > 0;
  } catch {
    return false;
  }
}

test('what TLS refuses is told at once, with the cure', {
  skip: !hasOpenssl() && 'needs openssl',
}, async (t) => {
  // A server of our own, also where another one is given: it is going to be restarted.
  const { WORKFLOW_POSTGRES_URL, ...others } = process.env;
  process.env = others;
  t.after(() => Object.assign(process.env, WORKFLOW_POSTGRES_URL && { WORKFLOW_POSTGRES_URL }));
  const server = await startPostgres();
  t.after(() => server.stop());
  const dataDir = /** @type {string} */ (server.dataDir);
  const { uid, gid } = await stat(dataDir);
  const answer = async (/** @type {string} */ search) => {
    const connection = new URL(server.url);
    connection.hostname = 'localhost';
    connection.search = search;
    const world = createWorld({ connectionString: connection.href });
    try {
      return await refusal(world.runs.list());
    } finally {
      await world.close();
    }
  };
  await appendFile(
    path.join(dataDir, 'postgresql.conf'),
    "\nssl = on\nssl_cert_file = 'tls.crt'\nssl_key_file = 'tls.key'\n",
  );
  const serve = async (/** @type {boolean} */ isCa) => {
    const [certificate, key] = selfSigned(dataDir, isCa);
    for (const file of [certificate, key]) {
      await chown(file, uid, gid);
      await chmod(file, 0o600);
    }
    await server.restart();
    return certificate;
  };

  let certificate = await serve(true);
  const cases = [
    ['sslmode=verify-full', /sslmode=require/],
    [`sslmode=verify-full&sslrootcert=${certificate}`, /self-signed.*CA:FALSE/],
    ['sslmode=no-verify', /sslmode=require does the same/],
    ['sslmode=verify-full&sslrootcert=/no/such/file', /sslrootcert/],
  ];
  for (const [search, cure] of cases) {
    const began = Date.now();
    const error = await answer(String(search));
    assert.equal(error.code, 'CONFIGURATION', error.stack);
    assert.match(error.message, /** @type {RegExp} */ (cure));
    assert.ok(Date.now() - began < 5000);
  }
  certificate = await serve(false);
  assert.match((await answer('sslmode=verify-full')).message, /sslrootcert/);
  for (const search of ['sslmode=require', `sslmode=verify-full&sslrootcert=${certificate}`]) {
    assert.equal((await answer(search)).code, 'NOT_SET_UP', search);
  }
});
