//! QStash as the queue: messages are published by its REST API, and it posts them to the app.
//!
//! QStash signs the body of a delivery and its URL, and nothing else. So the body says which message it is,
//! and no header decides anything: whoever saw one delivery could send it again with others.
//!
//! Nothing relies on its deduplication, which forgets after 10 minutes: it only spares work.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use super::outbox::Outbox;
use super::timing::backoff;
use super::{Delivery, Kind};
use crate::config::{Destination, QStashConfig};
use crate::error::{Error, Result};
use crate::proxy::http::describe;
use crate::signature::{self, Refusal, Signed};
use crate::tasks;
use crate::tls;

/// Requests under way at the same time. What comes while all are goes out together in the next one.
const LANES: usize = 4;
const BATCH: usize = 50;
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a message is tried to be published while QStash is away or busy.
const PATIENCE: Duration = Duration::from_secs(5);
/// A key holds for so long, however long QStash would remember it: a step of which the message was given
/// up must be free to be sent again.
const KEY_SECONDS: u64 = 600;
const LONGEST_EXCERPT: usize = 300;
const LONGEST_PLAIN_ID: usize = 100;
/// As `encodeURIComponent` does.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

pub struct QStash {
    config: QStashConfig,
    client: Client,
    authorization: HeaderValue,
    outbox: Outbox<Publication, ()>,
}

struct Publication {
    destination: String,
    headers: HeaderMap,
    body: String,
}

/// The body of a delivery; `lib/qstash.js` reads it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    queue_name: &'a str,
    message_id: &'a str,
    attempt: u32,
    headers: BTreeMap<&'a str, &'a str>,
    message: &'a RawValue,
}

/// The answer to one message.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Published {
    message_id: Option<String>,
    error: Option<String>,
}

impl QStash {
    /// No I/O.
    pub fn new(config: QStashConfig) -> Result<Arc<Self>> {
        let mut client = Client::builder().timeout(TIMEOUT).tls_backend_preconfigured(tls::client_config()?);
        // By HTTPS_PROXY, which sees no token. HTTP_PROXY would.
        if !config.base_url.starts_with("https:") {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|error| {
            Error::Configuration(format!("No HTTP client for QStash could be made: {error}"))
        })?;
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", config.token))
            .map_err(|_| Error::Configuration("QSTASH_TOKEN cannot be sent in a header".to_owned()))?;
        authorization.set_sensitive(true);
        Ok(Arc::new(Self { config, client, authorization, outbox: Outbox::new(LANES, BATCH) }))
    }

    /// Resolves when QStash has the message. The delivery's attempt is that of its first delivery.
    pub async fn publish(self: &Arc<Self>, delivery: Delivery, delay: Duration) -> Result<()> {
        let (answer, lane) = self.outbox.add(self.publication(&delivery, delay)?);
        if lane {
            // On its own: whoever awaits may stop doing so, others of the batch do not.
            let qstash = Arc::clone(self);
            tasks::spawn("A request to QStash", move || Arc::clone(&qstash).run_lane());
        }
        answer.await.unwrap_or_else(|_| tasks::unanswered())
    }

    /// Whether a delivery is QStash's, and for this app. Its body has not been looked at yet.
    pub fn verify(&self, token: &str, kind: Kind) -> std::result::Result<Signed, Refusal> {
        let now = i64::try_from(now_seconds()).unwrap_or(i64::MAX);
        let is_ours = |url: &str| match &self.config.destination {
            Destination::App(_) => url == self.destination(kind, ""),
            // The rest of the URL is a queue, which the body names too.
            Destination::Endpoint(_) => url.starts_with(&self.destination(kind, "")),
        };
        signature::verify(&self.config.signing_keys, token, is_ours, now)
    }

