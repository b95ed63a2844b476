//! One LISTEN connection per process and database, for stream readers and queue workers alike.
//!
//! A subscription is only ever a hint to look: it is woken by a notification of its topic, and also
//! whenever the connection was lost and is back, because anything may have happened in between.
//!
//! A transaction pooler takes a LISTEN and never delivers a notification. So a notification to
//! ourselves has to arrive, sent over the pool that the writes use, before we count as listening.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use sha2::{Digest, Sha224};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, Postgres, Row};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::connections::Connections;
use crate::error::{Error, Result};
use crate::tasks;

const CONNECT_TIMEOUT: Duration = seconds(5);
const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = seconds(1);
/// How long the notification to ourselves may take.
const PROBE_TIMEOUT: Duration = seconds(5);
/// A pooler rarely turns into something else.
const DEAF_RETRY: Duration = seconds(300);
/// A connection that said nothing for this long is asked whether it lives: nobody else would notice
/// that a firewall or a crashed host has cut it.
const PING_INTERVAL: Duration = seconds(10);
const PING_TIMEOUT: Duration = seconds(5);
/// A process without subscriptions gives its connection back after so many intervals.
const UNUSED_INTERVALS: u32 = 3;
/// A loss that lasts longer is worth a warning.
const WARN_AFTER: Duration = seconds(10);
const CLOSE_TIMEOUT: Duration = seconds(1);

/// Tests live five times as fast.
const fn seconds(count: u64) -> Duration {
    Duration::from_millis(count * if cfg!(test) { 200 } else { 1000 })
}

type Warn = Box<dyn Fn(&str) + Send + Sync>;

pub struct Notifications {
    options: Option<PgConnectOptions>,
    sender: Arc<Connections>,
    channels: Channels,
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone)]
pub struct Channels {
    /// Payload: the name of a stream that has grown or closed.
    pub streams: String,
    /// pg-boss's own channel for its schema. Payload: the name of a queue with a job that is due.
    pub queue: String,
}

impl Channels {
    pub fn of(schema: &str, queue_schema: &str) -> Self {
        let hash = |name: &str| hex::encode(Sha224::digest(name.as_bytes()))[..24].to_owned();
        Self {
            streams: format!("workflow_streams_{}", hash(schema)),
            queue: format!("pgboss_{}", hash(queue_schema)),
        }
    }
}

struct Shared {
    topics: Mutex<HashMap<Topic, Vec<Weak<Notify>>>>,
    subscribed: Notify,
    listening: watch::Sender<bool>,
    closed: watch::Sender<bool>,
    warn: OnceLock<Warn>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Topic {
    channel: String,
    payload: String,
}

/// Woken by [`Subscription::notified`]; ends when dropped.
pub struct Subscription {
    topic: Topic,
    wake: Arc<Notify>,
    shared: Arc<Shared>,
}

impl Notifications {
    /// `options`: where to LISTEN; without them everybody polls. `sender`: the pool of those who notify.
    pub fn new(options: Option<PgConnectOptions>, sender: Arc<Connections>, channels: Channels) -> Self {
        let shared = Shared {
            topics: Mutex::default(),
            subscribed: Notify::new(),
            listening: watch::Sender::new(false),
            closed: watch::Sender::new(false),
            warn: OnceLock::new(),
        };
        Self { options, sender, channels, shared: Arc::new(shared), task: Mutex::default() }
    }

    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// Whether notifications arrive now. While not, subscribers have to poll.
    pub fn is_listening(&self) -> bool {
        *self.shared.listening.borrow()
    }

    /// How many subscriptions there are now.
    pub fn subscriptions(&self) -> usize {
        self.shared.topics().values().map(Vec::len).sum()
    }

    /// Who is told, once per loss, that notifications do not arrive. The first call counts.
    pub fn on_warning(&self, warn: impl Fn(&str) + Send + Sync + 'static) {
        let _ = self.shared.warn.set(Box::new(warn));
    }

