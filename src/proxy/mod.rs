//! Where deliveries go, and what all ways of delivering have in common: who is let in and what an
//! answer means.

pub mod http;

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use serde::Deserialize;

use crate::auth::{TOKEN_HEADER, Tokens};
use crate::error::{Error, Result};
use crate::queue::headers::{FOREIGN, PROBE, TICKET};
use crate::queue::ticket::Ticket;
use crate::queue::{Delivery, LONGEST_DELAY, Outcome};

pub use http::{HttpProxy, Response};

/// The mark of each answer of `lib/handler.js`, and its value.
pub const WORLD_HEADER: &str = "x-workflow-world";
pub const WORLD: &str = "postgres";
/// How long an app may take for the answer to a probe.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
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

/// A request that asks whether deliveries would be taken.
pub fn probe_headers(token: HeaderValue, ticket: &Ticket) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(TOKEN_HEADER, token);
    headers.insert(PROBE, HeaderValue::from_static("1"));
    if let Some(ticket) = ticket.id().and_then(|id| HeaderValue::from_str(id).ok()) {
        headers.insert(TICKET, ticket);
    }
    headers
}

/// An answer to a delivery or to a probe.
pub struct Answer<'a> {
    pub status: u16,
    /// It has the mark of `lib/handler.js`.
    pub of_world: bool,
    pub body: &'a [u8],
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    timeout_seconds: Option<f64>,
}

/// Whether the handler of a World that knows our token gave an answer, or what to look at. Any other
/// answer settles nothing: it is a gateway's, another app's, or that of an app with another token.
pub fn check_answer(from: &str, answer: &Answer) -> std::result::Result<(), String> {
    let (status, body) = (answer.status, excerpt(answer.body));
    match (answer.of_world, status) {
        (true, 401) => Err(format!(
            "{from} answered 401: {body}. It needs the same WORKFLOW_POSTGRES_SECURITY_TOKEN (or \
             securityToken) as this worker"
        )),
        (true, _) => Ok(()),
        (false, 300..400) => Err(format!(
            "{from} answered {status}, a redirect. Workflow routes must answer themselves: set \
             WORKFLOW_POSTGRES_APP_URL (or baseUrl) to the final address, and keep middleware away from \
             /.well-known/workflow/"
        )),
        (false, 500..600) => Err(format!("{from} answered {status}, but not as a World: {body}")),
        (false, _) => Err(format!(
            "{from} answered {status}, but not as a World: the header {WORLD_HEADER} is missing. Look at \
             WORKFLOW_POSTGRES_APP_URL (or baseUrl), and let nothing between worker and app answer for \
             /.well-known/workflow/, or remove that header: {body}"
        )),
    }
}

/// The meaning of a World's answer for its delivery. `from` names who gave it.
pub fn outcome(from: &str, answer: &Answer) -> Outcome {
    let (status, body) = (answer.status, answer.body);
    let parsed = serde_json::from_slice::<Body>(body).ok();
    let delay = parsed
        .as_ref()
        .and_then(|body| body.timeout_seconds)
        .filter(|seconds| *seconds >= 0.0)
        // Longer ones would overflow the arithmetic of clocks.
        .map(|seconds| Duration::from_secs_f64(seconds.min(LONGEST_DELAY.as_secs_f64())));
    match (status, delay) {
        // 503 is how the handlers of custom queues may say it.
        (200..300 | 503, Some(delay)) => Outcome::Reschedule { delay },
        (200..300, None) if parsed.is_some() || body.is_empty() => Outcome::Done,
        _ => Outcome::Failed { error: format!("{from} answered {status}: {}", excerpt(body)) },
    }
}

/// An answer may quote the request, as pages of gateways and of echo servers do.
pub fn hide_tokens(outcome: Outcome, tokens: &Tokens) -> Outcome {
    match outcome {
        Outcome::Failed { error } => Outcome::Failed { error: tokens.hide_in(&error) },
        Outcome::NotTaken { error } => Outcome::NotTaken { error: tokens.hide_in(&error) },
        Outcome::Unreachable { error } => Outcome::Unreachable { error: tokens.hide_in(&error) },
        Outcome::Done | Outcome::Reschedule { .. } => outcome,
    }
}

fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(LONGEST_EXCERPT * 4)]);
    text.trim().chars().take(LONGEST_EXCERPT).collect()
}
