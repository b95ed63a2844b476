//! The connections of a process.
//!
//! The one that was used last is used first: its server process has its plans made and its memory in the
//! caches of a processor. What a burst has opened beyond that is not used again, and closed. Nothing is
//! sent when a connection is given back.

use std::io;
use std::mem::forget;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use deadpool::managed::{Manager, Metrics, Object, Pool, PoolError, QueueMode, RecycleError, RecycleResult};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection as _, Executor, Row};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::patience::{ENDING, pause};
use super::{is_fatal, unprepared};
use crate::error::{Error, Result};
use crate::tasks;

/// A connection that rested longer is asked whether it still lives: a restarted server or a
/// firewall may have cut it, and a statement sent into the void must not fail its caller.
const CHECK_AFTER_IDLE: Duration = Duration::from_secs(1);
/// A name may lead to another server by then, and what a server process has gathered is let go.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// A server that comes back answers new connections, not those that were begun while it was away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// So many rest as long as the configuration allows, others no longer than this.
const RESTING: usize = 2;
const SURPLUS_TIMEOUT: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 5000 });
/// How long statements that are under way when everything is closed may take to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// A look at the server serves all callers that ask within this time.
const FRESH: Duration = ENDING;
/// How soon the server is asked whether a statement that was given up has ended, and how often later.
const ASK_FIRST: Duration = Duration::from_millis(10);
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// A server that knows nothing of a statement by then, and does not say so, will not tell any more.
const LONGEST_ENDING: Duration = Duration::from_secs(30);

pub struct Connections {
    pool: Pool<Opener>,
    idle_timeout: Duration,
    tended: AtomicBool,
    /// Statements that nobody waits for any more, but the server may still execute.
    given_up: Mutex<Vec<Arc<GivenUp>>>,
    inquiry: Mutex<Option<Inquiry>>,
}

struct Opener {
    options: PgConnectOptions,
    /// Whether sessions keep what is set in them: not behind a pooler.
    sessions: bool,
    silent: Silent,
    unanswered: Silent,
}

struct Resting {
    connection: PgConnection,
    since: Instant,
    /// Behind a pooler, one of those that it shares out.
    backend: Process,
    isolation: String,
}

/// A server process: its number, and when it was started, in µs.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    started: i64,
}

struct GivenUp {
    backend: Process,
    text: Arc<str>,
}

/// The look at the server that is under way, or was the last.
struct Inquiry {
    began: Instant,
    /// When it took up the statements that were given up, once it has a connection.
    looked: Arc<OnceLock<Instant>>,
    outcome: Shared<BoxFuture<'static, Result<Arc<Vec<Backend>>>>>,
}

/// A server process that a statement was sent to and that still lives.
struct Backend {
    process: Process,
    executes: bool,
}

/// An attempt to connect. Whoever gives one up that got no answer spares the others that wait the same.
struct Opening<'a> {
    opener: &'a Opener,
    began: Instant,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if self.began.elapsed() > CHECK_TIMEOUT {
            self.opener.unanswered.note();
        }
    }
}

/// When a connection last kept silent. Others that have rested since before are as good as dead: waiting
/// for each of them in turn would cost every lease.
#[derive(Default)]
struct Silent(Mutex<Option<Instant>>);

impl Silent {
    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn since(&self, rest: Duration) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() <= rest)
    }
}

impl Manager for Opener {
    type Type = Resting;
    type Error = sqlx::Error;

    async fn create(&self) -> sqlx::Result<Resting> {
        let unanswered = || sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "no answer"));
        if self.unanswered.since(ASK_AGAIN) {
            return Err(unanswered());
        }
        let opening = Opening { opener: self, began: Instant::now() };
        let opened = timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&self.options));
        let opened = opened.await.map_err(|_| unanswered())?;
        forget(opening);
        let mut connection = opened?;
        // As plain text: poolers lose prepared statements.
        let mut row = Err(sqlx::Error::RowNotFound);
        if self.sessions {
            // A statement that waits for a lock then ends with its client. Some platforms do not have the setting.
            let introduction = format!(
                "{INTRODUCTION}, pg_catalog.set_config('client_connection_check_interval', '1s', false)"
            );
            row = connection.fetch_one(AssertSqlSafe(introduction)).await;
        }
        if matches!(row, Err(sqlx::Error::RowNotFound | sqlx::Error::Database(_))) {
            row = connection.fetch_one(INTRODUCTION).await;
        }
        let row = row?;
        let backend = Process { pid: row.try_get(0)?, started: row.try_get(1)? };
        Ok(Resting { connection, since: Instant::now(), backend, isolation: row.try_get(2)? })
    }

    async fn recycle(&self, resting: &mut Resting, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        let idle = resting.since.elapsed();
        if metrics.age() > LIFETIME {
            return Err(RecycleError::message("old"));
        }
        if self.silent.since(idle) {
            return Err(RecycleError::message("another connection kept silent"));
        }
        if idle < CHECK_AFTER_IDLE {
            return Ok(());
        }
        match timeout(CHECK_TIMEOUT, resting.connection.ping()).await {
            Ok(answer) => Ok(answer?),
            Err(_) => {
                self.silent.note();
                Err(RecycleError::message("no answer"))
            }
        }
    }
}

