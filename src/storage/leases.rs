//! Leases of the steps whose code runs in this process.
//!
//! A queue delivers at least once: a queue of the user's to two processes at a time, and ours again
//! after a proxy between worker and app has broken a delivery off, while the app goes on executing it. So
//! whoever executes a step holds a lease on its row, taken by the very statement that starts it and
//! renewed as long as its code runs. Another delivery of the step is told to come back later.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use crate::database::patience::{UNBOUNDED, patiently};
use crate::database::{Database, Query, Statement};
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
    /// Known from the first lease on.
    runtime: OnceLock<Handle>,
}

#[derive(Default)]
struct Held {
    leases: HashMap<Lease, Holding>,
    /// How many `step_started` are under way.
    starting: usize,
    renewing: bool,
    /// When a round of renewals last succeeded, or the first lease was taken.
    renewed: Option<Instant>,
    closing: bool,
    /// The JavaScript that executed the steps is gone.
    abandoned: bool,
}

struct Holding {
    taken: Instant,
    /// As it is written in the step's row: this process executes other steps too.
    shared: bool,
}

impl Held {
    fn has_several(&self) -> bool {
        self.leases.len() + self.starting > 1
    }
}

/// A `step_started` that is under way.
pub struct Starting {
    leases: Arc<Leases>,
    /// This process executes other steps too.
    pub shared: bool,
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.leases.held().starting -= 1;
    }
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
            runtime: OnceLock::new(),
            database,
        })
    }

    pub fn starting(self: &Arc<Self>) -> Starting {
        let mut held = self.held();
        held.starting += 1;
        Starting { leases: Arc::clone(self), shared: held.has_several() }
    }

    /// Before the code of a second step can end this process, the row of the first one says that it was not
    /// alone: the loss of a bystander is not an attempt of its own.
    pub async fn taken(self: &Arc<Self>, lease: Lease, starting: Starting) {
        self.runtime.get_or_init(Handle::current);
        let shared = starting.shared;
        drop(starting);
        let (abandoned, newly_shared) = {
            let mut held = self.held();
            held.leases.insert(lease, Holding { taken: Instant::now(), shared });
            self.start(&mut held);
            let alone = held.leases.values().any(|holding| !holding.shared);
            (held.abandoned, alone && held.has_several())
        };
        if abandoned {
            self.release_all().await;
        } else if newly_shared {
            self.renew_those(|holding| !holding.shared).await;
        }
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
            self.write_release(vec![lease], false).await;
        }
    }

    /// Nothing is renewed while a World closes: whoever is handed what does not come to its end need not
    /// wait for it.
    pub fn renewing(self: &Arc<Self>, renewing: bool) {
        let mut held = self.held();
        held.closing = !renewing;
        self.start(&mut held);
    }

    /// Hands all steps over: another process may start them at once, and their attempts go on there.
    pub async fn release_all(&self) {
        let _writing = self.writing.lock().await;
        let leases: Vec<Lease> = self.held().leases.drain().map(|(lease, _)| lease).collect();
        if !leases.is_empty() {
            self.write_release(leases, true).await;
        }
    }

    /// The JavaScript that executed the steps has ended without a word, while the process may live on.
    pub fn abandon(self: &Arc<Self>) {
        {
            let mut held = self.held();
            held.closing = true;
            held.abandoned = true;
        }
        if let Some(runtime) = self.runtime.get() {
            let leases = Arc::clone(self);
            runtime.spawn(async move { leases.release_all().await });
        }
    }

    async fn renew(self: Arc<Self>) {
        loop {
            sleep(RENEW).await;
            {
                let mut held = self.held();
                if held.leases.is_empty() || held.closing {
                    held.renewing = false;
                    return;
                }
            }
            if self.renew_those(|holding| holding.taken.elapsed() >= RENEW).await {
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

    /// Whether it succeeded.
    async fn renew_those(&self, which: impl Fn(&Holding) -> bool) -> bool {
        let _writing = self.writing.lock().await;
        let (shared, leases) = {
            let mut held = self.held();
            let shared = held.has_several();
            let mut leases = Vec::new();
            if !held.closing {
                for (lease, holding) in held.leases.iter_mut().filter(|(_, holding)| which(holding)) {
                    holding.shared = shared;
                    leases.push(lease.clone());
                }
            }
            (shared, leases)
        };
        leases.is_empty()
            || self.write(self.of_leases(&self.renew, leases).bind(lease_ms()).bind(shared)).await
    }

    async fn write_release(&self, leases: Vec<Lease>, handed_over: bool) {
        self.write(self.of_leases(&self.release, leases).bind(handed_over)).await;
    }

    fn of_leases(&self, statement: &Statement, leases: Vec<Lease>) -> Query {
        let requests: Vec<i64> = leases.iter().map(|lease| lease.request).collect();
        let (run_ids, step_ids): (Vec<_>, Vec<_>) =
            leases.into_iter().map(|lease| (lease.run_id, lease.step_id)).unzip();
        self.database.query(statement).bind(run_ids).bind(step_ids).bind(requests)
    }

    /// Whether it succeeded. A failure is made up for by the next renewal, or by the end of the lease.
    async fn write(&self, query: Query) -> bool {
        self.database.fetch_urgently(query).await.is_ok()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub fn lease_ms() -> i64 {
    i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX)
}
