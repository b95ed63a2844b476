use std::sync::Arc;

use napi_derive::napi;

use super::bytes::Bytes;
use super::configuration::Configuration;
use super::queue::{MessageRequest, kind};
use super::to_js;
use crate::error::Error;
use crate::queue;
use crate::signature::{Refusal, Signed};

/// Publishes messages to QStash, and knows its deliveries.
#[napi(js_name = "QStash")]
pub struct NodeQStash {
    qstash: Arc<queue::QStash>,
    has_signing_keys: bool,
}

#[napi]
impl NodeQStash {
    /// Opens nothing. The configuration must have been made with `qstash`.
    #[napi(constructor, catch_unwind)]
    pub fn new(configuration: &Configuration) -> napi::Result<Self> {
        let Some(config) = configuration.config.qstash.clone() else {
            return Err(to_js(Error::Configuration("QStash is not configured".to_owned())));
        };
        let has_signing_keys = !config.signing_keys.is_empty();
        let qstash = queue::QStash::new(config).map_err(to_js)?;
        Ok(Self { qstash, has_signing_keys })
    }

    #[napi(getter, catch_unwind)]
    pub fn has_signing_keys(&self) -> bool {
        self.has_signing_keys
    }

    /// Resolves when QStash has the message.
    #[napi]
    pub async fn publish(
        &self,
        message: MessageRequest,
        #[napi(ts_arg_type = "Uint8Array")] body: Bytes,
        attempt: u32,
    ) -> napi::Result<()> {
        let delay = queue::delay_of_ms(message.delay_ms.unwrap_or(0));
        let delivery = message.into_delivery(body, attempt).map_err(to_js)?;
        self.qstash.publish(delivery, delay).await.map_err(to_js)
    }

    /// Throws, with the reason, unless the signature is QStash's, for now and for this app.
    #[napi(catch_unwind)]
    pub fn verify(&self, signature: String, kind_name: String) -> napi::Result<SignedDelivery> {
        let kind = kind(&kind_name).map_err(to_js)?;
        let signed = self.qstash.verify(&signature, kind).map_err(refused)?;
        Ok(SignedDelivery { signed })
    }
}

/// A delivery that QStash has signed, before its body was looked at.
#[napi]
pub struct SignedDelivery {
    signed: Signed,
}

#[napi]
impl SignedDelivery {
    /// Throws unless this is the body that was signed.
    #[napi(catch_unwind, ts_args_type = "body: Uint8Array")]
    pub fn check_body(&self, body: &[u8]) -> napi::Result<()> {
        self.signed.accept(body).map_err(refused)
    }
}

fn refused(refusal: Refusal) -> napi::Error {
    napi::Error::from_reason(refusal.to_string())
}
