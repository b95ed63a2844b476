//! Time: notifications, heartbeats, sweeps and rescues.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::Worker;
use crate::error::{Error, Result};
use crate::ids::new_message_id;
use crate::queue::store::{Claim, Push, Stranded};
use crate::queue::timing::{
    BACKOFF_MAX, HEARTBEAT, LEASE, PURGE, RESCUE, RESCUE_NEXT_PAGE, SWEEP, SWEEP_GAP, SWEEP_WITHOUT_LISTEN,
    backoff,
};
use crate::queue::{Kind, Level, Message};

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

    pub(super) async fn keep_time(self: Arc<Self>) {
        let start = Instant::now();
        let mut sweep_at = start;
        // Soon: a deployment is when runs get stranded.
        let mut rescue_at = start + RESCUE.mul_f64(rand::random_range(0.05..0.2));
        let mut purge_at = start + PURGE.mul_f64(rand::random_range(0.5..1.5));
        let mut page = String::new();
        let mut failures = 0;
        loop {
            let own = self.claims();
            let mut beat_at = Instant::now() + HEARTBEAT;
            if own.is_empty() {
                beat_at = sweep_at;
            }
            tokio::select! {
                () = sleep_until(sweep_at.min(beat_at)) => {}
                // The first lease: from now on there are beats.
                () = self.beat.notified(), if own.is_empty() => continue,
            }
            let now = Instant::now();
            let result = async {
                self.heartbeat().await?;
                if sweep_at <= now {
                    sweep_at = now + self.sweep().await?;
                }
                if rescue_at <= now && !self.state().closing {
                    let pause = self.rescue(&mut page).await?;
                    rescue_at = now + pause.mul_f64(rand::random_range(0.75..1.25));
                }
                if purge_at <= now {
                    self.store.purge().await?;
                    purge_at = now + PURGE;
                }
                Ok::<_, Error>(())
            }
            .await;
            match result {
                Ok(()) => failures = 0,
                Err(Error::Closed) => return,
                Err(error) => {
                    self.trouble("Leases could not be renewed or looked after; trying again", &error);
                    sweep_at = sweep_at.max(now + backoff(failures));
                    sleep(backoff(failures).min(HEARTBEAT / 4)).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    pub(super) async fn heartbeat(&self) -> Result<()> {
        let own = self.claims();
        if own.is_empty() {
            return Ok(());
        }
        let mut gone = self.store.heartbeat(&own).await?;
        {
            // What is being settled is gone for a good reason.
            let state = self.state();
            gone.retain(|claim| state.running.get(claim).is_some_and(|running| !running.settling));
        }
        self.lost(&gone);
        Ok(())
    }

    /// Their deliveries cannot be stopped, but what becomes of them does not count any more.
    pub(super) fn lost(&self, claims: &[Claim]) {
        for claim in claims {
            let first = match self.state().running.get_mut(claim) {
                Some(running) => !std::mem::replace(&mut running.lost, true),
                None => false,
            };
            if first {
                self.counters.lost.fetch_add(1, Ordering::Relaxed);
                self.log.log(
                    Level::Warn,
                    "The lease of a delivery was lost; another worker has its job",
                    &[("job", &claim.job_id)],
                );
            }
        }
    }

    /// Returns how long to wait for the next sweep.
    pub(super) async fn sweep(&self) -> Result<Duration> {
        let release = self.state().trouble.is_none_or(|at| at.elapsed() > LEASE);
        let swept = self.store.sweep(release, &self.claims()).await?;
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
        Ok(swept.expiry.unwrap_or(period).min(period).max(SWEEP_GAP))
    }

    /// Wakes stranded runs of the next page; returns how long to wait for the one after it.
    pub(super) async fn rescue(&self, page: &mut String) -> Result<Duration> {
        let (stranded, next) = self.store.stranded(page).await?;
        if !stranded.is_empty() {
            let mut pushes = stranded.iter().map(wake_up).collect::<Result<Vec<_>>>()?;
            pushes.sort_by(|a, b| a.order().cmp(&b.order()));
            // Woken first, marked then: a crash in between wakes once more, but leaves nobody behind.
            self.store.push(&pushes).await?;
            self.store.mark_rescued(&stranded).await?;
            self.counters.rescued.fetch_add(stranded.len() as u64, Ordering::Relaxed);
            let count = stranded.len().to_string();
            self.log.log(Level::Info, "Runs without a message were woken", &[("runs", &count)]);
        }
        let pause = if next.is_some() { RESCUE_NEXT_PAGE } else { RESCUE };
        *page = next.unwrap_or_default();
        Ok(pause)
    }

    pub(super) fn claims(&self) -> Vec<Claim> {
        self.state().claims()
    }

    pub(super) fn trouble(&self, message: &str, error: &Error) {
        let first = {
            let mut state = self.state();
            let quiet = state.trouble.is_some_and(|at| at.elapsed() < BACKOFF_MAX * 2);
            state.trouble = Some(Instant::now());
            !quiet
        };
        // Once per outage, not once per try.
        if first {
            self.log.log(Level::Warn, message, &[("error", &error.to_string())]);
        }
    }
}

fn wake_up(run: &Stranded) -> Result<Push> {
    Push::new(Arc::new(Message {
        kind: Kind::Flow,
        id: run.workflow.clone(),
        queue_name: format!("__wkf_workflow_{}", run.workflow),
        idempotency_key: None,
        message_id: new_message_id(),
        body: serde_json::json!({ "runId": run.run_id }).to_string().into_bytes(),
        headers: Vec::new(),
        delay: None,
    }))
}
