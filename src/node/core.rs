use std::sync::Arc;
use std::time::Duration;

use napi::bindgen_prelude::{block_on, within_runtime_if_available};
use napi_derive::napi;
use serde_json::json;
use tokio::time::timeout;

use super::bytes::Bytes;
use super::calls::{Calls, OpenCalls};
use super::configuration::Configuration;
use super::log::{JsLog, LogFunction};
use super::streams::StreamReader;
use super::{NodeReply, reply, to_js};
use crate::config::QueueConfig;
use crate::database::{Database, migrations, queue_schema};
use crate::error::Result;
use crate::queue::{Level, Log, pgboss};
use crate::storage::reply::{Payloads, Reply, to_json};
use crate::storage::{Append, LEASE, Lease, Pagination, Storage};
use crate::streams::{ChunkPage, Streams};
use crate::tasks;

/// The storage and streams of one database, schema and job prefix.
#[napi]
pub struct Core {
    pub(super) database: Arc<Database>,
    pub(super) log: Arc<dyn Log>,
    pub(super) calls: Arc<OpenCalls>,
    queue: QueueConfig,
    /// Held for as long as panics are to be logged.
    _panics: Arc<dyn Fn(&str) + Send + Sync>,
    storage: Arc<Storage>,
    streams: Arc<Streams>,
}

#[napi(object, object_to_js = false)]
pub struct AppendRequest {
    pub run_id: Option<String>,
    pub event_type: String,
    pub correlation_id: Option<String>,
    pub spec_version: Option<i32>,
    pub data: Option<String>,
    #[napi(ts_type = "Uint8Array")]
    pub payload: Option<Bytes>,
    pub occurred_at_ms: Option<i64>,
    pub snapshot_ms: Option<i64>,
    pub name: Option<String>,
    pub deployment_id: Option<String>,
    pub detail: Option<String>,
    pub time_ms: Option<i64>,
    pub webhook: Option<bool>,
    pub lease: Option<bool>,
    pub attempt_request: Option<i64>,
    pub replay: Option<bool>,
}

#[napi(object, object_to_js = false)]
pub struct PageRequest {
    pub limit: Option<i64>,
    pub cursor: Option<String>,
    pub sort_order: Option<String>,
}

impl From<PageRequest> for Pagination {
    fn from(request: PageRequest) -> Self {
        Self { limit: request.limit, cursor: request.cursor, sort_order: request.sort_order }
    }
}

#[napi]
impl Core {
    /// Opens nothing.
    #[napi(constructor, catch_unwind)]
    pub fn new(configuration: &Configuration, log: LogFunction, calls: &Calls) -> napi::Result<Self> {
        let config = &configuration.config;
        let database =
            within_runtime_if_available(|| Database::new(config.database.clone())).map_err(to_js)?;
        let database = Arc::new(database);
        let log: Arc<dyn Log> = Arc::new(JsLog(log));
        let listener_log = Arc::clone(&log);
        let panic_log = Arc::clone(&log);
        let panics: Arc<dyn Fn(&str) + Send + Sync> =
            Arc::new(move |text: &str| panic_log.log(Level::Error, text, &[]));
        tasks::report_panics_to(&panics);
        database.notifications.on_warning(move |warning| listener_log.log(Level::Warn, warning, &[]));
        Ok(Self {
            log,
            _panics: panics,
            calls: Arc::clone(&calls.open),
            storage: Arc::new(Storage::new(Arc::clone(&database), config.queue.job_prefix.clone())),
            streams: Arc::new(Streams::new(Arc::clone(&database))),
            queue: config.queue.clone(),
            database,
        })
    }

    /// Creates or updates the schema; the report as JSON.
    #[napi]
    pub async fn migrate(&self) -> napi::Result<String> {
        migrations::migrate(&self.database).await.and_then(|report| to_json(&report)).map_err(to_js)
    }

    /// What is in the schema of the pg-boss tables, as JSON.
    #[napi]
    pub async fn queue_schema(&self) -> napi::Result<String> {
        queue_schema::inspect(&self.database).await.and_then(|state| to_json(&state)).map_err(to_js)
    }

    /// Runs pg-boss's construction script; false where another process was faster.
    #[napi]
    pub async fn install_queue_schema(&self, script: String) -> napi::Result<bool> {
        queue_schema::install(&self.database, script).await.map_err(to_js)
    }

    /// Runs pg-boss's migration script; false where another process was faster.
    #[napi]
    pub async fn migrate_queue_schema(&self, script: String) -> napi::Result<bool> {
        queue_schema::migrate(&self.database, script).await.map_err(to_js)
    }

    /// Creates the queues that do not exist; the names of all.
    #[napi]
    pub async fn create_queues(&self) -> napi::Result<Vec<String>> {
        pgboss::setup(&self.database, &self.queue).await.map_err(to_js)
    }