    fn destination(&self, kind: Kind, queue_name: &str) -> String {
        match (&self.config.destination, kind) {
            (Destination::App(app), Kind::Flow) => format!("{app}/.well-known/workflow/v1/flow"),
            (Destination::App(app), Kind::Step) => format!("{app}/.well-known/workflow/v1/step"),
            // Encoded: queue names hold slashes and dots, which a path would lose.
            (Destination::Endpoint(endpoint), _) => {
                format!("{endpoint}/{}", utf8_percent_encode(queue_name, PATH_SEGMENT))
            }
        }
    }

    fn publication(&self, delivery: &Delivery, delay: Duration) -> Result<Publication> {
        let QStashConfig { retries, retry_delay, max_delay, .. } = &self.config;
        let headers_of_sender = delivery.headers_of_sender();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // The app's tracing looks for them there. What decides is in the body.
        for (name, value) in &headers_of_sender {
            if let Ok(name) = HeaderName::try_from(format!("upstash-forward-{name}")) {
                headers.insert(name, value.clone());
            }
        }
        headers.insert("upstash-retries", HeaderValue::from(*retries));
        if let Ok(expression) = HeaderValue::from_str(retry_delay) {
            headers.insert("upstash-retry-delay", expression);
        }
        // What is longer comes early, and the handler sends it again.
        let delay = delay.min(*max_delay);
        if !delay.is_zero() {
            let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
            if let Ok(delay) = HeaderValue::from_str(&format!("{seconds}s")) {
                headers.insert("upstash-delay", delay);
            }
        }
        let key = delivery.idempotency_key.as_ref().filter(|key| !key.is_empty());
        let id = match key {
            Some(key) => format!("{}.{}", deduplication_id(key), now_seconds() / KEY_SECONDS),
            // So it can be published again when an answer was lost.
            None => deduplication_id(&delivery.message_id),
        };
        if let Ok(id) = HeaderValue::from_str(&id) {
            headers.insert("upstash-deduplication-id", id);
        }
        let envelope = Envelope {
            queue_name: &delivery.queue_name,
            message_id: &delivery.message_id,
            attempt: delivery.attempt,
            headers: headers_of_sender
                .iter()
                .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
                .collect(),
            message: serde_json::from_slice(&delivery.body)
                .map_err(|error| Error::Invalid(format!("the body of a message must be JSON: {error}")))?,
        };
        let body = serde_json::to_string(&envelope).map_err(|error| Error::Invalid(error.to_string()))?;
        let destination = self.destination(delivery.kind, &delivery.queue_name);
        Ok(Publication { destination, headers, body })
    }

    async fn run_lane(self: Arc<Self>) {
        while let Some(batch) = self.outbox.next() {
            let (publications, replies): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let results = match publications.as_slice() {
                [one] => vec![self.publish_one(one).await],
                many => self.publish_all(many).await,
            };
            for (reply, result) in replies.into_iter().zip(results) {
                // Nobody may be waiting any more.
                let _ = reply.send(result);
            }
        }
    }

    async fn publish_one(&self, publication: &Publication) -> Result<()> {
        let url = format!("{}/v2/publish/{}", self.config.base_url, publication.destination);
        let request =
            || self.client.post(&url).headers(publication.headers.clone()).body(publication.body.clone());
        let answer = self.send(request).await?;
        accepted(serde_json::from_slice(&answer).ok())
    }

