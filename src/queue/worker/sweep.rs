//! Sweeps: jobs whose lease has expired go back to the queue, and what no notification told is found.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Worker;
use super::service::Service;
use crate::error::Result;
use crate::queue::Level;
use crate::queue::store::Expired;
use crate::queue::timing::{
    BACKOFF_MAX, FULL_SWEEP, LEASE, SWEEP, SWEEP_BESIDE_LEASES, SWEEP_GAP, SWEEP_WITHOUT_LISTEN,
};

const SERVICE: Service = Service { name: "The sweep for expired leases", longest_pause: BACKOFF_MAX };

impl Worker {
    pub(super) async fn keep_sweeping(self: Arc<Self>) {
        self.serve(SERVICE, Self::sweep).await;
    }

    async fn sweep(self: Arc<Self>) -> Result<Duration> {
        let release = self.state().trouble.is_none_or(|at| at.elapsed() > LEASE);
        let start = Instant::now();
        let full = start >= *self.full_sweep_at.lock().unwrap_or_else(PoisonError::into_inner);
        let since = if full { [None; 2] } else { self.state().slots.each_ref().map(|slots| slots.since) };
        let swept = self.store.sweep(release, &self.claims(), since).await?;
        if full {
            // Beside a transaction that is open for long, it reads all that was claimed since.
            let at = Instant::now() + start.elapsed() * FULL_SWEEP;
            *self.full_sweep_at.lock().unwrap_or_else(PoisonError::into_inner) = at;
        }
        self.pulses.sweep.touch();
        self.tell_expired(&swept.expired);
        for (job_id, error) in &swept.refused {
            self.tell_refused(job_id, error);
        }
        {
            let mut state = self.state();
            for kind in swept.due {
                let slots = state.slots_mut(kind);
                // The sweep may have found jobs that are older than the point from which the turns look.
                if full {
                    slots.since = None;
                }
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

    fn tell_expired(&self, expired: &[Expired]) {
        let released = expired.iter().filter(|expired| !expired.dead).count();
        if released > 0 {
            self.counters.swept.fetch_add(released as u64, Ordering::Relaxed);
            let count = released.to_string();
            self.log.log(
                Level::Warn,
                "Leases of a dead worker have expired; its jobs run again",
                &[("jobs", &count)],
            );
        }
        // The first death may have had any cause.
        for Expired { job_id, group, lost, dead } in expired.iter().filter(|expired| expired.lost > 1) {
            let times = lost.to_string();
            let fields = [("run", group.as_str()), ("job", job_id), ("times", &times)];
            if *dead {
                self.counters.given_up.fetch_add(1, Ordering::Relaxed);
                let message = "A message was given up: its process died each time that it was delivered";
                self.log.log(Level::Error, message, &fields);
            } else {
                let message = "A process died again while it delivered a message; it is delivered alone";
                self.log.log(Level::Warn, message, &fields);
            }
        }
    }
}
