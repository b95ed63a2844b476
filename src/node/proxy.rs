use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use napi::Status;
use napi::bindgen_prelude::{Buffer, Promise};
use napi::threadsafe_function::ThreadsafeFunction;
use napi_derive::napi;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::Value;
use std::sync::Arc;
use tokio::time::timeout;

use super::bytes::Bytes;
use super::configuration::Configuration;
use super::queue::MessageRequest;
use super::to_js;
use crate::auth::Tokens;
use crate::error::Result;
use crate::proxy::{self, HttpProxy};
use crate::queue::ticket::{self, Ticket};
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

/// Why an answer to a delivery is not one of a World that knows our token; `null` where it is.
#[napi(catch_unwind)]
pub fn why_not_taken(answer: DeliveryAnswer) -> Option<String> {
    proxy::check_answer("The app", &answer.as_seen()).err()
}

#[napi(object, object_from_js = false)]
pub struct DeliveryRequest {
    /// `flow` or `step`.
    pub kind: String,
    /// JSON of `[name, value]` pairs.
    pub headers: String,
    pub body: Buffer,
    /// For `beginDelivery`.
    pub ticket: Option<String>,
}

/// A delivery is about to begin here. False: it must not, for its worker has given it back.
#[napi(catch_unwind)]
pub fn begin_delivery(ticket: String) -> bool {
    ticket::begin(&ticket)
}

#[napi(object, object_to_js = false)]
pub struct DeliveryAnswer {
    pub status: u32,
    pub body: String,
    /// The answer has the mark of a World.
    pub of_world: bool,
}

/// Never rejects: what the user's function throws is an answer of status 500. Weak: it does not keep
/// the process alive.
pub type EntrypointFunction =
    ThreadsafeFunction<DeliveryRequest, Promise<DeliveryAnswer>, DeliveryRequest, Status, false, true>;

/// Executes messages in this process.
#[derive(Clone)]
pub struct FunctionProxy {
    entrypoint: Arc<EntrypointFunction>,
    tokens: Arc<Tokens>,
    token: HeaderValue,
}

const ENTRYPOINT: &str = "The entrypoint";

impl FunctionProxy {
    pub fn new(entrypoint: EntrypointFunction, tokens: &Tokens) -> Result<Self> {
        let token = proxy::token(tokens)?;
        Ok(Self { entrypoint: Arc::new(entrypoint), tokens: Arc::new(tokens.clone()), token })
    }

    /// Fails where nobody answers: the function never rejects, so its thread has ended.
    async fn call(
        &self,
        kind: Kind,
        headers: &HeaderMap,
        body: Vec<u8>,
        ticket: &Ticket,
    ) -> std::result::Result<DeliveryAnswer, String> {
        let kind = match kind {
            Kind::Flow => "flow",
            Kind::Step => "step",
        };
        ticket.stays_here();
        let request = DeliveryRequest {
            kind: kind.to_owned(),
            headers: json(headers),
            body: body.into(),
            ticket: ticket.id().map(str::to_owned),
        };
        let answer = async { self.entrypoint.call_async_catch(request).await?.await }.await;
        answer.map_err(|error| error.to_string())
    }

    async fn outcome(self, delivery: Delivery) -> Outcome {
        let headers = proxy::headers(&delivery, self.token.clone(), false);
        let answer = match self.call(delivery.kind, &headers, delivery.body, &delivery.ticket).await {
            Ok(answer) => answer,
            Err(error) => return Outcome::Unreachable { error },
        };
        match proxy::check_answer(ENTRYPOINT, &answer.as_seen()) {
            Ok(()) => proxy::outcome(ENTRYPOINT, &answer.as_seen()),
            Err(error) => match self.probe().await {
                Ok(()) => Outcome::NotTaken { error },
                Err(_) => Outcome::Unreachable { error },
            },
        }
    }

    /// Whether the functions take deliveries, or why not.
    async fn probe(&self) -> std::result::Result<(), String> {
        for kind in [Kind::Flow, Kind::Step] {
            let headers = proxy::probe_headers(self.token.clone(), &Ticket::default());
            let answer =
                timeout(proxy::PROBE_TIMEOUT, self.call(kind, &headers, Vec::new(), &Ticket::default()))
                    .await
                    .map_err(|_| {
                        format!("{ENTRYPOINT} did not answer within {:?}", proxy::PROBE_TIMEOUT)
                    })??;
            proxy::check_answer(ENTRYPOINT, &answer.as_seen())?;
        }
        Ok(())
    }
}

impl DeliveryAnswer {
    fn as_seen(&self) -> proxy::Answer<'_> {
        proxy::Answer {
            status: u16::try_from(self.status).unwrap_or(500),
            of_world: self.of_world,
            body: self.body.as_bytes(),
        }
    }
}

impl Deliver for FunctionProxy {
    fn deliver(&self, delivery: Delivery) -> BoxFuture<'static, Outcome> {
        let tokens = Arc::clone(&self.tokens);
        self.clone().outcome(delivery).map(move |outcome| proxy::hide_tokens(outcome, &tokens)).boxed()
    }

    fn ready(&self) -> BoxFuture<'static, std::result::Result<(), String>> {
        let proxy = self.clone();
        async move { proxy.probe().await.map_err(|error| proxy.tokens.hide_in(&error)) }.boxed()
    }
}

fn json(headers: &HeaderMap) -> String {
    // Only what is visible ASCII was let in.
    pairs(headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default())))
}

fn pairs<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    Value::from_iter(headers.map(|(name, value)| Value::from_iter([name, value]))).to_string()
}
