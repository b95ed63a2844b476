//! Leases of the steps whose code runs in this process.
//!
//! A queue delivers at least once: a queue of the user's to two processes at a time, and ours again
//! after a proxy between worker and app has broken a delivery off, while the app goes on executing it. So
//! whoever executes a step holds a lease on its row, taken by the very statement that starts it and
//! renewed as long as its code runs. Another delivery of the step is told to come back later.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::database::patience::{UNBOUNDED, patiently};
use crate::database::{Database, Statement};
use crate::error::Result;
use crate::tasks;

/// How long a step stays with a process that gives no sign of life. The queue's own lease outlasts it
/// (`queue::timing::LEASE`): a step of a killed worker can be started as soon as it is delivered again.
pub const LEASE: Duration = Duration::from_secs(6);
/// Most steps have ended by then, and never cost a statement.
const RENEW: Duration = Duration::from_secs(2);

pub struct Leases {
    database: Arc<Database>,
    renew: Statement,
    release: Statement,
    confirm: Statement,
    held: Mutex<Held>,
    /// One at a time: a renewal under way must not come after the release of what it renews.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Held {
    /// When each was taken.
    leases: HashMap<Lease, Instant>,
    renewing: bool,
    /// When a round of renewals last succeeded, or the first lease was taken.
    renewed: Option<Instant>,
    closing: bool,
}

/// An attempt of a step belongs to the `step_started` that began it. Another process's later attempt of the same
/// step has another number, and is none of ours to renew, to release or to settle.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    pub run_id: String,
    pub step_id: String,
    /// Of the `step_started`.
    pub request: i64,
}

impl Leases {
    pub fn new(database: Arc<Database>) -> Arc<Self> {
        Arc::new(Self {
            renew: database.render(include_str!("sql/renew_leases.sql")),
            release: database.render(include_str!("sql/release_leases.sql")),
            confirm: database.render(include_str!("sql/confirm_lease.sql")),
            held: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            database,
        })
    }

    pub fn taken(self: &Arc<Self>, lease: Lease) {
        let mut held = self.held();
        held.leases.insert(lease, Instant::now());
        self.start(&mut held);
    }

    fn start(self: &Arc<Self>, held: &mut Held) {
        if !held.renewing && !held.closing && !held.leases.is_empty() {
            held.renewing = true;
            held.renewed = Some(Instant::now());
            let leases = Arc::clone(self);
            tasks::spawn("The renewal of step leases", move || Arc::clone(&leases).renew());
        }
    }

    /// Takes the lease anew where it may have expired: true unless another start of the step, or its end,
    /// came meanwhile.
    pub async fn confirm(&self, lease: Lease) -> Result<bool> {
        let confirmed = patiently(UNBOUNDED, |_| {
            let query = self
                .database
                .query(&self.confirm)
                .bind(lease.run_id.clone())
                .bind(lease.step_id.clone())
                .bind(lease.request)
                .bind(lease_ms());
            self.database.execute_urgently(query)
        });
        Ok(confirmed.await?.rows_affected() == 1)
    }

    /// The step has ended, and its lease with it.
    pub fn ended(&self, lease: &Lease) {
        self.held().leases.remove(lease);
    }

    /// Its code runs no more, and left no outcome: another delivery may start it at once.
    pub async fn release(&self, lease: Lease) {
        if self.held().leases.remove(&lease).is_some() {
            let _writing = self.writing.lock().await;
            self.write(&self.release, vec![lease]).await;
        }
    }

    /// Nothing is renewed while a World closes: whoever is handed what does not come to its end need not
    /// wait for it.
    pub fn renewing(self: &Arc<Self>, renewing: bool) {
        let mut held = self.held();
        held.closing = !renewing;
        self.start(&mut held);
    }

    pub async fn release_all(&self) {
        let _writing = self.writing.lock().await;
        let leases: Vec<Lease> = self.held().leases.drain().map(|(lease, _)| lease).collect();
        if !leases.is_empty() {
            self.write(&self.release, leases).await;
        }
    }

    async fn renew(self: Arc<Self>) {
        loop {
            sleep(RENEW).await;
            let _writing = self.writing.lock().await;
            let leases: Vec<Lease> = {
                let mut held = self.held();
                if held.leases.is_empty() || held.closing {
                    held.renewing = false;
                    return;
                }
                held.leases
                    .iter()
                    .filter(|(_, at)| at.elapsed() >= RENEW)
                    .map(|(lease, _)| lease.clone())
                    .collect()
            };
            if leases.is_empty() || self.write(&self.renew, leases).await {
                self.held().renewed = Some(Instant::now());
            }
        }
    }

    /// How long ago the leases were renewed last, where that is too long ago.
    pub fn overdue(&self) -> Option<Duration> {
        let held = self.held();
        let age = held.renewed.filter(|_| held.renewing)?.elapsed();
        (age > LEASE / 2).then_some(age)
    }

    /// Whether it succeeded. A failure is made up for by the next renewal, or by the end of the lease.
    async fn write(&self, statement: &Statement, leases: Vec<Lease>) -> bool {
        let requests: Vec<i64> = leases.iter().map(|lease| lease.request).collect();
        let (run_ids, step_ids): (Vec<_>, Vec<_>) =
            leases.into_iter().map(|lease| (lease.run_id, lease.step_id)).unzip();
        let query =
            self.database.query(statement).bind(run_ids).bind(step_ids).bind(requests).bind(lease_ms());
        self.database.fetch_urgently(query).await.is_ok()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub fn lease_ms() -> i64 {
    i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX)
}