/// A connection that is dropped without [`Connection::give_back`] is in the middle of an answer, or of a transaction.
/// It is closed then, and keeps its place in the pool until its statement has ended in the server, too.
pub struct Connection {
    object: Option<Object<Opener>>,
    /// The text of the statement that the server may be executing.
    executing: Option<Arc<str>>,
    connections: Arc<Connections>,
}

impl Connections {
    /// Opens nothing. `sessions`: whether a connection stays with one server process.
    pub fn new(options: PgConnectOptions, most: u32, idle_timeout: Duration, sessions: bool) -> Arc<Self> {
        let opener = Opener { options, sessions, silent: Silent::default(), unanswered: Silent::default() };
        let pool = Pool::builder(opener).max_size(most as usize).queue_mode(QueueMode::Lifo).build();
        // Only timeouts of the pool's own, of which there are none, make it refuse.
        #[allow(clippy::expect_used)]
        let pool = pool.expect("a pool without timeouts");
        Arc::new(Self {
            pool,
            idle_timeout,
            tended: AtomicBool::new(false),
            given_up: Mutex::default(),
            inquiry: Mutex::default(),
        })
    }

    pub fn options(&self) -> &PgConnectOptions {
        &self.pool.manager().options
    }

    /// Waits for one that is free, and for a server that lets nobody in for a moment.
    pub async fn get(self: &Arc<Self>, deadline: Instant) -> Result<Connection> {
        let mut failures = 0;
        loop {
            let error = match self.try_get(deadline).await {
                Err(error) if error.passes() => error,
                outcome => return outcome,
            };
            if timeout_at(deadline, pause(failures)).await.is_err() {
                return Err(error);
            }
            failures += 1;
        }
    }

    /// Waits for one that is free.
    pub async fn try_get(self: &Arc<Self>, deadline: Instant) -> Result<Connection> {
        match timeout_at(deadline, self.pool.get()).await {
            Ok(Ok(object)) => {
                Ok(Connection { object: Some(object), executing: None, connections: Arc::clone(self) })
            }
            Ok(Err(PoolError::Backend(error))) => Err(Error::at_connect(error, &self.server())),
            Ok(Err(PoolError::Closed)) => Err(Error::Closed),
            // The pool tells that it waited, not what for.
            Ok(Err(_)) | Err(_) => match self.inquire(Instant::now().checked_sub(FRESH)).await {
                Ok(_) => Err(Error::Unavailable(format!(
                    "all {} connections stayed busy (WORKFLOW_POSTGRES_MAX_POOL_SIZE)",
                    self.pool.status().max_size
                ))),
                Err(error) => Err(error),
            },
        }
    }

    fn server(&self) -> String {
        format!("{}:{}", self.options().get_host(), self.options().get_port())
    }

    /// Asks the server, over one connection beside the pool's, what became of the statements that were given
    /// up, and ends them. All share one look, as long as it was not taken before `since`.
    async fn inquire(self: &Arc<Self>, since: Option<Instant>) -> Result<Arc<Vec<Backend>>> {
        loop {
            let (outcome, fresh) = {
                let mut inquiry = self.inquiry.lock().unwrap_or_else(PoisonError::into_inner);
                let current = inquiry.as_ref().map(|current| {
                    let over = current.outcome.peek().is_some();
                    let looked = current.looked.get().copied();
                    let from = if over { looked.or(Some(current.began)) } else { looked };
                    let fresh = from.is_none_or(|from| since.is_none_or(|since| from >= since));
                    (current.outcome.clone(), fresh, over)
                });
                match current {
                    Some((outcome, fresh, over)) if fresh || !over => (outcome, fresh),
                    _ => {
                        let begun = self.begin_inquiry();
                        let outcome = begun.outcome.clone();
                        *inquiry = Some(begun);
                        (outcome, true)
                    }
                }
            };
            let outcome = outcome.await;
            if fresh {
                return outcome;
            }
        }
    }