    async fn publish_all(&self, publications: &[Publication]) -> Vec<Result<()>> {
        let messages: Option<Vec<_>> = publications.iter().map(Publication::to_json).collect();
        let Some(messages) = messages else { return self.publish_each(publications).await };
        let url = format!("{}/v2/batch", self.config.base_url);
        let body = Value::from(messages).to_string();
        let request = || self.client.post(&url).header(CONTENT_TYPE, "application/json").body(body.clone());
        match self.send(request).await {
            Ok(answer) => {
                let answers: Vec<Value> = serde_json::from_slice(&answer).unwrap_or_default();
                let mut answers = answers.into_iter();
                let one = |_| accepted(answers.next().and_then(|answer| serde_json::from_value(answer).ok()));
                publications.iter().map(one).collect()
            }
            // One of them, or all together, are too much: which, each of them tells.
            Err(Error::Queue(_)) => self.publish_each(publications).await,
            Err(error) => publications.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn publish_each(&self, publications: &[Publication]) -> Vec<Result<()>> {
        let mut results = Vec::new();
        for publication in publications {
            results.push(self.publish_one(publication).await);
        }
        results
    }

    /// Trying again is safe: a message that arrived all the same is found by its deduplication id.
    async fn send(&self, request: impl Fn() -> RequestBuilder) -> Result<Vec<u8>> {
        let start = Instant::now();
        let mut tries = 0;
        loop {
            let (error, pause) = match self.send_once(request()).await {
                Ok(answer) => return Ok(answer),
                Err(Error::Throttled { retry_after_seconds }) => {
                    (Error::Throttled { retry_after_seconds }, Duration::from_secs(retry_after_seconds))
                }
                Err(error @ Error::Unreachable(_)) => (error, backoff(tries)),
                Err(error) => return Err(error),
            };
            if pause > PATIENCE.saturating_sub(start.elapsed()) {
                return Err(error);
            }
            sleep(pause).await;
            tries += 1;
        }
    }

    async fn send_once(&self, request: RequestBuilder) -> Result<Vec<u8>> {
        let unreachable = |error: reqwest::Error| {
            Error::Unreachable(format!("QStash is not reachable: {}", describe(&error.without_url())))
        };
        let response =
            request.header(AUTHORIZATION, self.authorization.clone()).send().await.map_err(unreachable)?;
        let status = response.status();
        let throttled = status == StatusCode::TOO_MANY_REQUESTS;
        let retry_after_seconds = if throttled { retry_after(response.headers()) } else { 0 };
        let answer = response.bytes().await.map_err(unreachable)?;
        if status.is_success() {
            return Ok(answer.into());
        }
        let text: String = String::from_utf8_lossy(&answer).trim().chars().take(LONGEST_EXCERPT).collect();
        let text = text.replace(&self.config.token, "***");
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS => Error::Throttled { retry_after_seconds },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Configuration(format!(
                "QStash refused the token ({status}). Check QSTASH_TOKEN (or qstash.token) and QSTASH_URL, which \
                 must be of the same region"
            )),
            status if status.is_server_error() => {
                Error::Unreachable(format!("QStash answered {status}: {text}"))
            }
            status => Error::Queue(format!("QStash refused a message ({status}): {text}")),
        })
    }
}

impl Publication {
    /// `None` where a header is not text, which a batch cannot carry.
    fn to_json(&self) -> Option<Value> {
        let headers: Map<_, _> = self
            .headers
            .iter()
            .map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.into())))
            .collect::<Option<_>>()?;
        Some(json!({"destination": self.destination, "headers": headers, "body": self.body}))
    }
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// QStash refuses ids with a colon, and headers hold visible ASCII.
fn deduplication_id(key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if key.len() <= LONGEST_PLAIN_ID && key.bytes().all(plain) {
        return key.to_owned();
    }
    URL_SAFE_NO_PAD.encode(Sha256::digest(key))
}

fn accepted(answer: Option<Published>) -> Result<()> {
    match answer {
        Some(Published { message_id: Some(_), .. }) => Ok(()),
        Some(Published { error: Some(error), .. }) => {
            Err(Error::Queue(format!("QStash refused a message: {error}")))
        }
        _ => Err(Error::Unreachable("QStash did not say whether it has the message".to_owned())),
    }
}

/// Seconds until QStash takes requests again: from the limit that was hit, daily or per second.
fn retry_after(headers: &HeaderMap) -> u64 {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
    let until = |reset: u64| reset.saturating_sub(now_seconds());
    let spent = |name: &str| number(name) == Some(0);
    number("retry-after")
        .or_else(|| spent("ratelimit-remaining").then(|| number("ratelimit-reset").map(until)).flatten())
        .or_else(|| number("burst-ratelimit-reset").map(until))
        .unwrap_or(1)
        .max(1)
}
