use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use napi::Status;
use napi::bindgen_prelude::{Buffer, Promise};
use napi::threadsafe_function::ThreadsafeFunction;
use napi_derive::napi;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::Value;
use std::sync::Arc;

use super::bytes::Bytes;
use super::configuration::Configuration;
use super::queue::MessageRequest;
use super::to_js;
use crate::auth::Tokens;
use crate::error::Result;
use crate::proxy::{self, HttpProxy};
use crate::queue::{Deliver, Delivery, Kind, Outcome};

/// Executes messages by HTTP, for a queue of the user's own.
#[napi(js_name = "HttpProxy")]
pub struct NodeHttpProxy {
    proxy: HttpProxy,
}

#[napi(object, object_from_js = false)]
pub struct ProxyAnswer {
    pub status: u32,
    /// JSON of `[name, value]` pairs.
    pub headers: String,
    pub body: Buffer,
}

#[napi]
impl NodeHttpProxy {
    #[napi(constructor, catch_unwind)]
    pub fn new(configuration: &Configuration) -> napi::Result<Self> {
        let config = &configuration.config;
        let proxy = HttpProxy::for_foreign_queue(&config.target, &config.tokens).map_err(to_js)?;
        Ok(Self { proxy })
    }

    #[napi]
    pub async fn send(
        &self,
        message: MessageRequest,
        #[napi(ts_arg_type = "Uint8Array")] body: Bytes,
        attempt: u32,
    ) -> napi::Result<ProxyAnswer> {
        let delivery = message.into_delivery(body, attempt).map_err(to_js)?;
        let answer = self.proxy.proxy(&delivery).await.map_err(to_js)?;
        Ok(ProxyAnswer {
            status: answer.status.into(),
            headers: pairs(answer.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))),
            body: answer.body.into(),
        })
    }
}

/// The headers of a delivery from a queue of the user's own to a function, as JSON of pairs.
#[napi(catch_unwind)]
pub fn foreign_delivery_headers(
    configuration: &Configuration,
    message: MessageRequest,
    attempt: u32,
) -> napi::Result<String> {
    let delivery = message.into_delivery(Bytes(Vec::new()), attempt).map_err(to_js)?;
    let token = proxy::token(&configuration.config.tokens).map_err(to_js)?;
    Ok(json(&proxy::headers(&delivery, token, true)))
}

#[napi(object, object_from_js = false)]
pub struct DeliveryRequest {
    /// `flow` or `step`.
    pub kind: String,
    /// JSON of `[name, value]` pairs.
    pub headers: String,
    pub body: Buffer,
}

#[napi(object, object_to_js = false)]
pub struct DeliveryAnswer {
    pub status: u32,
    pub body: String,
}

/// Never rejects: what the user's function throws is an answer of status 500. Weak: it does not keep
/// the process alive.
pub type EntrypointFunction =
    ThreadsafeFunction<DeliveryRequest, Promise<DeliveryAnswer>, DeliveryRequest, Status, false, true>;

/// Executes messages in this process.
pub struct FunctionProxy {
    entrypoint: Arc<EntrypointFunction>,
    token: HeaderValue,
}

impl FunctionProxy {
    pub fn new(entrypoint: EntrypointFunction, tokens: &Tokens) -> Result<Self> {
        Ok(Self { entrypoint: Arc::new(entrypoint), token: proxy::token(tokens)? })
    }
}

impl Deliver for FunctionProxy {
    fn deliver(&self, delivery: Delivery) -> BoxFuture<'static, Outcome> {
        let headers = json(&proxy::headers(&delivery, self.token.clone(), false));
        let kind = match delivery.kind {
            Kind::Flow => "flow",
            Kind::Step => "step",
        };
        let request = DeliveryRequest { kind: kind.to_owned(), headers, body: delivery.body.into() };
        let entrypoint = Arc::clone(&self.entrypoint);
        async move {
            let answer = async { entrypoint.call_async_catch(request).await?.await }.await;
            match answer {
                Ok(answer) => {
                    let status = u16::try_from(answer.status).unwrap_or(500);
                    proxy::outcome("The entrypoint", status, answer.body.as_bytes())
                }
                // It never rejects, so its thread has ended, and nobody will execute the message.
                Err(error) => Outcome::Unreachable { error: error.to_string() },
            }
        }
        .boxed()
    }
}

fn json(headers: &HeaderMap) -> String {
    // Only what is visible ASCII was let in.
    pairs(headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default())))
}

fn pairs<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    Value::from_iter(headers.map(|(name, value)| Value::from_iter([name, value]))).to_string()
}
