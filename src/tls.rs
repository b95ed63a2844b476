//! Whom TLS trusts: the root certificates that Node trusts, those of NODE_EXTRA_CA_CERTS among them. Images
//! such as `node:22-slim` have no certificates of the system's, and a private authority is given to Node.
//!
//! JavaScript hands the certificates over before the first TLS connection, once in a process: they are
//! Node's, not a World's.

use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::error::{Error, Result};

static ROOTS: OnceLock<Roots> = OnceLock::new();

struct Roots {
    store: Arc<RootCertStore>,
    /// The same, for PostgreSQL's client.
    pem: Vec<u8>,
}

/// Trusts certificates in PEM form. What cannot be the root of a chain is left out, as Node does.
pub fn trust(pems: &[String]) {
    ROOTS.get_or_init(|| {
        let mut store = RootCertStore::empty();
        let mut text = String::new();
        for der in pems.iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes())).flatten() {
            let lines = format!(
                "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
                STANDARD.encode(der.as_ref())
            );
            if store.add(der).is_ok() {
                text.push_str(&lines);
            }
        }
        Roots { store: Arc::new(store), pem: text.into_bytes() }
    });
}

pub fn has_roots() -> bool {
    ROOTS.get().is_some()
}

pub fn roots_pem() -> Option<&'static [u8]> {
    ROOTS.get().map(|roots| roots.pem.as_slice())
}

/// For HTTPS. Without roots, which plain HTTP does not need, it trusts nobody.
pub fn client_config() -> Result<ClientConfig> {
    let store =
        ROOTS.get().map_or_else(|| Arc::new(RootCertStore::empty()), |roots| Arc::clone(&roots.store));
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Configuration(format!("TLS could not be set up: {error}")))?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The cause of a failed handshake, with what may be done about it.
pub fn explain(error: String) -> String {
    if error.contains("UnknownIssuer") {
        format!(
            "{error}. Trusted are the certificates that Node trusts: give the file of a private authority as NODE_EXTRA_CA_CERTS, or PostgreSQL's as sslrootcert in its URL"
        )
    } else {
        error
    }
}
