use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{Chunk, Page, Shared};
use crate::database::notifications::Subscription;
use crate::error::Result;

/// Bounds of one read, hence of the memory that a reader holds.
const MAX_CHUNKS: i64 = 256;
const MAX_BYTES: i64 = 256 << 10;

/// How often to look where notifications do not arrive: this often for the first minute without a
/// chunk, then ever more rarely.
const POLL_FIRST: Duration = Duration::from_millis(100);
const POLL_MAX: Duration = Duration::from_secs(1);

/// How long a reader sits out an outage of the database.
const OUTAGE_MAX: Duration = Duration::from_secs(30);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);

pub struct StreamReader {
    shared: Arc<Shared>,
    name: String,
    place: tokio::sync::Mutex<Place>,
    subscription: Mutex<Option<Arc<Subscription>>>,
    cancelled: watch::Sender<bool>,
}

struct Place {
    /// The next index to deliver. Negative, counted from the end, until the first read.
    next: i64,
    /// The last read saw the end of what is stored: the next one waits for news.
    caught_up: bool,
    ended: bool,
}

impl StreamReader {
    pub(super) fn new(shared: Arc<Shared>, name: String, start: i64) -> Self {
        Self {
            shared,
            name,
            place: tokio::sync::Mutex::new(Place { next: start, caught_up: false, ended: false }),
            subscription: Mutex::default(),
            cancelled: watch::Sender::new(false),
        }
    }

    /// Waits for chunks and returns a bounded number of them, in order and never none; `None` at the
    /// end of the stream or once cancelled. After an error the same chunks can be asked for again.
    pub async fn next(&self) -> Result<Option<Vec<Chunk>>> {
        let mut cancelled = self.cancelled.subscribe();
        tokio::select! {
            biased;
            _ = cancelled.wait_for(|cancelled| *cancelled) => Ok(None),
            batch = self.batch() => batch,
        }
    }

    /// Ends a pending [`Self::next`] at once and releases the subscription.
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
        self.subscription_slot().take();
    }

    async fn batch(&self) -> Result<Option<Vec<Chunk>>> {
        let mut place = self.place.lock().await;
        if place.ended {
            return Ok(None);
        }
        // Before the first read: what is written after that read then wakes it.
        let Some(subscription) = self.subscription() else { return Ok(None) };
        let since = Instant::now();
        loop {
            if place.caught_up {
                subscription.notified_or(poll_interval(since.elapsed())).await;
            }
            let page = self.read(place.next).await?;
            place.next = page.next;
            place.caught_up = page.next >= page.stored;
            if place.caught_up && page.closed {
                place.ended = true;
                self.subscription_slot().take();
            }
            if !page.chunks.is_empty() {
                return Ok(Some(page.chunks));
            }
            if place.ended {
                return Ok(None);
            }
        }
    }

    async fn read(&self, start: i64) -> Result<Page> {
        let since = Instant::now();
        let mut pause = RETRY_FIRST;
        loop {
            match self.shared.page(&self.name, start, MAX_CHUNKS, MAX_BYTES).await {
                Err(error) if error.passes() && since.elapsed() < OUTAGE_MAX => {
                    sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                outcome => return outcome,
            }
        }
    }

    /// `None` once cancelled: `cancel` sets its flag before it looks into the slot.
    fn subscription(&self) -> Option<Arc<Subscription>> {
        let mut slot = self.subscription_slot();
        if *self.cancelled.borrow() {
            return None;
        }
        let subscription = slot.get_or_insert_with(|| {
            let notifications = &self.shared.database.notifications;
            Arc::new(notifications.subscribe(&notifications.channels().streams, &self.name))
        });
        Some(Arc::clone(subscription))
    }

    fn subscription_slot(&self) -> MutexGuard<'_, Option<Arc<Subscription>>> {
        self.subscription.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn poll_interval(waited: Duration) -> Duration {
    (waited / 600).clamp(POLL_FIRST, POLL_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_waits_long_polls_rarely() {
        let after = |seconds| poll_interval(Duration::from_secs(seconds)).as_millis();
        assert_eq!([0, 60, 300, 600, 86_400].map(after), [100, 100, 500, 1000, 1000]);
    }
}
