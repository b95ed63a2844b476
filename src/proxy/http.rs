//! Deliveries as HTTP requests to the routes that the SDK generates in the app.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::header::HeaderValue;
use reqwest::redirect::Policy;
use tokio::time::timeout;

use super::{Answer, PROBE_TIMEOUT, WORLD, WORLD_HEADER};
use crate::auth::Tokens;
use crate::config::{Target, without_secrets};
use crate::error::{Error, Result};
use crate::queue::ticket::{HeldTicket, Ticket};
use crate::queue::{Deliver, Delivery, Kind, Outcome};
use crate::tls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than the 5 s after which Node closes a connection that rests: a request must not meet that.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// Finds a peer that is gone without a word while a step runs for hours.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// An app with time to spare has answered a probe by then.
const LEISURE: Duration = Duration::from_millis(250);
/// An answer is a few bytes of JSON; more than this is not read.
const LONGEST_ANSWER: usize = 64 * 1024;

#[derive(Clone)]
pub struct HttpProxy {
    client: reqwest::Client,
    base_url: Arc<str>,
    /// The same for messages.
    shown_url: Arc<str>,
    tokens: Arc<Tokens>,
    token: HeaderValue,
    /// The app took no deliveries when it was last asked. A gateway may take connections all the same, and
    /// only an answer of the app's own says that it is back.
    gone: Arc<AtomicBool>,
    place: Arc<Place>,
    /// For deliveries of a queue that is not ours.
    foreign: bool,
}

/// Where deliveries have begun so far. Behind a load balancer it may be here and elsewhere.
#[derive(Default)]
struct Place {
    here: AtomicBool,
    elsewhere: AtomicBool,
}

impl Place {
    fn note(&self, ticket: &Ticket) {
        let place = if ticket.has_begun() { &self.here } else { &self.elsewhere };
        place.store(true, Ordering::Relaxed);
    }

    /// Whether all deliveries begin in this very process.
    fn is_here(&self) -> bool {
        self.here.load(Ordering::Relaxed) && !self.elsewhere.load(Ordering::Relaxed)
    }
}

