//! Messages, and their form in pg-boss's `data`: the seed's `MessageData`.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::Kind;
use super::ticket::Ticket;
use crate::error::{Error, Result};
use crate::ids::check_id;

/// A message for the queue.
#[derive(Clone, Debug)]
pub struct Message {
    pub kind: Kind,
    /// The queue name without its prefix: the workflow's or the step's name.
    pub id: String,
    pub queue_name: String,
    pub idempotency_key: Option<String>,
    pub message_id: String,
    pub body: Vec<u8>,
    pub headers: Vec<(String, String)>,
    pub delay: Option<Duration>,
}

/// A message on its way to its handler.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub kind: Kind,
    pub id: String,
    pub queue_name: String,
    pub idempotency_key: Option<String>,
    pub message_id: String,
    /// 1 for the first; counts failed deliveries only.
    pub attempt: u32,
    pub body: Vec<u8>,
    pub headers: Vec<(String, String)>,
    /// Of the worker that sends it.
    pub ticket: Ticket,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MessageData<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
    queue_name: &'a str,
    /// base64 of the body.
    data: &'a str,
    message_id: &'a str,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<BTreeMap<&'a str, &'a str>>,
}

/// As JavaScript senders may have written it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredData {
    id: String,
    idempotency_key: Option<String>,
    data: String,
    message_id: Option<String>,
    headers: Option<BTreeMap<String, String>>,
}

/// Whom a message is about.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct About {
    run_id: Option<String>,
    workflow_run_id: Option<String>,
}

impl Message {
    fn run_id(&self) -> Option<String> {
        // Not every body is the SDK's: a health check is about no run.
        let about: About = serde_json::from_slice(&self.body).ok()?;
        about.run_id.or(about.workflow_run_id)
    }

    /// What identifies the message among those that live, and the run that it is about.
    pub fn key_and_group(&self) -> Result<(String, String)> {
        let run_id = self.run_id();
        let fallback = || self.idempotency_key.clone().unwrap_or_else(|| self.message_id.clone());
        let key = match self.kind {
            Kind::Flow => run_id.clone().unwrap_or_else(fallback),
            Kind::Step => fallback(),
        };
        let group = run_id.unwrap_or_else(|| key.clone());
        check_id("the message's key", &key)?;
        check_id("runId", &group)?;
        Ok((key, group))
    }

    /// The `data` of its job. PostgreSQL cannot store NUL, in text or in jsonb.
    pub fn to_data(&self) -> Result<String> {
        let headers: BTreeMap<&str, &str> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let texts = [&self.id, &self.queue_name, &self.message_id];
        let headers_texts = self.headers.iter().flat_map(|(name, value)| [name, value]);
        if texts.into_iter().chain(&self.idempotency_key).chain(headers_texts).any(|text| text.contains('\0'))
        {
            return Err(Error::Invalid(
                "queue names, ids and headers of a message must not hold NUL characters".to_owned(),
            ));
        }
        let body = STANDARD.encode(&self.body);
        serde_json::to_string(&MessageData {
            id: &self.id,
            idempotency_key: self.idempotency_key.as_deref(),
            queue_name: &self.queue_name,
            data: &body,
            message_id: &self.message_id,
            attempt: 1,
            headers: (!headers.is_empty()).then_some(headers),
        })
        .map_err(|error| Error::Invalid(error.to_string()))
    }

    pub(super) fn into_delivery(self, namespace: Option<&str>, attempt: u32) -> Delivery {
        Delivery {
            queue_name: queue_name(self.kind, namespace, &self.id),
            kind: self.kind,
            id: self.id,
            idempotency_key: self.idempotency_key,
            message_id: self.message_id,
            attempt,
            body: self.body,
            headers: self.headers,
            ticket: Ticket::default(),
        }
    }
}

