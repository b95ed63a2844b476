/**
 * The certificates that Node trusts, in PEM form: those that it brings, and those of NODE_EXTRA_CA_CERTS.
 * @returns {string[]}
 */
export function rootCertificates() {
  const tls = process.getBuiltinModule('node:tls');
  // Since Node 22.15, and with what flags such as --use-system-ca add.
  const all = Reflect.get(tls, 'getCACertificates')?.('default');
  return all ?? [...tls.rootCertificates, ...extraCertificates()];
}

function extraCertificates() {
  const path = process.env.NODE_EXTRA_CA_CERTS;
  if (!path) return [];
  try {
    return [process.getBuiltinModule('node:fs').readFileSync(path, 'utf8')];
  } catch {
    // Node has warned of it when it started.
    return [];
  }
}