    /// The first subscription opens the connection. Subscribe before reading: what happens after the
    /// read then wakes the subscription.
    pub fn subscribe(&self, channel: &str, payload: &str) -> Subscription {
        let topic = Topic { channel: channel.to_owned(), payload: payload.to_owned() };
        let wake = Arc::new(Notify::new());
        self.shared.topics().entry(topic.clone()).or_default().push(Arc::downgrade(&wake));
        self.shared.subscribed.notify_one();
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if let (None, Some(options), false) = (&*task, &self.options, self.shared.is_closed()) {
            let listener = Arc::new(Listener {
                options: options.clone(),
                sender: self.sender.clone(),
                channels: self.channels.clone(),
                shared: Arc::clone(&self.shared),
            });
            *task = Some(tasks::spawn("The listener", move || Arc::clone(&listener).run()));
        }
        Subscription { topic, wake, shared: Arc::clone(&self.shared) }
    }

    /// Wakes all subscribers a last time. Those that come later are never woken.
    pub async fn close(&self) {
        let task = {
            let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.closed.send_replace(true);
            task.take()
        };
        if let Some(task) = task {
            // It ends by itself; an error would be a panic of its own, and there is nothing left to end.
            let _ = task.await;
        }
    }
}

impl Drop for Notifications {
    fn drop(&mut self) {
        self.shared.closed.send_replace(true);
    }
}

impl Subscription {
    /// Returns at once where a notification came since the last call.
    pub async fn notified(&self) {
        self.wake.notified().await;
    }

    /// As [`Self::notified`], but while notifications do not arrive it returns after `poll`.
    pub async fn notified_or(&self, poll: Duration) {
        let mut listening = self.shared.listening.subscribe();
        let deaf = async {
            // Fails only once the sender is gone, and we hold that.
            let _ = listening.wait_for(|listening| !listening).await;
            sleep(poll).await;
        };
        tokio::select! {
            () = self.notified() => {}
            () = deaf => {}
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut topics = self.shared.topics();
        if let Some(wakes) = topics.get_mut(&self.topic) {
            wakes.retain(|wake| wake.as_ptr() != Arc::as_ptr(&self.wake));
            if wakes.is_empty() {
                topics.remove(&self.topic);
            }
        }
    }
}

impl Shared {
    fn topics(&self) -> MutexGuard<'_, HashMap<Topic, Vec<Weak<Notify>>>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wanted(&self) {
        while self.topics().is_empty() {
            self.subscribed.notified().await;
        }
    }

    fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    fn wake(&self, channel: &str, payload: &str) {
        let topic = Topic { channel: channel.to_owned(), payload: payload.to_owned() };
        for wake in self.topics().get(&topic).into_iter().flatten().filter_map(Weak::upgrade) {
            wake.notify_one();
        }
    }

    fn wake_all(&self) {
        for wake in self.topics().values().flatten().filter_map(Weak::upgrade) {
            wake.notify_one();
        }
    }

