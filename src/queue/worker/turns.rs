//! Turns: each is one statement that settles what has ended and claims what there are slots for.

use std::sync::Arc;

use tokio::time::{Instant, sleep, sleep_until};

use super::Worker;
use super::state::{Reserved, settled};
use crate::error::{Error, Result};
use crate::queue::store::{Claimed, Look, Settlement, Turn};
use crate::queue::timing::{CLAIM_AGAIN, SWEEP, backoff};
use crate::queue::{Delivery, Kind};

/// What a turn has taken in hand. Dropped before its statement has succeeded, by an error or a panic, it
/// gives all of that back.
pub(super) struct Taken {
    worker: Arc<Worker>,
    settlements: Vec<Settlement>,
    looks: [Look; 2],
    /// Of [`super::state::Slots`], before the statement.
    signals: [u64; 2],
    reserved: Reserved,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let settlements = std::mem::take(&mut self.settlements);
        let looked = self.looks.map(|look| look.most.is_some());
        let mut state = self.worker.state();
        for kind in Kind::ALL.into_iter().filter(|kind| looked[*kind as usize]) {
            state.slots_mut(kind).backlog = true;
        }
        // The fences make a late settlement harmless.
        state.settlements.splice(0..0, settlements);
    }
}

impl Worker {
    pub(super) async fn take_turns(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            let Some(taken) = self.next_turn() else {
                self.pulses.turn.touch();
                let next = self.state().next_due();
                // Sweeps wake the turns as well; this pause shows that the turns are alive.
                let latest = Instant::now() + SWEEP;
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = sleep_until(next.map_or(latest, |next| next.min(latest))) => {}
                }
                continue;
            };
            match self.take_turn(taken).await {
                Ok(()) => {
                    failures = 0;
                    self.pulses.turn.touch();
                }
                // Nobody can settle anything any more; leases run out.
                Err(Error::Closed) => return,
                Err(error) => {
                    self.trouble("The claiming and settling of jobs", failures == 0, &error);
                    sleep(backoff(failures)).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    async fn take_turn(self: &Arc<Self>, taken: Taken) -> Result<()> {
        let asked = Instant::now();
        let turn = self.store.settle(&taken.settlements, taken.looks).await?;
        self.apply(taken, turn, asked);
        Ok(())
    }

    /// What the next statement is to do, with the slots for its claims taken; `None`: nothing.
    pub(super) fn next_turn(self: &Arc<Self>) -> Option<Taken> {
        let mut state = self.state();
        let claiming = state.takes_jobs();
        let now = Instant::now();
        let looks = Kind::ALL.map(|kind| {
            let settled = settled(&state.settlements, kind);
            let free = state.free(kind);
            let slots = state.slots_mut(kind);
            if slots.next.is_some_and(|at| at <= now) {
                slots.next = None;
                slots.signal();
            }
            let since = slots.since;
            if !claiming {
                return Look { most: None, since };
            }
            let most = if slots.backlog {
                free + settled
            } else if kind == Kind::Flow {
                // Only what waited for its run to be delivered.
                settled
            } else {
                0
            };
            Look { most: (most > 0).then_some(i32::try_from(most).unwrap_or(i32::MAX)), since }
        });
        if state.settlements.is_empty() && looks.iter().all(|look| look.most.is_none()) {
            return None;
        }
        let settlements = std::mem::take(&mut state.settlements);
        let signals = state.slots.each_ref().map(|slots| slots.signals);
        let slots =
            Kind::ALL.map(|kind| looks[kind as usize].most().saturating_sub(settled(&settlements, kind)));
        let reserved = Reserved::new(self, &mut state, slots);
        Some(Taken { worker: Arc::clone(self), settlements, looks, signals, reserved })
    }

    fn apply(self: &Arc<Self>, mut taken: Taken, mut turn: Turn, asked: Instant) {
        let settlements = std::mem::take(&mut taken.settlements);
        let looks = std::mem::replace(&mut taken.looks, [Look { most: None, since: None }; 2]);
        {
            let mut state = self.state();
            let claimed = Kind::ALL
                .map(|kind| turn.claimed.iter().filter(|claimed| claimed.claim.kind == kind).count());
            state.lose(&mut turn.lost);
            for settlement in &settlements {
                state.running.remove(&settlement.claim);
                state.slots_mut(settlement.claim.kind).ended += 1;
            }
            taken.reserved.change(&mut state, claimed);
            for settlement in &settlements {
                if let Some(delay) = settlement.action.delay() {
                    let slots = state.slots_mut(settlement.claim.kind);
                    if delay.is_zero() { slots.signal() } else { slots.due_in(delay) }
                }
            }
            for kind in Kind::ALL {
                let look = looks[kind as usize];
                let again = turn.again.contains(&kind);
                let slots = state.slots_mut(kind);
                match look.most {
                    Some(_) if again => {
                        slots.backlog = false;
                        slots.due_in(CLAIM_AGAIN);
                    }
                    Some(_) if claimed[kind as usize] < look.most() => {
                        slots.backlog = slots.signals != taken.signals[kind as usize];
                    }
                    Some(_) => slots.backlog = true,
                    None => {}
                }
            }
            for (kind, delay) in turn.next {
                state.slots_mut(kind).due_in(delay);
            }
            for (kind, since) in turn.since {
                let slots = state.slots_mut(kind);
                // A sweep may have asked for a look from the beginning meanwhile.
                if slots.since == looks[kind as usize].since {
                    slots.since = Some(since);
                }
            }
        }
        self.ended.notify_waiters();
        for Claimed { claim, attempt, group, data } in turn.claimed {
            let delivery =
                Delivery::from_data(claim.kind, self.namespace.as_deref(), attempt, &claim.job_id, &data);
            self.run(claim, group, delivery, attempt, asked);
        }
        self.tell_lost(&turn.lost);
    }
}
