//! `events.create`: one call of the SQL function `append_events` per commit.
//!
//! Calls that arrive while all writers are busy are appended together by the next statement, each
//! with an outcome of its own. At idle a batch is one call and waits for nothing.
//!
//! A call whose connection was lost is sent again: it carries a number, by which SQL recognises a first
//! try that was committed, its answer lost.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout_at};

use super::leases::{Lease, lease_ms};
use super::reply::{EventOut, Payloads, Reply, Span, raw};
use crate::database::lanes::{Lanes, carry_out};
use crate::database::patience::{BOUNDED, Limit, Patience, UNBOUNDED, pause};
use crate::database::{Database, Statement};
use crate::error::{Error, Result, SPEC_VERSION};
use crate::ids::{EventIds, check_id, check_new_run_id, check_token, new_run_id};
use crate::tasks;

const MAX_BATCH_CALLS: usize = 64;
const MAX_BATCH_BYTES: usize = 512 * 1024;
/// How long external events are held back at most: a replay takes milliseconds, and its end is told. Only
/// where its process dies does it take this long.
const HOLD_MS: i64 = 5000;
/// Between two tries of an event that is held back; doubled each time.
const HELD_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_HELD_PAUSE: Duration = Duration::from_millis(80);

/// One `events.create`. Strings that SQL looks at are separate from `data`, which it only stores.
#[derive(Debug, Default, Clone)]
pub struct Append {
    /// `None` for a `run_created` whose id this World is to choose.
    pub run_id: Option<String>,
    pub event_type: String,
    pub correlation_id: Option<String>,
    pub spec_version: Option<i32>,
    /// JSON of the event's data without its payload.
    pub data: Option<String>,
    pub payload: Option<Vec<u8>>,
    pub occurred_at_ms: Option<i64>,
    /// `stateUpdatedAt`: the time of the newest event that the caller's replay has seen.
    pub snapshot_ms: Option<i64>,
    /// Workflow name, step name or hook token.
    pub name: Option<String>,
    pub deployment_id: Option<String>,
    /// JSON of the execution context or of the error.
    pub detail: Option<String>,
    /// `resumeAt` of a wait, `retryAfter` of a step.
    pub time_ms: Option<i64>,
    pub webhook: Option<bool>,
    /// Of a `step_started`: take a lease on the step, and start only where nobody else holds one.
    pub lease: bool,
    /// Of such a `step_started`: this process executes other steps too.
    pub shared: bool,
    /// Of an outcome: the request of the `step_started` whose attempt it settles. `None` settles whichever
    /// attempt there is.
    pub attempt_request: Option<i64>,
    /// Of a replay whose delivery will tell when it has ended: where it is stale, hold external events back.
    pub replay: bool,
}

/// Events that the SDK may create; `hook_conflict` is the World's own.
const EVENT_TYPES: [&str; 15] = [
    "run_created",
    "run_started",
    "run_completed",
    "run_failed",
    "run_cancelled",
    "step_created",
    "step_started",
    "step_completed",
    "step_failed",
    "step_retrying",
    "hook_created",
    "hook_received",
    "hook_disposed",
    "wait_created",
    "wait_completed",
];

