//! Deliveries as HTTP requests to the routes that the SDK generates in the app.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::StatusCode;
use reqwest::header::{HeaderValue, LOCATION};
use reqwest::redirect::Policy;
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::{Host, Url};

use crate::auth::Tokens;
use crate::config::Target;
use crate::error::{Error, Result};
use crate::queue::{Deliver, Delivery, Kind, Outcome};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an app may take for the answer to a mere HEAD.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than the 5 s after which Node closes a connection that rests: a request must not meet that.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// Finds a peer that is gone without a word while a step runs for hours.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// An answer is a few bytes of JSON; more than this is not read.
const LONGEST_ANSWER: usize = 64 * 1024;

#[derive(Clone)]
pub struct HttpProxy {
    client: reqwest::Client,
    base: Arc<Url>,
    base_url: Arc<str>,
    token: HeaderValue,
    probed: bool,
    /// The app did not answer when it was last asked. Whoever takes connections may be a gateway, and only
    /// an answer of the app's own says that it is back.
    gone: Arc<AtomicBool>,
    /// For deliveries of a queue that is not ours.
    foreign: bool,
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
        // Another part of the process may have installed one; any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let base = Url::parse(&target.base_url)
            .map_err(|error| Error::Configuration(format!("The base URL is not a URL: {error}")))?;
        let local = is_loopback(&base);
        let mut client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE)
            .tcp_keepalive(KEEPALIVE)
            .redirect(Policy::none());
        if local {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|error| {
            Error::Configuration(format!("No HTTP client could be made: {}", describe(&error)))
        })?;
        Ok(Self {
            client,
            base_url: target.base_url.trim_end_matches('/').into(),
            base: Arc::new(base),
            token: super::token(tokens)?,
            // Behind a proxy, a direct connection says nothing.
            probed: local || !has_system_proxy(),
            gone: Arc::default(),
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
        if self.gone.load(Ordering::Relaxed) && self.has_gone().await {
            return Outcome::Unreachable { error: format!("{} does not answer", self.base_url) };
        }
        let mut response = match self.send(&delivery).await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Outcome::Unreachable { error: describe(&error) },
            Err(error) => return self.broken(describe(&error)).await,
        };
        let status = response.status();
        let location = response.headers().get(LOCATION).cloned();
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break,
                // The handler's answer is what acknowledges; half of one does not.
                Err(error) => return self.broken(describe(&error)).await,
            }
            if body.len() > LONGEST_ANSWER {
                break;
            }
        }
        if status.is_redirection() {
            return Outcome::Failed {
                error: format!(
                    "{} answered {status}, a redirect to {}. Workflow routes must answer themselves: set \
                     WORKFLOW_POSTGRES_APP_URL to the final address, and keep middleware away from \
                     /.well-known/workflow/",
                    self.base_url,
                    location.as_ref().and_then(|value| value.to_str().ok()).unwrap_or("nowhere"),
                ),
            };
        }
        match super::outcome(&self.base_url, status.as_u16(), &body) {
            Outcome::Failed { error }
                if status == StatusCode::SERVICE_UNAVAILABLE && self.has_gone().await =>
            {
                Outcome::Unreachable { error }
            }
            Outcome::Failed { error } if is_of_gateway(status) => self.broken(error).await,
            outcome => outcome,
        }
    }

    /// A delivery that began and had no end of its own: the app may have died of it. Those to come wait
    /// until it answers.
    async fn broken(&self, error: String) -> Outcome {
        self.has_gone().await;
        Outcome::Failed { error }
    }

    /// Whether only a gateway is left of the app.
    async fn has_gone(&self) -> bool {
        let gone = !self.answers().await;
        self.gone.store(gone, Ordering::Relaxed);
        gone
    }

    /// Whether the app answers, whatever it says to a request that asks for nothing.
    async fn answers(&self) -> bool {
        let request = self.client.head(self.url(Kind::Flow)).timeout(PROBE_TIMEOUT);
        request.send().await.is_ok_and(|response| !is_of_gateway(response.status()))
    }

    async fn takes_deliveries(self) -> bool {
        if self.gone.load(Ordering::Relaxed) {
            return !self.has_gone().await;
        }
        if !self.probed {
            return true;
        }
        let (Some(host), Some(port)) = (self.base.host(), self.base.port_or_known_default()) else {
            return true;
        };
        let connect = async {
            match host {
                Host::Domain(name) => TcpStream::connect((name, port)).await,
                Host::Ipv4(address) => TcpStream::connect((address, port)).await,
                Host::Ipv6(address) => TcpStream::connect((address, port)).await,
            }
        };
        timeout(CONNECT_TIMEOUT, connect).await.is_ok_and(|connected| connected.is_ok())
    }
}

impl Deliver for HttpProxy {
    fn deliver(&self, delivery: Delivery) -> BoxFuture<'static, Outcome> {
        self.clone().outcome(delivery).boxed()
    }

    fn ready(&self) -> BoxFuture<'static, bool> {
        self.clone().takes_deliveries().boxed()
    }
}

/// Bad gateway, service unavailable, gateway timeout.
fn is_of_gateway(status: StatusCode) -> bool {
    matches!(status.as_u16(), 502..=504)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn has_system_proxy() -> bool {
    ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// reqwest's own text is vague ("error sending request"); the cause is in its sources.
fn describe(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