    fn begin_inquiry(self: &Arc<Self>) -> Inquiry {
        let (connections, looked) = (Arc::clone(self), Arc::new(OnceLock::new()));
        let mark = Arc::clone(&looked);
        let looking =
            tokio::spawn(
                async move { tasks::caught("A look at the server", connections.look(&mark)).await? },
            );
        let outcome = looking.map(|outcome| outcome.unwrap_or_else(|_| tasks::unanswered())).boxed().shared();
        Inquiry { began: Instant::now(), looked, outcome }
    }

    async fn look(&self, looked: &OnceLock<Instant>) -> Result<Arc<Vec<Backend>>> {
        let looking = async {
            let mut connection = PgConnection::connect_with(self.options()).await?;
            let given_up = {
                let given_up = self.given_up();
                let _ = looked.set(Instant::now());
                given_up.clone()
            };
            let mut backends = Vec::new();
            if !given_up.is_empty() {
                let mut transaction = connection.begin().await?;
                let query = unprepared(END_STATEMENTS)
                    .bind(given_up.iter().map(|statement| statement.backend.pid).collect::<Vec<_>>())
                    .bind(given_up.iter().map(|statement| statement.backend.started).collect::<Vec<_>>())
                    .bind(given_up.iter().map(|statement| statement.text.to_string()).collect::<Vec<_>>())
                    .bind(self.pool.manager().sessions);
                for row in query.fetch_all(&mut *transaction).await? {
                    let process = Process { pid: row.try_get(0)?, started: row.try_get(1)? };
                    backends.push(Backend { process, executes: row.try_get(2)? });
                }
                transaction.commit().await?;
            }
            connection.close().await?;
            Ok(Arc::new(backends))
        };
        match timeout(CHECK_TIMEOUT, looking).await {
            Ok(outcome) => outcome.map_err(|error| Error::at_connect(error, &self.server())),
            Err(_) => Err(Error::unreachable_server(&self.server(), "no answer")),
        }
    }

    fn given_up(&self) -> MutexGuard<'_, Vec<Arc<GivenUp>>> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the statement has ended in the server. `object` keeps its place in the pool so long.
    async fn end(self: Arc<Self>, mut object: Object<Opener>, text: Arc<str>) {
        let statement = Arc::new(GivenUp { backend: object.backend, text });
        self.given_up().push(Arc::clone(&statement));
        let began = Instant::now();
        let mut wait = ASK_FIRST;
        let mut line = true;
        while began.elapsed() < LONGEST_ENDING {
            if line {
                match timeout(wait, object.connection.ping()).await {
                    Ok(Ok(())) => break,
                    Ok(Err(sqlx::Error::Database(refusal))) if is_fatal(&*refusal) => break,
                    // The end of the statement itself.
                    Ok(Err(sqlx::Error::Database(_))) => continue,
                    Ok(Err(_)) => line = false,
                    Err(_) => {}
                }
            } else {
                sleep(wait).await;
            }
            wait = (wait * 2).min(ASK_AGAIN);
            if let Ok(backends) = self.inquire(Some(Instant::now())).await {
                // Where the line is cut, a server process that executes nothing gets nothing more to execute.
                let under_way =
                    |backend: &Backend| backend.process == statement.backend && (line || backend.executes);
                if !backends.iter().any(under_way) {
                    break;
                }
            }
        }
        self.given_up().retain(|other| !Arc::ptr_eq(other, &statement));
        drop(Object::take(object));
    }

    fn tend(self: &Arc<Self>) {
        if self.tended.swap(true, Ordering::Relaxed) {
            return;
        }
        let connections = Arc::downgrade(self);
        tasks::spawn("The closing of surplus connections", move || {
            Self::close_surplus_of(connections.clone())
        });
    }

    async fn close_surplus_of(connections: Weak<Self>) {
        loop {
            sleep(SURPLUS_TIMEOUT).await;
            let Some(connections) = connections.upgrade() else { return };
            connections.close_surplus().await;
            if connections.pool.status().size == 0 {
                connections.tended.store(false, Ordering::Relaxed);
                return;
            }
        }
    }

    async fn close_surplus(&self) {
        let mut surplus = self.pool.status().available.saturating_sub(RESTING);
        // Those that were used last come last.
        let removed = self.pool.retain(|resting, _| {
            let longest =
                if surplus > 0 { SURPLUS_TIMEOUT.min(self.idle_timeout) } else { self.idle_timeout };
            surplus = surplus.saturating_sub(1);
            resting.since.elapsed() < longest
        });
        close_all(removed.removed).await;
    }