impl Append {
    fn check(&mut self) -> Result<()> {
        let event_type = self.event_type.as_str();
        if !EVENT_TYPES.contains(&event_type) {
            return Err(Error::Invalid(format!("{event_type:?} is not an event type that can be created")));
        }
        match (&self.run_id, event_type) {
            (None, "run_created") => self.run_id = Some(new_run_id()),
            (None, _) => return Err(Error::Invalid(format!("runId is required for {event_type}"))),
            (Some(run_id), "run_created") => check_new_run_id(run_id, now_ms())?,
            (Some(run_id), _) => drop(check_id("runId", run_id)?),
        }
        if !event_type.starts_with("run_") {
            check_id("correlationId", self.correlation_id.as_deref().unwrap_or_default())?;
        }
        if let Some(name) = &self.name {
            if event_type == "hook_created" {
                check_token(name)?;
            } else {
                check_id("eventData.workflowName or stepName", name)?;
            }
        } else if matches!(event_type, "run_created" | "step_created" | "hook_created") {
            return Err(Error::Invalid(format!(
                "{event_type} needs a workflowName, stepName or token in its eventData"
            )));
        }
        if let Some(deployment_id) = &self.deployment_id {
            check_id("eventData.deploymentId", deployment_id)?;
        } else if event_type == "run_created" || (event_type == "run_started" && self.name.is_some()) {
            return Err(Error::Invalid(format!("{event_type} needs a deploymentId in its eventData")));
        }
        if event_type == "wait_created" && self.time_ms.is_none() {
            return Err(Error::Invalid("wait_created needs a valid date as eventData.resumeAt".to_owned()));
        }
        match self.spec_version {
            Some(version) if i64::from(version) > SPEC_VERSION => {
                Err(Error::RunNotSupported { run: version.into(), world: SPEC_VERSION })
            }
            _ => Ok(()),
        }
    }

    fn lease_ms(&self) -> Option<i64> {
        if self.lease { Some(lease_ms()) } else { self.replay.then_some(HOLD_MS) }
    }

    /// What user code has come to.
    pub fn is_outcome(&self) -> bool {
        matches!(self.event_type.as_str(), "step_completed" | "step_failed" | "step_retrying")
    }

    /// The lease that this call, made as `request`, takes or ends.
    pub fn lease_of(&self, request: i64) -> Option<Lease> {
        Some(Lease {
            request: if self.lease { Some(request) } else { self.attempt_request }?,
            run_id: self.run_id.clone()?,
            step_id: self.correlation_id.clone()?,
        })
    }

    fn run_id(&self) -> &str {
        self.run_id.as_deref().unwrap_or_default()
    }

    fn bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, Vec::len) + self.data.as_ref().map_or(0, String::len)
    }
}

fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
}

struct Call {
    append: Append,
    /// Of this call alone: a repetition of it has the same.
    request: i64,
    /// How many tries went before, any of which may have been committed or may still arrive.
    tries: i32,
    patience: Patience,
    /// How often it was held back.
    held: u32,
    answer: oneshot::Sender<Result<Reply>>,
}

pub struct Appender {
    database: Arc<Database>,
    statement: Statement,
    job_prefix: String,
    queue: Mutex<Queue>,
}

struct Queue {
    waiting: VecDeque<Call>,
    writers: Lanes,
    /// Why calls were not answered last.
    trouble: Option<Error>,
}

impl Appender {
    pub fn new(database: Arc<Database>, job_prefix: String) -> Arc<Self> {
        let statement = database.render(include_str!("sql/append_events.sql"));
        let queue = Mutex::new(Queue { waiting: VecDeque::new(), writers: Lanes::new(1), trouble: None });
        Arc::new(Self { database, statement, job_prefix, queue })
    }

    pub async fn append(self: &Arc<Self>, mut append: Append, request: i64) -> Result<Reply> {
        append.check()?;
        let (answer, answered) = oneshot::channel();
        // A start that is given up may have used up an attempt of the user's.
        let patient = append.is_outcome() || append.lease;
        let patience = Patience::new(if patient { UNBOUNDED } else { BOUNDED });
        let end = patience.end();
        self.enqueue(Call { append, request, tries: 0, patience, held: 0, answer });
        let answer = async { answered.await.unwrap_or_else(|_| tasks::unanswered()) };
        match end {
            None => answer.await,
            // It may be waiting for its turn: what has not been sent by now is not sent any more.
            Some(end) => timeout_at(end, answer).await.unwrap_or_else(|_| {
                let trouble = self.queue().trouble.clone();
                Err(trouble.unwrap_or_else(|| Error::Unavailable("no answer within 10 s".to_owned())))
            }),
        }
    }

