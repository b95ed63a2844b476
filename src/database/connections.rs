//! The connections of a process.
//!
//! The one that was used last is used first: its server process has its plans made and its memory in the
//! caches of a processor. What a burst has opened beyond that is not used again, and closed. Nothing is
//! sent when a connection is given back.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use deadpool::managed::{Manager, Metrics, Object, Pool, PoolError, QueueMode, RecycleError, RecycleResult};
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::patience::pause;
use crate::tasks;

/// How long a call waits for a connection before it is told 503; the SDK then hands its work back.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that rested longer is asked whether it still lives: a restarted server or a
/// firewall may have cut it, and a statement sent into the void must not fail its caller.
const CHECK_AFTER_IDLE: Duration = Duration::from_secs(1);
/// A name may lead to another server by then, and what a server process has gathered is let go.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// So many rest as long as the configuration allows, others no longer than this.
const RESTING: usize = 2;
const SURPLUS_TIMEOUT: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 5000 });
/// How long statements that are under way when everything is closed may take to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Connections {
    pool: Pool<Opener>,
    idle_timeout: Duration,
    tended: AtomicBool,
}

struct Opener {
    options: PgConnectOptions,
    silent: Silent,
}

struct Resting {
    connection: PgConnection,
    since: Instant,
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
        let connection = PgConnection::connect_with(&self.options).await?;
        Ok(Resting { connection, since: Instant::now() })
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

/// Closed when it is dropped: whoever stops waiting for an answer leaves it in the middle of one, or of
/// a transaction. See [`Connection::give_back`].
pub struct Connection {
    object: Option<Object<Opener>>,
    connections: Arc<Connections>,
}

impl Connections {
    /// Opens nothing.
    pub fn new(options: PgConnectOptions, most: u32, idle_timeout: Duration) -> Arc<Self> {
        let opener = Opener { options, silent: Silent::default() };
        let pool = Pool::builder(opener).max_size(most as usize).queue_mode(QueueMode::Lifo).build();
        // Only timeouts of the pool's own, of which there are none, make it refuse.
        #[allow(clippy::expect_used)]
        let pool = pool.expect("a pool without timeouts");
        Arc::new(Self { pool, idle_timeout, tended: AtomicBool::new(false) })
    }

    pub fn options(&self) -> &PgConnectOptions {
        &self.pool.manager().options
    }

    /// Waits for one that is free, and for a server that is about to be there.
    pub async fn get(self: &Arc<Self>) -> sqlx::Result<Connection> {
        self.get_within(ACQUIRE_TIMEOUT).await
    }

    pub async fn get_within(self: &Arc<Self>, limit: Duration) -> sqlx::Result<Connection> {
        let deadline = Instant::now() + limit;
        let mut failures = 0;
        loop {
            let object = match timeout_at(deadline, self.pool.get()).await {
                Ok(object) => object,
                Err(_) => return Err(sqlx::Error::PoolTimedOut),
            };
            match object {
                Ok(object) => return Ok(Connection { object: Some(object), connections: Arc::clone(self) }),
                Err(PoolError::Backend(error)) if is_starting(&error) => {}
                Err(PoolError::Backend(error)) => return Err(error),
                Err(PoolError::Closed) => return Err(sqlx::Error::PoolClosed),
                Err(_) => return Err(sqlx::Error::PoolTimedOut),
            }
            if timeout_at(deadline, pause(failures)).await.is_err() {
                return Err(sqlx::Error::PoolTimedOut);
            }
            failures += 1;
        }
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
    /// For others: everything that was asked of it is answered, and no transaction is open.
    pub fn give_back(mut self) {
        if let Some(mut object) = self.object.take() {
            object.since = Instant::now();
            drop(object);
            self.connections.tend();
        }
    }

    /// It did not answer in time.
    pub fn kept_silent(&self) {
        self.connections.pool.manager().silent.note();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        drop(self.object.take().map(Object::take));
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

/// Whether the server is about to take connections: nobody listens yet, or it says so itself.
fn is_starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        sqlx::Error::Database(refusal) => refusal.code().as_deref() == Some("57P03"),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
