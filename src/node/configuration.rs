use napi_derive::napi;
use sha2::{Digest, Sha256};

use super::to_js;
use crate::config::{Config, Environment, Options, redact};
use crate::error::{Error, Result};
use crate::tls;

/// A resolved configuration. Made from the options of a call and a snapshot of the environment.
#[napi]
pub struct Configuration {
    pub(super) config: Config,
}

#[napi]
impl Configuration {
    #[napi(constructor, catch_unwind)]
    pub fn new(options: String, environment: String) -> napi::Result<Self> {
        resolve(&options, &environment).map(|config| Self { config }).map_err(to_js)
    }

    /// Worlds of equal keys share one core. A digest: the parts hold a password.
    #[napi(getter, catch_unwind)]
    pub fn core_key(&self) -> String {
        digest(&format!("{:?} {}", self.config.database, self.config.queue.job_prefix))
    }

    /// Drivers of equal keys share one queue, so that a push can be claimed by the worker next to it. All
    /// that the queue and its proxy do depends on these parts.
    #[napi(getter, catch_unwind)]
    pub fn queue_key(&self) -> String {
        let Config { database, queue, target, tokens, .. } = &self.config;
        digest(&format!("{database:?} {queue:?} {target:?} {:?}", tokens.all()))
    }

    #[napi(getter, catch_unwind)]
    pub fn queue_schema(&self) -> String {
        self.config.database.queue_schema.clone()
    }

    #[napi(getter, catch_unwind)]
    pub fn redacted_connection_string(&self) -> String {
        redact(&self.config.database.url)
    }

    /// Whether [`trust`] must be called before this configuration is used.
    #[napi(getter, catch_unwind)]
    pub fn needs_roots(&self) -> bool {
        !tls::has_roots() && self.config.uses_tls()
    }

    #[napi(getter, catch_unwind)]
    pub fn token_weakness(&self) -> Option<&'static str> {
        self.config.tokens.weakness()
    }

    /// Whether a delivery with this token may be executed.
    #[napi(catch_unwind)]
    pub fn accepts_token(&self, token: String) -> bool {
        self.config.check_start().is_ok() && self.config.tokens.accept(&token)
    }

    /// A text from outside, in which the token may be quoted, for messages.
    #[napi(catch_unwind)]
    pub fn hide_tokens(&self, text: String) -> String {
        self.config.tokens.hide_in(&text)
    }

    #[napi(catch_unwind)]
    pub fn check_start(&self) -> napi::Result<()> {
        self.config.check_start().map_err(to_js)
    }
}

/// Certificates in PEM form that TLS trusts in this process.
#[napi(catch_unwind)]
pub fn trust(certificates: Vec<String>) {
    tls::trust(&certificates);
}

fn resolve(options: &str, environment: &str) -> Result<Config> {
    let options: Options = serde_json::from_str(options)
        // The reason could quote a value, which may be a password.
        .map_err(|_| Error::Configuration("an option has the wrong type".to_owned()))?;
    let environment: Environment = serde_json::from_str(environment)
        .map_err(|error| Error::Configuration(format!("unreadable environment: {error}")))?;
    Config::resolve(&options, &environment)
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}
