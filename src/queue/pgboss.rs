//! The built-in driver: messages are jobs in pg-boss's own tables.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::outbox::Outbox;
pub use super::store::{Depth, check, setup};
use super::store::{Push, Pushed, Store};
use super::worker::{Health, Worker};
use super::{Deliver, EventLoop, Log, Message};
use crate::config::QueueConfig;
use crate::database::Database;
use crate::database::patience::LONGEST_CALL;
use crate::error::{Error, Result};
use crate::tasks;

const BATCH: usize = 100;

pub struct PgBossQueue {
    store: Arc<Store>,
    config: QueueConfig,
    log: Arc<dyn Log>,
    outbox: Outbox<Push, String>,
    worker: Mutex<Option<Arc<Worker>>>,
    event_loop: Arc<EventLoop>,
}

impl PgBossQueue {
    /// No I/O, and no workers: those come with [`Self::start`] only.
    pub fn new(database: Arc<Database>, config: QueueConfig, log: Arc<dyn Log>) -> Arc<Self> {
        Arc::new(Self {
            store: Arc::new(Store::new(database, &config)),
            config,
            log,
            outbox: Outbox::new(1, BATCH),
            worker: Mutex::default(),
            event_loop: Arc::default(),
        })
    }

    /// Returns the id of the message that will be delivered: this one, or the one that it equals.
    pub async fn push(self: &Arc<Self>, message: Message) -> Result<Option<String>> {
        let (answer, lane) = self.outbox.add(Push::new(Arc::new(message))?);
        if lane {
            self.start_lane();
        }
        let Ok(answer) = timeout(LONGEST_CALL, answer).await else {
            return Err(Error::Unavailable("no answer within 10 s".to_owned()));
        };
        answer.unwrap_or_else(|_| tasks::unanswered()).map(Some)
    }

    /// Starts delivering. Does nothing where deliveries run already.
    pub async fn start(&self, deliver: Arc<dyn Deliver>) -> Result<()> {
        check(&self.store.database, &self.config).await?;
        let mut worker = self.worker_slot();
        if worker.is_none() {
            *worker = Some(Worker::start(
                Arc::clone(&self.store),
                &self.config,
                deliver,
                Arc::clone(&self.log),
                Arc::clone(&self.event_loop),
            ));
        }
        Ok(())
    }

    /// Claims nothing more, lets running deliveries end for up to `limit`, and gives the rest back.
    pub async fn close(&self, limit: Duration) {
        let worker = self.worker_slot().take();
        if let Some(worker) = worker {
            worker.close(limit).await;
        }
    }

    /// Of the JavaScript that is to execute deliveries: it should tick while it turns.
    pub fn event_loop(&self) -> &EventLoop {
        &self.event_loop
    }

    /// What this process does; `None` where no worker was started.
    pub fn health(&self) -> Option<Health> {
        self.worker().map(|worker| worker.health())
    }

    /// How long the message that has waited longest has been due; `None` where none waits.
    pub async fn oldest_due_ms(&self) -> Result<Option<i64>> {
        self.store.oldest_due_ms().await
    }

    /// What all processes have before them.
    pub async fn depth(&self) -> Result<Vec<Depth>> {
        self.store.depth().await
    }

    /// On its own: whoever awaits a push may stop doing so, others of the batch do not.
    fn start_lane(self: &Arc<Self>) {
        let queue = Arc::clone(self);
        tasks::spawn("A push of messages", move || Arc::clone(&queue).run_lane());
    }

    async fn run_lane(self: Arc<Self>) {
        while let Some(mut batch) = self.outbox.next() {
            batch.sort_by(|(a, _), (b, _)| a.order().cmp(&b.order()));
            let (mut pushes, replies): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let pushed = self.outbox.send(self.run(&mut pushes), || self.start_lane()).await;
            for (reply, pushed) in replies.into_iter().zip(pushed) {
                // The caller may have stopped waiting.
                let _ = reply.send(pushed.map(|pushed| pushed.message_id));
            }
        }
    }

    async fn run(&self, pushes: &mut [Push]) -> Vec<Result<Pushed>> {
        let worker = self.worker();
        let _reserved = worker.as_ref().map(|worker| worker.prepare(pushes));
        let asked = Instant::now();
        let pushed = self.store.push(pushes).await;
        if let Some(worker) = &worker {
            for (push, pushed) in pushes.iter().zip(&pushed) {
                if let Ok(pushed) = pushed {
                    worker.pushed(push, pushed, asked);
                }
            }
        }
        pushed
    }

    fn worker_slot(&self) -> MutexGuard<'_, Option<Arc<Worker>>> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn worker(&self) -> Option<Arc<Worker>> {
        self.worker_slot().clone()
    }
}
