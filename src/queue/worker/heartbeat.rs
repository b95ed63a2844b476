//! Heartbeats: the leases of what is being delivered are renewed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Worker;
use super::service::Service;
use crate::error::Result;
use crate::queue::Level;
use crate::queue::store::Claim;
use crate::queue::timing::{HEARTBEAT, LEASE};

const SERVICE: Service = Service { name: "The renewal of leases", longest_pause: Duration::from_millis(500) };

impl Worker {
    pub(super) async fn keep_beating(self: Arc<Self>) {
        self.serve(SERVICE, Self::beat).await;
    }

    async fn beat(self: Arc<Self>) -> Result<Duration> {
        let own = self.claims();
        if own.is_empty() {
            // The first lease needs no renewal before the next beat.
            self.first_lease.notified().await;
            return Ok(HEARTBEAT);
        }
        let mut gone = self.store.heartbeat(&own).await?;
        self.pulses.heartbeat.touch();
        {
            let mut state = self.state();
            // A claim that is being settled is expected to be gone.
            gone.retain(|claim| state.running.get(claim).is_some_and(|running| !running.settling));
            state.lose(&mut gone);
        }
        self.tell_lost(&gone);
        Ok(HEARTBEAT)
    }

    /// How long ago leases were renewed last, where that is too long ago.
    pub(super) fn overdue_heartbeat(&self) -> Option<Duration> {
        let age = self.pulses.heartbeat.age();
        (age > LEASE / 2 && !self.state().running.is_empty()).then_some(age)
    }

    pub(super) fn tell_lost(&self, claims: &[Claim]) {
        self.counters.lost.fetch_add(claims.len() as u64, Ordering::Relaxed);
        for claim in claims {
            self.log.log(
                Level::Warn,
                "The lease of a delivery was lost; another worker has its job",
                &[("job", &claim.job_id)],
            );
        }
    }
}