    fn warn(&self, message: &str) {
        if let Some(warn) = self.warn.get() {
            warn(message);
        }
    }
}

struct Listener {
    options: PgConnectOptions,
    sender: Arc<Connections>,
    channels: Channels,
    shared: Arc<Shared>,
}

enum End {
    /// Nobody is subscribed any more.
    Idle,
    /// It was listening and is no more.
    Lost,
    /// Connected, but notifications do not arrive.
    Deaf,
    Failed(Error),
}

impl Listener {
    async fn run(self: Arc<Self>) {
        // True after a panic.
        self.shared.listening.send_replace(false);
        let mut closed = self.shared.closed.subscribe();
        let mut pause = RECONNECT_FIRST;
        let mut down_since = Instant::now();
        let mut warned = false;
        loop {
            // A pool of its own for each attempt: a connection that hangs must not block the next.
            let pool = PgPoolOptions::new()
                .max_connections(1)
                .acquire_timeout(CONNECT_TIMEOUT)
                .idle_timeout(None)
                .max_lifetime(None)
                .connect_lazy_with(self.options.clone());
            let end = tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => None,
                end = self.listen(&pool) => Some(end),
            };
            self.shared.listening.send_replace(false);
            // Where it hangs there is nothing to save.
            let _ = timeout(CLOSE_TIMEOUT, pool.close()).await;

            let Some(end) = end else { break };
            let mut resting = Duration::ZERO;
            let mut warning = None;
            match end {
                End::Idle | End::Lost => {
                    (pause, down_since, warned) = (RECONNECT_FIRST, Instant::now(), false);
                }
                End::Deaf => {
                    resting = DEAF_RETRY;
                    warning = Some(
                        "Notifications of PostgreSQL do not arrive, as behind a transaction pooler; polling \
                         instead. Set WORKFLOW_POSTGRES_LISTEN_URL to a direct connection to the same database; where \
                         the pooler does not know prepared statements, set WORKFLOW_POSTGRES_STATEMENT_CACHE=false."
                            .to_owned(),
                    );
                }
                End::Failed(error) => {
                    resting = pause;
                    pause = (pause * 2).min(RECONNECT_MAX);
                    if down_since.elapsed() > WARN_AFTER {
                        warning = Some(format!(
                            "No connection for notifications of PostgreSQL; polling until there is one: {error}"
                        ));
                    }
                }
            }
            if let (false, Some(warning)) = (warned, warning) {
                warned = true;
                self.shared.warn(&warning);
            }
            tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => break,
                () = async {
                    sleep(resting).await;
                    self.shared.wanted().await;
                } => {}
            }
        }
        // They find the database closed.
        self.shared.wake_all();
    }

    async fn listen(&self, pool: &PgPool) -> End {
        let mut listener = match self.connect(pool).await {
            Ok(Some(listener)) => listener,
            Ok(None) => return End::Deaf,
            Err(error) => return End::Failed(error),
        };
        self.shared.listening.send_replace(true);
        // After LISTEN took effect: what was missed before is found by those who look now.
        self.shared.wake_all();

        let mut ticks = interval(PING_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let (mut heard, mut unused) = (false, 0);
        loop {
            tokio::select! {
                received = listener.try_recv() => {
                    let Ok(Some(notification)) = received else { return End::Lost };
                    heard = true;
                    self.shared.wake(notification.channel(), notification.payload());
                }
                _ = ticks.tick() => {
                    unused = if self.shared.topics().is_empty() { unused + 1 } else { 0 };
                    if unused == UNUSED_INTERVALS {
                        return End::Idle;
                    }
                    if !heard && !matches!(timeout(PING_TIMEOUT, listener.execute("SELECT 1")).await, Ok(Ok(_))) {
                        return End::Lost;
                    }
                    heard = false;
                }
            }
        }
    }

    /// `None` where notifications do not arrive.
    async fn connect(&self, pool: &PgPool) -> Result<Option<PgListener>> {
        // As plain text, all of it: poolers lose prepared statements.
        let mut listener = in_time(PgListener::connect_with(pool)).await?;
        // Reconnecting is the loop's in `run`: it also has to wake everybody.
        listener.eager_reconnect(false);
        let mut sender = self.sender.get(Instant::now() + CONNECT_TIMEOUT).await?;
        if in_time(backend(&mut listener)).await? == backend(&mut *sender).await? {
            return Ok(None);
        }

        // Behind a transaction pooler a LISTEN stays with the server, and whoever is given that server
        // next gets the notifications. So the real channels come second, and nobody else ever notifies
        // the channel of the probe.
        let probe = format!("workflow_probe_{:016x}", rand::random::<u64>());
        in_time(listener.listen(&probe)).await?;
        match sender.execute(AssertSqlSafe(format!("SELECT pg_notify('{probe}', '')"))).await {
            Ok(_) => sender.give_back(),
            // The answer was the notification: the sender was given the listener's server.
            Err(sqlx::Error::Protocol(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        match timeout(PROBE_TIMEOUT, listener.try_recv()).await {
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => return Err(sqlx::Error::Io(std::io::ErrorKind::UnexpectedEof.into()).into()),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Ok(None),
        }
        in_time(listener.listen_all([&*self.channels.streams, &*self.channels.queue])).await?;
        in_time(listener.unlisten(&probe)).await?;
        Ok(Some(listener))
    }
}

async fn backend(executor: impl Executor<'_, Database = Postgres>) -> sqlx::Result<i32> {
    executor.fetch_one("SELECT pg_backend_pid()").await?.try_get(0)
}

async fn in_time<T>(connecting: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

#[cfg(test)]
mod tests;
