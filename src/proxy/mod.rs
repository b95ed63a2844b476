//! Where deliveries go, and what all ways of delivering have in common: the headers of a request and
//! the meaning of an answer.

pub mod http;

use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use crate::auth::{TOKEN_HEADER, Tokens};
use crate::error::{Error, Result};
use crate::queue::{Delivery, Outcome};

pub use http::{HttpProxy, Response};

const QUEUE_NAME: &str = "x-vqs-queue-name";
const MESSAGE_ID: &str = "x-vqs-message-id";
const ATTEMPT: &str = "x-vqs-message-attempt";
/// Marks deliveries of a queue that is not ours: `lib/handler.js` pushes their waits itself.
const FOREIGN: &str = "x-workflow-foreign-queue";
/// Whoever enqueues a message cannot set these: they are ours, or the connection's.
const RESERVED: [&str; 11] = [
    QUEUE_NAME,
    MESSAGE_ID,
    ATTEMPT,
    FOREIGN,
    TOKEN_HEADER,
    "content-type",
    "content-length",
    "transfer-encoding",
    "connection",
    "host",
    "expect",
];

/// Everything that is not visible ASCII, and the escape itself; the handler decodes.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');
const LONGEST_EXCERPT: usize = 500;

/// The first token as a header that no log shows.
pub fn token(tokens: &Tokens) -> Result<HeaderValue> {
    let mut token = HeaderValue::from_str(tokens.first())
        .map_err(|_| Error::Configuration("The security token cannot be sent in a header".to_owned()))?;
    token.set_sensitive(true);
    Ok(token)
}

pub fn headers(delivery: &Delivery, token: HeaderValue, foreign: bool) -> HeaderMap {
    let escaped = |text: &str| {
        HeaderValue::from_str(&utf8_percent_encode(text, ESCAPED).to_string())
            .unwrap_or_else(|_| HeaderValue::from_static(""))
    };
    let mut headers: HeaderMap = delivery
        .headers
        .iter()
        .filter(|(name, _)| !RESERVED.contains(&name.to_ascii_lowercase().as_str()))
        // What a sender made up and HTTP cannot carry is left out.
        .filter_map(|(name, value)| {
            Some((HeaderName::try_from(name).ok()?, HeaderValue::from_str(value).ok()?))
        })
        .collect();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(QUEUE_NAME, escaped(&delivery.queue_name));
    headers.insert(MESSAGE_ID, escaped(&delivery.message_id));
    headers.insert(ATTEMPT, HeaderValue::from(delivery.attempt));
    headers.insert(TOKEN_HEADER, token);
    if foreign {
        headers.insert(FOREIGN, HeaderValue::from_static("1"));
    }
    headers
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    timeout_seconds: Option<f64>,
}

/// What an answer means for its delivery. `from` names who gave it.
pub fn outcome(from: &str, status: u16, body: &[u8]) -> Outcome {
    let delay = serde_json::from_slice::<Answer>(body)
        .ok()
        .and_then(|answer| answer.timeout_seconds)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match (status, delay) {
        // 503 is how the handlers of custom queues may say it.
        (200..300 | 503, Some(delay)) => Outcome::Reschedule { delay },
        (200..300, None) => Outcome::Done,
        _ => Outcome::Failed { error: format!("{from} answered {status}: {}", excerpt(body)) },
    }
}

fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(LONGEST_EXCERPT * 4)]);
    text.trim().chars().take(LONGEST_EXCERPT).collect()
}