    /// Fails unless the database is set up for this version.
    #[napi]
    pub async fn check(&self) -> napi::Result<()> {
        migrations::check(&self.database).await.map_err(to_js)
    }

    /// JSON of `{reachable, roundTripMs, error, notifications}`, with an `error` where nothing can be written, and
    /// with a `problem` where something else is wrong.
    #[napi]
    pub async fn health(&self) -> napi::Result<String> {
        let round_trip = self.database.ping().await;
        let notifications = match &self.database.notifications {
            all if all.is_listening() => "listening",
            all if all.subscriptions() > 0 => "polling",
            _ => "idle",
        };
        let mut health = json!({"reachable": round_trip.is_ok(), "notifications": notifications});
        let error = match round_trip {
            Ok((round_trip, trouble)) => {
                health["roundTripMs"] = json!((round_trip.as_secs_f64() * 10_000.0).round() / 10.0);
                trouble
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = error {
            health["error"] = json!(error);
        }
        if let Some(age) = self.storage.leases.overdue() {
            let age = age.as_secs_f64();
            health["problem"] = format!("The leases of running steps were not renewed for {age:.1} s").into();
        }
        to_json(&health).map_err(to_js)
    }

    /// Of a step whose code runs no more, and left no outcome. `request` began the attempt, as in the answer
    /// to its `step_started`.
    #[napi]
    pub async fn release_step(&self, run_id: String, step_id: String, request: i64) {
        self.storage.leases.release(Lease { run_id, step_id, request }).await;
    }

    /// Whether a step that was started long ago is still this caller's: no other request started it since.
    #[napi]
    pub async fn confirm_step(&self, run_id: String, step_id: String, request: i64) -> napi::Result<bool> {
        self.storage.leases.confirm(Lease { run_id, step_id, request }).await.map_err(to_js)
    }

    /// Of a step whose lease was over before its code could run.
    #[napi(catch_unwind)]
    pub fn forget_step(&self, run_id: String, step_id: String, request: i64) {
        self.storage.leases.ended(&Lease { run_id, step_id, request });
    }

    /// How long a step stays with a process that gives no sign of life.
    #[napi(getter)]
    pub fn step_lease_ms(&self) -> u32 {
        u32::try_from(LEASE.as_millis()).unwrap_or(u32::MAX)
    }

    /// Whether leases of steps are renewed; they are until told otherwise.
    #[napi(catch_unwind)]
    pub fn renew_steps(&self, renewing: bool) {
        within_runtime_if_available(|| self.storage.leases.renewing(renewing));
    }

    /// For the end of the process: gives the leases of all steps back, and takes no longer than `limitMs`.
    #[napi(catch_unwind)]
    pub fn hand_back_steps(&self, limit_ms: u32) {
        // What is not given back in time expires.
        let _ = block_on(async {
            timeout(Duration::from_millis(limit_ms.into()), self.storage.leases.release_all()).await
        });
    }

    #[napi]
    pub async fn close(&self) {
        self.storage.leases.release_all().await;
        self.database.close().await;
    }

    /// Answers `call` with the event and what follows from it.
    #[napi(catch_unwind)]
    pub fn start_append(&self, call: u32, request: AppendRequest) {
        let append = Append {
            run_id: request.run_id,
            event_type: request.event_type,
            correlation_id: request.correlation_id,
            spec_version: request.spec_version,
            data: request.data,
            payload: request.payload.map(|payload| payload.0),
            occurred_at_ms: request.occurred_at_ms,
            snapshot_ms: request.snapshot_ms,
            name: request.name,
            deployment_id: request.deployment_id,
            detail: request.detail,
            time_ms: request.time_ms,
            webhook: request.webhook,
            lease: request.lease.unwrap_or(false),
            shared: false,
            attempt_request: request.attempt_request,
            replay: request.replay.unwrap_or(false),
        };
        let storage = Arc::clone(&self.storage);
        self.calls.make(call, async move { storage.append(append).await });
    }

    /// Of a replay that has ended: external events of its run, if any wait, may come.
    #[napi]
    pub async fn let_in(&self, run_id: String) {
        self.storage.let_in(run_id).await;
    }

    #[napi]
    pub async fn run(&self, run_id: String, with_payloads: bool) -> napi::Result<NodeReply> {
        reply(self.storage.run(&run_id, with_payloads).await)
    }

    #[napi]
    pub async fn runs(
        &self,
        workflow_name: Option<String>,
        status: Option<String>,
        page: PageRequest,
        with_payloads: bool,
    ) -> napi::Result<NodeReply> {
        reply(self.storage.runs(workflow_name, status, &page.into(), with_payloads).await)
    }

    #[napi]
    pub async fn step(
        &self,
        run_id: Option<String>,
        step_id: String,
        with_payloads: bool,
    ) -> napi::Result<NodeReply> {
        reply(self.storage.step(run_id.as_deref(), &step_id, with_payloads).await)
    }

    #[napi]
    pub async fn steps(
        &self,
        run_id: String,
        page: PageRequest,
        with_payloads: bool,
    ) -> napi::Result<NodeReply> {
        reply(self.storage.steps(&run_id, &page.into(), with_payloads).await)
    }

    #[napi]
    pub async fn event(
        &self,
        run_id: String,
        event_id: String,
        with_payloads: bool,
    ) -> napi::Result<NodeReply> {
        reply(self.storage.event(&run_id, &event_id, with_payloads).await)
    }

    #[napi]
    pub async fn events(
        &self,
        run_id: String,
        page: PageRequest,
        with_payloads: bool,
    ) -> napi::Result<NodeReply> {
        reply(self.storage.events(&run_id, None, &page.into(), with_payloads).await)
    }

    #[napi]
    pub async fn events_by_correlation(
        &self,
        correlation_id: String,
        run_id: Option<String>,
        page: PageRequest,
        with_payloads: bool,
    ) -> napi::Result<NodeReply> {
        reply(
            self.storage
                .events_by_correlation(&correlation_id, run_id.as_deref(), &page.into(), with_payloads)
                .await,
        )
    }

    #[napi]
    pub async fn hook(&self, hook_id: String, with_metadata: bool) -> napi::Result<NodeReply> {
        reply(self.storage.hook(&hook_id, with_metadata).await)
    }

    #[napi]
    pub async fn hook_by_token(&self, token: String, with_metadata: bool) -> napi::Result<NodeReply> {
        reply(self.storage.hook_by_token(&token, with_metadata).await)
    }

    #[napi]
    pub async fn hooks(
        &self,
        run_id: Option<String>,
        page: PageRequest,
        with_metadata: bool,
    ) -> napi::Result<NodeReply> {
        reply(self.storage.hooks(run_id.as_deref(), &page.into(), with_metadata).await)
    }

    /// Answers `call` when the chunks are stored.
    #[napi(catch_unwind)]
    pub fn start_append_chunks(
        &self,
        call: u32,
        name: String,
        run_id: String,
        #[napi(ts_arg_type = "Uint8Array[]")] chunks: Vec<Bytes>,
    ) {
        let chunks = chunks.into_iter().map(|chunk| chunk.0).collect();
        let streams = Arc::clone(&self.streams);
        self.calls.make(call, async move {
            streams.append(&name, &run_id, chunks).await.map(|()| Reply::default())
        });
    }

    #[napi]
    pub async fn close_stream(&self, name: String, run_id: String) -> napi::Result<()> {
        self.streams.close(&name, &run_id).await.map_err(to_js)
    }

    #[napi(catch_unwind)]
    pub fn read_stream(&self, name: String, start_index: Option<i64>) -> StreamReader {
        StreamReader {
            reader: Arc::new(self.streams.reader(&name, start_index)),
            calls: Arc::clone(&self.calls),
        }
    }

    #[napi]
    pub async fn list_streams(&self, run_id: String) -> napi::Result<Vec<String>> {
        self.streams.list(&run_id).await.map_err(to_js)
    }

    /// JSON of the SDK's StreamInfoResponse.
    #[napi]
    pub async fn stream_info(&self, name: String) -> napi::Result<String> {
        let info = self.streams.info(&name).await.map_err(to_js)?;
        to_json(&json!({"tailIndex": info.tail_index, "done": info.done})).map_err(to_js)
    }

    #[napi]
    pub async fn stream_chunks(
        &self,
        name: String,
        limit: Option<i64>,
        cursor: Option<String>,
    ) -> napi::Result<NodeReply> {
        let page = self.streams.chunks(&name, limit, cursor.as_deref()).await;
        reply(page.and_then(chunk_page))
    }
}

/// Also when Node terminates the thread that it was made in, while the process lives on: the code of its steps
/// runs no more.
impl Drop for Core {
    fn drop(&mut self) {
        self.storage.leases.abandon();
    }
}

/// The SDK's StreamChunksResponse, with the data as spans.
fn chunk_page(page: ChunkPage) -> Result<Reply> {
    let mut payloads = Payloads::default();
    let data: Vec<_> = page
        .chunks
        .iter()
        .map(|chunk| json!({"index": chunk.index, "data": payloads.push(Some(&chunk.data))}))
        .collect();
    payloads.reply(&json!({
        "data": data,
        "hasMore": page.cursor.is_some(),
        "cursor": page.cursor,
        "done": page.done,
    }))
}
