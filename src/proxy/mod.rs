//! Where deliveries go, and what all ways of delivering have in common: who is let in and what an
//! answer means.

pub mod http;

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use serde::Deserialize;

use crate::auth::{TOKEN_HEADER, Tokens};
use crate::error::{Error, Result};
use crate::queue::headers::FOREIGN;
use crate::queue::{Delivery, Outcome};

pub use http::{HttpProxy, Response};

const LONGEST_EXCERPT: usize = 500;

/// The first token as a header that no log shows.
pub fn token(tokens: &Tokens) -> Result<HeaderValue> {
    let mut token = HeaderValue::from_str(tokens.first())
        .map_err(|_| Error::Configuration("The security token cannot be sent in a header".to_owned()))?;
    token.set_sensitive(true);
    Ok(token)
}

pub fn headers(delivery: &Delivery, token: HeaderValue, foreign: bool) -> HeaderMap {
    let mut headers = delivery.headers();
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
    let answer = serde_json::from_slice::<Answer>(body).ok();
    let delay = answer
        .as_ref()
        .and_then(|answer| answer.timeout_seconds)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match (status, delay) {
        // 503 is how the handlers of custom queues may say it.
        (200..300 | 503, Some(delay)) => Outcome::Reschedule { delay },
        (200..300, None) if answer.is_some() || body.is_empty() => Outcome::Done,
        // A login page, or whatever else stands between: the message must not be lost in it.
        (200..300, None) => Outcome::Failed {
            error: format!("{from} answered {status}, but not as a World does, in JSON: {}", excerpt(body)),
        },
        _ => Outcome::Failed { error: format!("{from} answered {status}: {}", excerpt(body)) },
    }
}

fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(LONGEST_EXCERPT * 4)]);
    text.trim().chars().take(LONGEST_EXCERPT).collect()
}