    /// Returns when the statements under way have ended.
    pub async fn close(&self) {
        let resting = self.pool.retain(|_, _| false);
        self.pool.close();
        close_all(resting.removed).await;
        let _ = timeout(CLOSE_TIMEOUT, async {
            while self.pool.status().size > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

async fn close_all(resting: Vec<Resting>) {
    for Resting { connection, .. } in resting {
        let _ = timeout(CHECK_TIMEOUT, connection.close()).await;
    }
}

impl Connection {
    /// The functions look again after they have waited for a lock, and must then see what was committed.
    pub fn check_isolation(&self) -> Result<()> {
        match self.object.as_ref().map(|object| &*object.isolation) {
            None | Some("read committed") => Ok(()),
            Some(isolation) => Err(Error::Configuration(format!(
                "default_transaction_isolation is {isolation:?} for the role or database of WORKFLOW_POSTGRES_URL; this \
                 World needs \"read committed\": ALTER ROLE … SET default_transaction_isolation = 'read committed'"
            ))),
        }
    }

    /// Until it is given back, the server may be executing this.
    pub fn executes(&mut self, text: Arc<str>) {
        self.executing = Some(text);
    }

    /// For others: everything that was asked of it is answered, and no transaction is open.
    pub fn give_back(mut self) {
        self.executing = None;
        if let Some(mut object) = self.object.take() {
            object.since = Instant::now();
            drop(object);
            self.connections.tend();
        }
    }

    /// Closes it: everything that was asked of it is answered, but no other statement shall follow.
    pub fn close(mut self) {
        self.executing = None;
    }

    /// It did not answer in time.
    pub fn kept_silent(&self) {
        self.connections.pool.manager().silent.note();
    }

    /// Ends its statement. Returns when that has ended in the server, or after `limit`.
    pub async fn end(mut self, limit: Duration) {
        if let Some(ended) = self.start_ending() {
            let _ = timeout(limit, ended).await;
        }
    }

    fn start_ending(&mut self) -> Option<oneshot::Receiver<()>> {
        let object = self.object.take()?;
        // At the end of the process there may be no runtime any more.
        let (Some(text), Ok(runtime)) = (self.executing.take(), Handle::try_current()) else {
            drop(Object::take(object));
            return None;
        };
        let (done, ended) = oneshot::channel();
        let ending = Arc::clone(&self.connections).end(object, text);
        runtime.spawn(async move {
            // After a panic, which is reported, the connection is closed as well.
            let _ = tasks::caught("The end of a statement", ending).await;
            let _ = done.send(());
        });
        Some(ended)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        drop(self.start_ending());
    }
}

// Only `give_back` and `drop` take it, and nobody has the connection after them.
#[allow(clippy::expect_used)]
impl Deref for Connection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.object.as_ref().expect("a connection").connection
    }
}

#[allow(clippy::expect_used)]
impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.object.as_mut().expect("a connection").connection
    }
}

/// The process, and what its transactions begin with.
const INTRODUCTION: &str = "
    SELECT pid, (extract(epoch FROM backend_start) * 1000000.0)::bigint,
           pg_catalog.current_setting('transaction_isolation')
    FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())";

/// Ends the statements $3, which were sent to the processes $1 that were started at $2, and returns the processes
/// that still live. Behind a pooler nobody knows its process: one that waits for a lock is recognised by its
/// text, once it has waited longer than any sender does.
const END_STATEMENTS: &str = "
    SELECT a.pid, g.started, COALESCE(a.state = 'active' AND pg_catalog.starts_with(g.text, NULLIF(a.query, '')), true),
           CASE
             WHEN a.state = 'active' AND pg_catalog.starts_with(g.text, NULLIF(a.query, '')) THEN
               CASE WHEN a.query_start < pg_catalog.clock_timestamp() - interval '1 s'
                    THEN pg_catalog.pg_cancel_backend(a.pid) END
             WHEN $4 AND a.state <> 'active' THEN pg_catalog.pg_terminate_backend(a.pid)
           END
    FROM unnest($1::int[], $2::bigint[], $3::text[]) AS g(pid, started, text)
    JOIN pg_catalog.pg_stat_activity a ON a.datname = pg_catalog.current_database() AND a.usename = current_user
     AND a.pid <> pg_catalog.pg_backend_pid()
     AND (a.pid = g.pid AND (extract(epoch FROM a.backend_start) * 1000000.0)::bigint = g.started
          OR a.wait_event_type = 'Lock' AND a.query_start < pg_catalog.clock_timestamp() - interval '9 s'
             AND pg_catalog.starts_with(g.text, NULLIF(a.query, '')))";

#[cfg(test)]
mod tests;