/// An answer as it came.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl HttpProxy {
    pub fn new(target: &Target, tokens: &Tokens) -> Result<Self> {
        let mut client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config()?)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE)
            .tcp_keepalive(KEEPALIVE)
            .redirect(Policy::none())
            // The variable HTTP_PROXY is for what goes to the internet; a delivery carries the token.
            .no_proxy();
        let failed = |error: reqwest::Error| {
            Error::Configuration(format!("No HTTP client could be made: {}", describe(&error)))
        };
        if let Some(http_proxy) = &target.http_proxy {
            client = client.proxy(reqwest::Proxy::all(http_proxy).map_err(failed)?);
        }
        let client = client.build().map_err(failed)?;
        Ok(Self {
            client,
            base_url: target.base_url.trim_end_matches('/').into(),
            shown_url: without_secrets(&target.base_url).into(),
            tokens: Arc::new(tokens.clone()),
            token: super::token(tokens)?,
            gone: Arc::default(),
            place: Arc::default(),
            foreign: false,
        })
    }

    /// The same for a queue of the user's own.
    pub fn for_foreign_queue(target: &Target, tokens: &Tokens) -> Result<Self> {
        Self::new(target, tokens).map(|proxy| Self { foreign: true, ..proxy })
    }

    /// Sends a message and returns the answer as it is.
    pub async fn proxy(&self, delivery: &Delivery) -> Result<Response> {
        let unreachable = |error: reqwest::Error| Error::Unreachable(describe(&error));
        let response = self.send(delivery).await.map_err(unreachable)?;
        let status = response.status().as_u16();
        let headers = response
            .headers()
            .iter()
            // A character per byte, as JavaScript's Headers have it.
            .map(|(name, value)| {
                (name.as_str().to_owned(), value.as_bytes().iter().copied().map(char::from).collect())
            })
            .collect();
        let body = response.bytes().await.map_err(unreachable)?;
        Ok(Response { status, headers, body: body.into() })
    }

    async fn send(&self, delivery: &Delivery) -> reqwest::Result<reqwest::Response> {
        self.client
            .post(self.url(delivery.kind))
            .headers(super::headers(delivery, self.token.clone(), self.foreign))
            .body(delivery.body.clone())
            .send()
            .await
    }

    fn url(&self, kind: Kind) -> String {
        let route = match kind {
            Kind::Flow => "flow",
            Kind::Step => "step",
        };
        format!("{}/.well-known/workflow/v1/{route}", self.base_url)
    }

    async fn outcome(self, delivery: Delivery) -> Outcome {
        if self.gone.load(Ordering::Relaxed)
            && let Err(error) = self.probe().await
        {
            return Outcome::Unreachable { error };
        }
        if self.place.is_here() {
            delivery.ticket.stays_here();
        }
        let response = match self.send(&delivery).await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Outcome::Unreachable { error: describe(&error) },
            Err(error) => return self.broken(describe(&error)).await,
        };
        let (status, of_world) = (response.status().as_u16(), is_of_world(&response));
        let body = match start_of(response).await {
            Ok(body) => body,
            // The handler's answer is what acknowledges; half of one does not.
            Err(error) if of_world => return self.broken(describe(&error)).await,
            Err(error) => describe(&error).into_bytes(),
        };
        let answer = Answer { status, of_world, body: &body };
        match super::check_answer(&self.shown_url, &answer) {
            Ok(()) => {
                self.place.note(&delivery.ticket);
                super::outcome(&self.shown_url, &answer)
            }
            Err(error) => match self.probe().await {
                Ok(()) => Outcome::NotTaken { error },
                Err(_) => Outcome::Unreachable { error },
            },
        }
    }

    /// A delivery that began and had no end of its own: the app may have died of it. Those to come wait
    /// until it answers.
    async fn broken(&self, error: String) -> Outcome {
        // The probe records its result in `gone`.
        let _ = self.probe().await;
        Outcome::Failed { error }
    }

    /// Whether the app takes deliveries, on both routes, or why not.
    async fn probe(&self) -> std::result::Result<(), String> {
        let (flow, step) = tokio::join!(self.probe_route(Kind::Flow), self.probe_route(Kind::Step));
        let found = flow.and(step);
        self.gone.store(found.is_err(), Ordering::Relaxed);
        found
    }

    async fn probe_route(&self, kind: Kind) -> std::result::Result<(), String> {
        let ticket = HeldTicket::issue();
        let headers = super::probe_headers(self.token.clone(), ticket.ticket());
        let request = self.client.post(self.url(kind)).headers(headers).send();
        let look = async {
            let response = request.await.map_err(|error| describe(&error))?;
            let (status, of_world) = (response.status().as_u16(), is_of_world(&response));
            let body = start_of(response).await.map_err(|error| describe(&error))?;
            super::check_answer(&self.shown_url, &Answer { status, of_world, body: &body })?;
            self.place.note(ticket.ticket());
            Ok(())
        };
        timeout(PROBE_TIMEOUT, look)
            .await
            .unwrap_or_else(|_| Err(format!("{} did not answer within {PROBE_TIMEOUT:?}", self.shown_url)))
    }
}

/// The beginning of an answer, or all of it.
async fn start_of(mut response: reqwest::Response) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while body.len() <= LONGEST_ANSWER
        && let Some(chunk) = response.chunk().await?
    {
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn is_of_world(response: &reqwest::Response) -> bool {
    response.headers().get(WORLD_HEADER).is_some_and(|world| world == WORLD)
}

impl Deliver for HttpProxy {
    fn deliver(&self, delivery: Delivery) -> BoxFuture<'static, Outcome> {
        let tokens = Arc::clone(&self.tokens);
        self.clone().outcome(delivery).map(move |outcome| super::hide_tokens(outcome, &tokens)).boxed()
    }

    fn is_local(&self) -> bool {
        self.place.is_here()
    }

    fn is_at_leisure(&self) -> BoxFuture<'static, bool> {
        let proxy = self.clone();
        async move { matches!(timeout(LEISURE, proxy.probe_route(Kind::Step)).await, Ok(Ok(()))) }.boxed()
    }

    fn ready(&self) -> BoxFuture<'static, std::result::Result<(), String>> {
        let proxy = self.clone();
        async move { proxy.probe().await.map_err(|error| proxy.tokens.hide_in(&error)) }.boxed()
    }
}

/// reqwest's own text is vague ("error sending request"); the cause is in its sources.
pub fn describe(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    tls::explain(text)
}