    fn enqueue(self: &Arc<Self>, call: Call) {
        let start_writer = {
            let mut queue = self.queue();
            queue.waiting.push_back(call);
            queue.writers.enter()
        };
        if start_writer {
            self.start_writer();
        }
    }

    fn answer(self: &Arc<Self>, call: Call, reply: Result<Reply>) {
        if matches!(reply, Err(Error::HeldBack)) {
            let appender = Arc::clone(self);
            tokio::spawn(async move {
                sleep(HELD_PAUSE.saturating_mul(1 << call.held.min(10)).min(LONGEST_HELD_PAUSE)).await;
                appender.enqueue(Call { held: call.held + 1, ..call });
            });
            return;
        }
        // The caller may be gone; its event is written all the same.
        let _ = call.answer.send(reply);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_writer(self: &Arc<Self>) {
        let appender = Arc::clone(self);
        tasks::spawn("A writer of events", move || Arc::clone(&appender).write());
    }

    async fn write(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            let batch = {
                let mut queue = self.queue();
                let batch = next_batch(&mut queue.waiting);
                if batch.is_empty() {
                    queue.writers.leave();
                    return;
                }
                batch
            };
            let lanes = |change: &dyn Fn(&mut Lanes)| change(&mut self.queue().writers);
            if carry_out(self.write_batch(batch), lanes, || self.write_beside()).await {
                if failures > 0 {
                    self.queue().trouble = None;
                }
                failures = 0;
            } else {
                pause(failures).await;
                failures += 1;
            }
        }
    }

    fn write_beside(self: &Arc<Self>) {
        let mut queue = self.queue();
        if !queue.waiting.is_empty() && queue.writers.enter() {
            self.start_writer();
        }
    }

    /// Whether all calls were answered: those that were not wait to be sent again.
    async fn write_batch(self: &Arc<Self>, mut batch: Vec<Call>) -> bool {
        // By run, and for one run in the order of the calls: batches then lock runs in one order.
        batch.sort_by(|a, b| a.append.run_id().cmp(b.append.run_id()));
        match self.execute(&batch).await {
            Ok(replies) => {
                for (call, reply) in batch.into_iter().zip(replies) {
                    self.answer(call, reply);
                }
                true
            }
            Err(Error::Database(_) | Error::Contention(_) | Error::Invalid(_) | Error::Refused(_))
                if batch.len() > 1 =>
            {
                // PostgreSQL refused the statement as a whole and wrote nothing; the refusal is for
                // the one call that caused it.
                let mut answered = true;
                let mut calls = batch.into_iter();
                while let Some(call) = calls.next() {
                    match self.execute(std::slice::from_ref(&call)).await {
                        Ok(replies) => self.answer(call, first(replies)),
                        Err(error @ Error::Unavailable(_)) => {
                            let rest = std::iter::once(call).chain(calls).collect();
                            return self.fail(rest, &error) && answered;
                        }
                        Err(error) => answered &= self.fail(vec![call], &error),
                    }
                }
                answered
            }
            Err(error) => self.fail(batch, &error),
        }
    }

