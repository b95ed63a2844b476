use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use napi::bindgen_prelude::block_on;
use napi_derive::napi;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::bytes::Bytes;
use super::calls::OpenCalls;
use super::configuration::Configuration;
use super::core::Core;
use super::proxy::{EntrypointFunction, FunctionProxy};
use super::to_js;
use crate::auth::Tokens;
use crate::config::Target;
use crate::error::{Error, Result};
use crate::proxy::HttpProxy;
use crate::queue::ticket::Ticket;
use crate::queue::{self, Deliver, Delivery, Kind, Message};
use crate::storage::reply::{Reply, to_json};

/// `MessageData` without its bytes; headers as a JSON object.
#[napi(object, object_to_js = false)]
pub struct MessageRequest {
    /// `flow` or `step`.
    pub kind: String,
    pub id: String,
    pub queue_name: String,
    pub message_id: String,
    pub idempotency_key: Option<String>,
    pub headers: Option<String>,
    pub delay_ms: Option<i64>,
}

impl MessageRequest {
    pub(super) fn into_delivery(self, body: Bytes, attempt: u32) -> Result<Delivery> {
        let Message { kind, id, queue_name, idempotency_key, message_id, body, headers, .. } =
            self.into_message(body)?;
        Ok(Delivery {
            kind,
            id,
            queue_name,
            idempotency_key,
            message_id,
            attempt,
            body,
            headers,
            ticket: Ticket::default(),
        })
    }

    fn into_message(self, body: Bytes) -> Result<Message> {
        Ok(Message {
            kind: kind(&self.kind)?,
            id: self.id,
            queue_name: self.queue_name,
            message_id: self.message_id,
            idempotency_key: self.idempotency_key,
            headers: headers(self.headers.as_deref())?,
            body: body.0,
            delay: self.delay_ms.map(queue::delay_of_ms),
        })
    }
}

pub(super) fn kind(name: &str) -> Result<Kind> {
    match name {
        "flow" => Ok(Kind::Flow),
        "step" => Ok(Kind::Step),
        other => Err(Error::Invalid(format!("a message is a flow or a step, not {other:?}"))),
    }
}

fn headers(json: Option<&str>) -> Result<Vec<(String, String)>> {
    let Some(json) = json else { return Ok(Vec::new()) };
    let headers: BTreeMap<String, String> = serde_json::from_str(json)
        .map_err(|error| Error::Invalid(format!("headers must be an object of strings: {error}")))?;
    Ok(headers.into_iter().collect())
}

/// The built-in driver: pg-boss jobs, delivered over HTTP or to functions of this process.
#[napi]
pub struct PgBossQueue {
    queue: Arc<queue::PgBossQueue>,
    calls: Arc<OpenCalls>,
    target: Target,
    tokens: Tokens,
    /// Set by the first start.
    deliver: OnceLock<Arc<dyn Deliver>>,
    runtime: OnceLock<Handle>,
}

#[napi]
impl PgBossQueue {
    /// Opens nothing and starts nothing.
    #[napi(constructor, catch_unwind)]
    pub fn new(core: &Core, configuration: &Configuration) -> Self {
        let config = &configuration.config;
        let database = Arc::clone(&core.database);
        Self {
            queue: queue::PgBossQueue::new(database, config.queue.clone(), Arc::clone(&core.log)),
            calls: Arc::clone(&core.calls),
            target: config.target.clone(),
            tokens: config.tokens.clone(),
            deliver: OnceLock::new(),
            runtime: OnceLock::new(),
        }
    }

    /// Answers `call`, when the message is stored, with the id (JSON) of the message that will be delivered.
    #[napi(catch_unwind)]
    pub fn start_push(
        &self,
        call: u32,
        message: MessageRequest,
        #[napi(ts_arg_type = "Uint8Array")] body: Bytes,
    ) -> napi::Result<()> {
        let message = message.into_message(body).map_err(to_js)?;
        let queue = Arc::clone(&self.queue);
        self.calls.make(call, async move {
            Ok(Reply { json: to_json(&queue.push(message).await?)?, bytes: Vec::new() })
        });
        Ok(())
    }

    /// Delivers to `entrypoint`, or else over HTTP.
    #[napi]
    pub async fn start(&self, entrypoint: Option<EntrypointFunction>) -> napi::Result<()> {
        let deliver: Arc<dyn Deliver> = match entrypoint {
            Some(entrypoint) => Arc::new(FunctionProxy::new(entrypoint, &self.tokens).map_err(to_js)?),
            None => Arc::new(HttpProxy::new(&self.target, &self.tokens).map_err(to_js)?),
        };
        let deliver = self.deliver.get_or_init(|| deliver);
        self.runtime.get_or_init(Handle::current);
        self.queue.start(Arc::clone(deliver)).await.map_err(to_js)
    }

    /// JSON of [`Health`].
    #[napi]
    pub async fn health(&self) -> napi::Result<String> {
        let target = match self.deliver.get() {
            Some(deliver) => Some(deliver.ready().await),
            None => None,
        };
        let worker = self.queue.health();
        let health = Health {
            target_reachable: target.as_ref().map(|target| target.is_ok()),
            target_error: target
                .and_then(|target| target.err())
                .or_else(|| worker.as_ref().and_then(|worker| worker.not_taken.clone())),
            oldest_due_ms: self.queue.oldest_due_ms().await.map_err(to_js)?,
            problems: worker.as_ref().map(|worker| worker.problems.clone()).unwrap_or_default(),
            worker,
        };
        to_json(&health).map_err(to_js)
    }

    /// The event loop turns. `cpuUs`: of the process, user and system.
    #[napi(catch_unwind)]
    pub fn tick(&self, cpu_us: i64) {
        self.queue.event_loop().tick(Duration::from_micros(u64::try_from(cpu_us).unwrap_or(0)));
    }

    /// Lets running deliveries finish for up to `limitMs`, then hands the rest back.
    #[napi]
    pub async fn close(&self, limit_ms: u32) {
        self.queue.close(Duration::from_millis(limit_ms.into())).await;
    }

    /// For the end of the process: hands everything back now, and takes no longer than `limitMs`.
    #[napi(catch_unwind)]
    pub fn hand_back(&self, limit_ms: u32) {
        // What is not handed back in time is found when its lease expires.
        let _ = block_on(async {
            timeout(Duration::from_millis(limit_ms.into()), self.queue.close(Duration::ZERO)).await
        });
    }
}

/// Also when Node terminates the thread that it was made in, while the process lives on: nobody will
/// end its deliveries.
impl Drop for PgBossQueue {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.get() {
            let queue = Arc::clone(&self.queue);
            runtime.spawn(async move { queue.close(Duration::ZERO).await });
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    /// `None` where no worker was started here.
    target_reachable: Option<bool>,
    /// Why the target takes no deliveries, or did not take one lately.
    target_error: Option<String>,
    oldest_due_ms: Option<i64>,
    worker: Option<queue::Health>,
    /// Why the worker is not healthy.
    problems: Vec<String>,
}
