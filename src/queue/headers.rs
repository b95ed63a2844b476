//! The headers by which a delivery says what it is (`createQueueHandler` of the SDK's Worlds).

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::Delivery;
use crate::auth::TOKEN_HEADER;

const QUEUE_NAME: &str = "x-vqs-queue-name";
const MESSAGE_ID: &str = "x-vqs-message-id";
const ATTEMPT: &str = "x-vqs-message-attempt";
/// Marks deliveries of a queue that is not ours: `lib/handler.js` pushes their waits itself.
pub const FOREIGN: &str = "x-workflow-foreign-queue";
/// Asks whether deliveries would be taken; `lib/handler.js` answers without looking for a message.
pub const PROBE: &str = "x-workflow-probe";
/// Names the delivery for [`super::ticket::begin`], which `lib/handler.js` asks before it executes.
pub const TICKET: &str = "x-workflow-ticket";
/// Whoever enqueues a message cannot set these: they are ours, or the connection's.
const RESERVED: [&str; 13] = [
    QUEUE_NAME,
    MESSAGE_ID,
    ATTEMPT,
    FOREIGN,
    PROBE,
    TICKET,
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

impl Delivery {
    /// Without anything that lets the delivery in.
    pub fn headers(&self) -> HeaderMap {
        let escaped = |text: &str| {
            HeaderValue::from_str(&utf8_percent_encode(text, ESCAPED).to_string())
                .unwrap_or_else(|_| HeaderValue::from_static(""))
        };
        let mut headers = self.headers_of_sender();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(QUEUE_NAME, escaped(&self.queue_name));
        headers.insert(MESSAGE_ID, escaped(&self.message_id));
        headers.insert(ATTEMPT, HeaderValue::from(self.attempt));
        if let Some(ticket) = self.ticket.id().and_then(|id| HeaderValue::from_str(id).ok()) {
            headers.insert(TICKET, ticket);
        }
        headers
    }

    /// Those that the message was pushed with.
    pub fn headers_of_sender(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            // What a sender made up and HTTP cannot carry is left out.
            let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) else {
                continue;
            };
            if !RESERVED.contains(&name.as_str()) {
                // Not appended: names that differ in case only are one header, with one value.
                headers.insert(name, value);
            }
        }
        headers
    }
}