impl Delivery {
    /// From pg-boss's `data`; `job_id` stands in for a message id where the sender gave none.
    pub fn from_data(
        kind: Kind,
        namespace: Option<&str>,
        attempt: u32,
        job_id: &str,
        data: &str,
    ) -> std::result::Result<Self, String> {
        let stored: StoredData = serde_json::from_str(data)
            .map_err(|error| format!("the job's data is not a workflow message: {error}"))?;
        let body = STANDARD
            .decode(&stored.data)
            .map_err(|error| format!("the job's data.data is not base64: {error}"))?;
        Ok(Self {
            queue_name: queue_name(kind, namespace, &stored.id),
            kind,
            id: stored.id,
            idempotency_key: stored.idempotency_key,
            message_id: stored.message_id.unwrap_or_else(|| job_id.to_owned()),
            attempt,
            body,
            headers: stored.headers.unwrap_or_default().into_iter().collect(),
            ticket: Ticket::default(),
        })
    }
}

/// Built anew for each delivery: core 4.8.9 sends step names without the namespace, but its handlers
/// listen to names with it.
fn queue_name(kind: Kind, namespace: Option<&str>, id: &str) -> String {
    let namespace = namespace.map(|namespace| format!("{namespace}_")).unwrap_or_default();
    format!("__{namespace}wkf_{}_{id}", kind.noun())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: Kind, body: &str) -> Message {
        Message {
            kind,
            id: "workflow//./a//b".into(),
            queue_name: "__wkf_workflow_workflow//./a//b".into(),
            idempotency_key: None,
            message_id: "msg_1".into(),
            body: body.into(),
            headers: vec![("traceparent".into(), "00-1".into())],
            delay: None,
        }
    }

    #[test]
    fn a_message_survives_its_way_through_the_queue() {
        let data = message(Kind::Flow, "{\"runId\":\"wrun_1\",\"x\":\"ä\\u0000\"}").to_data().unwrap();
        let delivery = Delivery::from_data(Kind::Flow, Some("ns"), 3, "job", &data).unwrap();
        assert_eq!(delivery.queue_name, "__ns_wkf_workflow_workflow//./a//b");
        assert_eq!(delivery.body, "{\"runId\":\"wrun_1\",\"x\":\"ä\\u0000\"}".as_bytes());
        assert_eq!(delivery.headers, [("traceparent".to_owned(), "00-1".to_owned())]);
        assert_eq!((delivery.message_id.as_str(), delivery.attempt), ("msg_1", 3));
    }

    #[test]
    fn a_flow_is_known_by_its_run_and_a_step_by_its_idempotency_key() {
        let key = |message: &Message| message.key_and_group().unwrap();
        let of = |key: &str, group: &str| (key.to_owned(), group.to_owned());
        let flow = message(Kind::Flow, "{\"runId\":\"wrun_1\"}");
        assert_eq!(key(&flow), of("wrun_1", "wrun_1"));
        let mut step = message(Kind::Step, "{\"workflowRunId\":\"wrun_1\",\"stepId\":\"step_1\"}");
        assert_eq!(key(&step), of("msg_1", "wrun_1"));
        step.idempotency_key = Some("step_1".into());
        assert_eq!(key(&step), of("step_1", "wrun_1"));
        for other in ["", "[]", "null", "{\"runId\":5}", "{\"__healthCheck\":true}"] {
            assert_eq!(key(&message(Kind::Flow, other)), of("msg_1", "msg_1"), "{other}");
        }
    }

    #[test]
    fn what_postgresql_cannot_store_is_refused() {
        let mut nul = message(Kind::Flow, "{}");
        nul.id = "a\0b".into();
        assert!(matches!(nul.to_data(), Err(Error::Invalid(_))));
        let nul = message(Kind::Flow, "{\"runId\":\"a\\u0000\"}");
        assert!(matches!(nul.key_and_group(), Err(Error::Invalid(_))));
    }

    #[test]
    fn a_job_that_is_no_message_is_described() {
        for data in ["null", "5", "{}", "{\"id\":\"x\",\"data\":\"%\"}"] {
            assert!(Delivery::from_data(Kind::Step, None, 1, "job", data).is_err(), "{data}");
        }
        let bare = Delivery::from_data(Kind::Step, None, 1, "job", "{\"id\":\"x\",\"data\":\"\"}").unwrap();
        assert_eq!(bare.message_id, "job");
    }
}
