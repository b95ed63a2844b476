//! One LISTEN connection per process and database, for stream readers and queue workers alike.
//!
//! A subscription is only ever a hint to look: it is woken by a notification of its topic, and also
//! whenever the connection was lost and is back, because anything may have happened in between.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use sha2::{Digest, Sha224};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);

pub struct Notifications {
    options: PgConnectOptions,
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

#[derive(Default)]
struct Shared {
    listening: AtomicBool,
    topics: Mutex<HashMap<Topic, Vec<Weak<Notify>>>>,
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
    pub fn new(options: PgConnectOptions, channels: Channels) -> Self {
        Self { options, channels, shared: Arc::default(), task: Mutex::default() }
    }

    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// Whether notifications arrive now. While not, subscribers have to poll.
    pub fn is_listening(&self) -> bool {
        self.shared.listening.load(Ordering::Relaxed)
    }

    /// The first subscription opens the connection. Subscribe before reading: what happens after the
    /// read then wakes the subscription.
    pub fn subscribe(&self, channel: &str, payload: &str) -> Subscription {
        let topic = Topic { channel: channel.to_owned(), payload: payload.to_owned() };
        let wake = Arc::new(Notify::new());
        self.shared.topics().entry(topic.clone()).or_default().push(Arc::downgrade(&wake));
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.is_none() {
            let (options, channels, shared) =
                (self.options.clone(), self.channels.clone(), Arc::clone(&self.shared));
            *task = Some(tokio::spawn(listen(options, channels, shared)));
        }
        Subscription { topic, wake, shared: Arc::clone(&self.shared) }
    }

    pub async fn close(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            // An aborted task ends with an error that says just that.
            let _ = task.await;
        }
    }
}

impl Subscription {
    /// Returns at once where a notification came since the last call.
    pub async fn notified(&self) {
        self.wake.notified().await;
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
}

async fn listen(options: PgConnectOptions, channels: Channels, shared: Arc<Shared>) {
    let mut pause = RECONNECT_FIRST;
    loop {
        if let Ok(mut listener) = connect(&options, &channels).await {
            pause = RECONNECT_FIRST;
            shared.listening.store(true, Ordering::Relaxed);
            // After LISTEN took effect: what was missed before is found by those who look now.
            shared.wake_all();
            while let Ok(Some(notification)) = listener.try_recv().await {
                shared.wake(notification.channel(), notification.payload());
            }
            shared.listening.store(false, Ordering::Relaxed);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RECONNECT_MAX);
    }
}

async fn connect(options: &PgConnectOptions, channels: &Channels) -> sqlx::Result<PgListener> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options.clone())
        .await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    // Reconnecting is the loop's above: it also has to wake everybody.
    listener.eager_reconnect(false);
    listener.listen_all([channels.streams.as_str(), channels.queue.as_str()]).await?;
    Ok(listener)
}
