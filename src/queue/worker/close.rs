//! The end: running deliveries may finish, the rest is given back.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::Worker;
use crate::database::patience::Limit;
use crate::queue::Level;
use crate::queue::store::Action;

/// How long `close` tries to give jobs back; after that their leases run out.
const GIVE_BACK: Duration = Duration::from_secs(2);

impl Worker {
    pub async fn close(self: Arc<Self>, limit: Duration) {
        self.state().closing = true;
        self.wake.notify_one();
        self.spawn("The announcement of due jobs", Self::tell_others);
        if timeout(limit, self.rest()).await.is_err() {
            self.give_back();
            self.wake.notify_one();
            if timeout(GIVE_BACK, self.rest()).await.is_err() {
                self.log.log(
                    Level::Warn,
                    "Jobs could not be given back on close; others take them when their leases expire",
                    &[],
                );
            }
        }
        // Of what was put off meanwhile.
        Arc::clone(&self).tell_others().await;
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            task.abort();
        }
    }

    /// Jobs that are due soon were not announced, because this worker would have looked in time. Should
    /// this fail, other workers find them when they look by themselves.
    pub(super) async fn tell_others(self: Arc<Self>) {
        let (database, queues) = (&self.store.database, &self.store.queues);
        let announce = database
            .query(&database.render(include_str!("../sql/announce.sql")))
            .bind(database.notifications.channels().queue.clone())
            .bind(queues.flows.clone())
            .bind(queues.steps.clone());
        let _ = timeout(GIVE_BACK, database.execute_once(announce, Limit::WRITE)).await;
    }

    fn give_back(&self) {
        let mut state = self.state();
        for claim in state.claims() {
            if let Some(task) = state.running.get_mut(&claim).and_then(|running| running.task.take()) {
                task.abort();
            }
            state.settle(&claim, Action::Release { delay: Duration::ZERO });
        }
    }

    /// Until nothing runs, nor is about to run, nor has to be settled.
    async fn rest(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.state().at_rest() {
                return;
            }
            // A reserved slot is given back without ceremony; hence the pause.
            tokio::select! {
                () = ended => {}
                () = sleep(Duration::from_millis(50)) => {}
            }
        }
    }
}
