//! Sweeps: jobs whose lease has expired go back to the queue, and what no notification told is found.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Worker;
use super::service::Service;
use crate::error::Result;
use crate::queue::Level;
use crate::queue::timing::{BACKOFF_MAX, LEASE, SWEEP, SWEEP_BESIDE_LEASES, SWEEP_GAP, SWEEP_WITHOUT_LISTEN};

const SERVICE: Service = Service { name: "The sweep for expired leases", longest_pause: BACKOFF_MAX };

impl Worker {
    pub(super) async fn keep_sweeping(self: Arc<Self>) {
        self.serve(SERVICE, Self::sweep).await;
    }

    async fn sweep(self: Arc<Self>) -> Result<Duration> {
        let release = self.state().trouble.is_none_or(|at| at.elapsed() > LEASE);
        let swept = self.store.sweep(release, &self.claims()).await?;
        self.pulses.sweep.touch();
        if swept.released > 0 {
            self.counters.swept.fetch_add(swept.released, Ordering::Relaxed);
            let count = swept.released.to_string();
            self.log.log(
                Level::Warn,
                "Leases of a dead worker have expired; its jobs run again",
                &[("jobs", &count)],
            );
        }
        {
            let mut state = self.state();
            for kind in swept.due {
                let slots = state.slots_mut(kind);
                // What it has found may be older than where the turns look from.
                slots.since = None;
                slots.signal();
            }
            for (kind, delay) in swept.next {
                state.slots_mut(kind).due_in(delay);
            }
        }
        self.wake.notify_one();
        let period =
            if self.store.database.notifications.is_listening() { SWEEP } else { SWEEP_WITHOUT_LISTEN };
        let soon = swept.expiry.map_or(period, |expiry| expiry.min(SWEEP_BESIDE_LEASES));
        Ok(soon.min(period).max(SWEEP_GAP))
    }
}