    /// Tells those whose patience has ended, also of the calls that have not had their turn yet; the rest
    /// goes on waiting. Whether all of `batch` were told.
    fn fail(&self, batch: Vec<Call>, error: &Error) -> bool {
        let (patient, mut told): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|call| call.patience.bears(error));
        let answered = patient.is_empty();
        {
            let mut queue = self.queue();
            queue.trouble = Some(error.clone());
            if matches!(error, Error::Unavailable(_)) {
                let waiting = std::mem::take(&mut queue.waiting);
                let (patient, late): (Vec<_>, Vec<_>) =
                    waiting.into_iter().partition(|call| call.patience.bears(error));
                queue.waiting = patient.into();
                told.extend(late);
            }
            for call in patient.into_iter().rev() {
                queue.waiting.push_front(Call { tries: call.tries.saturating_add(1), ..call });
            }
        }
        for call in told {
            let _ = call.answer.send(Err(error.clone()));
        }
        answered
    }

    async fn execute(&self, calls: &[Call]) -> Result<Vec<Result<Reply>>> {
        let waits = calls.iter().any(|call| call.patience.end().is_none());
        let limit = if waits { Limit::OUTCOME } else { Limit::WRITE };
        fn column<T>(calls: &[Call], of: impl Fn(&Append) -> T) -> Vec<T> {
            calls.iter().map(|call| of(&call.append)).collect()
        }
        let query = self
            .database
            .query(&self.statement)
            .bind(column(calls, |call| call.run_id().to_owned()))
            .bind(column(calls, |call| call.event_type.clone()))
            .bind(column(calls, |call| call.correlation_id.clone()))
            .bind(column(calls, |call| call.spec_version))
            .bind(column(calls, |call| call.data.clone()))
            .bind(column(calls, |call| call.payload.clone()))
            .bind(column(calls, |call| call.occurred_at_ms))
            .bind(column(calls, |call| call.snapshot_ms))
            .bind(column(calls, |call| call.name.clone()))
            .bind(column(calls, |call| call.deployment_id.clone()))
            .bind(column(calls, |call| call.detail.clone()))
            .bind(column(calls, |call| call.time_ms))
            .bind(column(calls, |call| call.webhook))
            .bind(column(calls, Append::lease_ms))
            .bind(column(calls, |call| call.lease.then_some(call.shared)))
            .bind(column(calls, |call| call.attempt_request))
            .bind(calls.iter().map(|call| call.request).collect::<Vec<_>>())
            .bind(calls.iter().map(|call| call.tries).collect::<Vec<_>>())
            .bind(self.job_prefix.clone());
        let rows = self.database.fetch_once(query, limit).await?;
        let mut rows = rows.as_slice();
        calls.iter().map(|call| Ok(take_reply(call, &mut rows))).collect()
    }
}

fn first(replies: Vec<Result<Reply>>) -> Result<Reply> {
    replies.into_iter().next().unwrap_or(Err(Error::Database("append_events gave no row".to_owned())))
}

impl Append {
    /// A hook's creation waits for whoever holds its token: it must hold no other run's lock meanwhile.
    fn is_alone(&self) -> bool {
        self.event_type == "hook_created"
    }
}

