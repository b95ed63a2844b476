//! Notifications: what others have pushed is looked for at once.

use std::sync::Arc;

use super::Worker;
use crate::queue::Kind;

impl Worker {
    pub(super) async fn listen(self: Arc<Self>) {
        let notifications = &self.store.database.notifications;
        let channel = notifications.channels().queue.clone();
        let flows = notifications.subscribe(&channel, self.store.queues.name(Kind::Flow));
        let steps = notifications.subscribe(&channel, self.store.queues.name(Kind::Step));
        loop {
            let kind = tokio::select! {
                () = flows.notified() => Kind::Flow,
                () = steps.notified() => Kind::Step,
            };
            self.state().slots_mut(kind).signal();
            self.wake.notify_one();
        }
    }
}
