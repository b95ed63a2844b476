//! What crosses to JavaScript: one JSON text and one run of bytes. A payload in the JSON is its
//! `[offset, length]` in the bytes, so that a whole log costs one crossing and one JSON parse.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::error::{Error, Result};

#[derive(Debug, Default)]
pub struct Reply {
    pub json: String,
    pub bytes: Vec<u8>,
}

pub type Span = (usize, usize);

/// Collects the payloads of one reply.
#[derive(Default)]
pub struct Payloads(Vec<u8>);

impl Payloads {
    pub fn push(&mut self, payload: Option<&[u8]>) -> Option<Span> {
        payload.map(|payload| {
            let start = self.0.len();
            self.0.extend_from_slice(payload);
            (start, payload.len())
        })
    }

    pub fn reply(self, body: &impl Serialize) -> Result<Reply> {
        Ok(Reply { json: to_json(body)?, bytes: self.0 })
    }
}

pub fn to_json(body: &impl Serialize) -> Result<String> {
    serde_json::to_string(body).map_err(|error| Error::Database(format!("unreadable row: {error}")))
}

/// JSON that PostgreSQL or the edge made and that is passed on as it is.
pub fn raw(json: Option<String>) -> Result<Option<Box<RawValue>>> {
    json.map(RawValue::from_string)
        .transpose()
        .map_err(|error| Error::Database(format!("a column does not hold JSON: {error}")))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventOut {
    pub event_id: String,
    pub event_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    pub created_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub occurred_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec_version: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Span>,
}

/// An entity with its payloads. `*_data` is the data of the carrying event: a payload that was not
/// bytes (spec version 1) is in there.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EntityOut {
    pub entity: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_data: Option<Box<RawValue>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    pub data: Vec<T>,
    pub cursor: Option<String>,
    pub has_more: bool,
    /// Of a page of events: the run that they belong to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
}

impl<T> Page<T> {
    pub fn empty() -> Self {
        Self { data: Vec::new(), cursor: None, has_more: false, run_id: None }
    }
}