/// Calls to run together.
fn next_batch(waiting: &mut VecDeque<Call>) -> Vec<Call> {
    let mut batch: Vec<Call> = Vec::new();
    let mut bytes = 0;
    while let Some(call) = waiting.front() {
        if call.answer.is_closed() {
            waiting.pop_front();
            continue;
        }
        bytes += call.append.bytes();
        if let Some(first) = batch.first() {
            let full = batch.len() == MAX_BATCH_CALLS || bytes > MAX_BATCH_BYTES;
            if full || first.append.is_alone() || call.append.is_alone() {
                break;
            }
        }
        batch.extend(waiting.pop_front());
    }
    batch
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Appended {
    run_id: String,
    /// Absent where nothing was appended.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<EventOut>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entity: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    log: Vec<EventOut>,
    /// Of a `step_started` that took a lease: the attempt is this request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt_request: Option<i64>,
    /// Whether external events of the run wait until the replay that begins here has ended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    holds: bool,
}

/// The rows of one call: its log, if any, then its outcome.
fn take_reply(Call { append: call, request, .. }: &Call, rows: &mut &[PgRow]) -> Result<Reply> {
    let ids = EventIds::of(call.run_id());
    let mut payloads = Payloads::default();
    let mut log = Vec::new();
    while let Some((row, rest)) = rows.split_first() {
        *rows = rest;
        let outcome: String = row.try_get("out_outcome")?;
        if outcome == "log" {
            log.push(event_of_row(row, 2, &ids, &mut payloads)?);
            continue;
        }
        let entity: Option<String> = row.try_get("out_entity")?;
        if !matches!(outcome.as_str(), "appended" | "unchanged") {
            return Err(refusal(call, &outcome, entity.as_deref()));
        }
        let data: Option<String> = row.try_get("out_data")?;
        let event_type: String = row.try_get("out_type")?;
        let conflict = event_type == "hook_conflict";
        let event = match row.try_get::<Option<i32>, _>("out_slot")? {
            None => None,
            Some(slot) => {
                let created_at: i64 = row.try_get("out_created_at")?;
                Some(EventOut {
                    event_id: ids.encode(slot, created_at),
                    event_type,
                    correlation_id: call.correlation_id.clone(),
                    created_at,
                    occurred_at: call.occurred_at_ms,
                    spec_version: call.spec_version,
                    data: if conflict { raw(data.clone())? } else { None },
                    payload: None,
                })
            }
        };
        let input = payloads.push(row.try_get("out_payload")?);
        let holds = call.event_type == "run_started" && data.is_some();
        let input_data = if conflict || holds || input.is_some() { None } else { raw(data)? };
        let entity = raw(entity)?;
        return payloads.reply(&Appended {
            run_id: call.run_id().to_owned(),
            event,
            entity,
            input,
            input_data,
            log,
            attempt_request: call.lease.then_some(*request),
            holds,
        });
    }
    Err(Error::Database("append_events gave no outcome for a call".to_owned()))
}

/// Reads the event columns (slot, type, correlation id, created, occurred, spec version, data,
/// payload) that start at `first`.
pub fn event_of_row(row: &PgRow, first: usize, ids: &EventIds, payloads: &mut Payloads) -> Result<EventOut> {
    let created_at: i64 = row.try_get(first + 3)?;
    Ok(EventOut {
        event_id: ids.encode(row.try_get(first)?, created_at),
        event_type: row.try_get(first + 1)?,
        correlation_id: row.try_get(first + 2)?,
        created_at,
        occurred_at: row.try_get(first + 4)?,
        spec_version: row.try_get(first + 5)?,
        data: raw(row.try_get(first + 6)?)?,
        payload: payloads.push(row.try_get(first + 7)?),
    })
}

fn refusal(call: &Append, outcome: &str, detail: Option<&str>) -> Error {
    let event_type = &call.event_type;
    let run_id = call.run_id();
    let subject = call.correlation_id.as_deref().unwrap_or(run_id);
    let number = || detail.and_then(|detail| detail.parse().ok()).unwrap_or(0);
    match outcome {
        "entity_conflict" => Error::EntityConflict(format!(
            "{event_type} refused: \"{subject}\" already exists, is in a terminal state, belongs to a \
             later attempt, or its run has ended"
        )),
        "run_not_found" => Error::RunNotFound { run_id: run_id.to_owned() },
        "run_expired" => {
            Error::RunExpired(format!("{event_type} refused: run \"{run_id}\" is in a terminal state"))
        }
        "step_not_found" => Error::NotFound(format!("Step \"{subject}\" not found")),
        "wait_not_found" => Error::NotFound(format!("Wait \"{subject}\" not found")),
        "hook_not_found" => Error::HookNotFound { token: subject.to_owned() },
        "too_early" => Error::TooEarly {
            step_id: subject.to_owned(),
            retry_after_seconds: u64::try_from(number()).unwrap_or(0),
        },
        "precondition_failed" => Error::PreconditionFailed { event_type: event_type.clone() },
        "log_lost" => Error::LogLost { event_type: event_type.clone() },
        "held_back" => Error::HeldBack,
        "run_not_supported" => Error::RunNotSupported { run: number(), world: SPEC_VERSION },
        "legacy_unsupported" => Error::Invalid(format!(
            "{event_type} is not supported for legacy runs (spec version 1): \"{run_id}\""
        )),
        other => Error::Database(format!("append_events gave an unknown outcome {other:?}")),
    }
}
