import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/**
 * A certificate authority of our own, and a certificate that it gave to a server. Made by OpenSSL.
 *
 * @param {{ after: (cleanup: () => void) => void }} t
 * @param {string[]} names of the server
 */
export function privateAuthority(t, names) {
  const folder = mkdtempSync(join(tmpdir(), 'authority-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const path = (/** @type {string} */ name) => join(folder, name);
  const openssl = (/** @type {string[]} */ ...args) =>
    execFileSync('openssl', args, { cwd: folder, stdio: ['ignore', 'ignore', 'pipe'] });
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];

  const ca = [
    '-keyout',
    'ca.key',
    '-out',
    'ca.pem',
    '-days',
    '2',
    '-subj',
    '/CN=Private authority',
  ];
  openssl('req', '-x509', ...newKey, ...ca);
  openssl('req', ...newKey, '-keyout', 'server.key', '-out', 'server.csr', '-subj', '/CN=server');
  const alternatives = names.map((name) => (/^[\d.]+$/.test(name) ? `IP:${name}` : `DNS:${name}`));
  writeFileSync(path('extensions'), `subjectAltName=${alternatives}\nbasicConstraints=CA:FALSE\n`);
  const signed = ['-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-out', 'server.pem'];
  openssl('x509', '-req', '-in', 'server.csr', ...signed, '-days', '2', '-extfile', 'extensions');

  return {
    /** For NODE_EXTRA_CA_CERTS, or `sslrootcert`. */
    ca: path('ca.pem'),
    key: readFileSync(path('server.key')),
    cert: readFileSync(path('server.pem')),
  };
}

/** Of a machine without certificates of the system's, such as `node:22-slim`. */
export const WITHOUT_SYSTEM_ROOTS = {
  SSL_CERT_FILE: '/nonexistent/ca-certificates.crt',
  SSL_CERT_DIR: '/nonexistent/certs',
};
