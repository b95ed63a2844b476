//! Turns: each is one statement that settles what has ended and claims what there are slots for.

use std::sync::Arc;

use tokio::time::{Instant, sleep, sleep_until};

use super::Worker;
use super::state::{reserved, settled};
use crate::error::Error;
use crate::queue::store::{Claimed, Look, Settlement, Turn};
use crate::queue::timing::{CLAIM_AGAIN, backoff};
use crate::queue::{Delivery, Kind};

impl Worker {
    pub(super) async fn take_turns(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            let Some((settlements, looks)) = self.next_turn() else {
                let next = self.state().next_due();
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = async { match next { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => {}
                }
                continue;
            };
            let signals = self.state().slots.each_ref().map(|slots| slots.signals);
            let asked = Instant::now();
            match self.store.settle(&settlements, looks).await {
                Ok(turn) => {
                    failures = 0;
                    self.apply(&settlements, looks, signals, turn, asked);
                }
                // Nobody can settle anything any more; leases run out.
                Err(Error::Closed) => return,
                Err(error) => {
                    self.trouble("Deliveries could not be settled or claimed; trying again", &error);
                    {
                        let mut state = self.state();
                        for kind in Kind::ALL {
                            let settled = settled(&settlements, kind);
                            let slots = state.slots_mut(kind);
                            slots.free += reserved(looks[kind as usize], settled);
                            slots.backlog = true;
                        }
                        // Fenced: writing it late does no harm, and no later than it would have been.
                        state.settlements.splice(0..0, settlements);
                    }
                    sleep(backoff(failures)).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    /// What the next statement is to do, with the slots for its claims taken; `None`: nothing.
    pub(super) fn next_turn(&self) -> Option<(Vec<Settlement>, [Look; 2])> {
        let mut state = self.state();
        let claiming = state.gate.open && !state.closing;
        let settlements = std::mem::take(&mut state.settlements);
        let now = Instant::now();
        let looks = Kind::ALL.map(|kind| {
            let settled = settled(&settlements, kind);
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
                slots.free + settled
            } else if kind == Kind::Flow {
                // Only what waited for its run to be delivered.
                settled
            } else {
                0
            };
            slots.free -= most.saturating_sub(settled);
            Look { most: (most > 0).then_some(i32::try_from(most).unwrap_or(i32::MAX)), since }
        });
        (!settlements.is_empty() || looks.iter().any(|look| look.most.is_some()))
            .then_some((settlements, looks))
    }

    pub(super) fn apply(
        self: &Arc<Self>,
        settlements: &[Settlement],
        looks: [Look; 2],
        signals: [u64; 2],
        turn: Turn,
        asked: Instant,
    ) {
        self.lost(&turn.lost);
        {
            let mut state = self.state();
            for settlement in settlements {
                state.running.remove(&settlement.claim);
                if let Some(delay) = settlement.action.delay() {
                    let slots = state.slots_mut(settlement.claim.kind);
                    if delay.is_zero() { slots.signal() } else { slots.due_in(delay) }
                }
            }
            for kind in Kind::ALL {
                let claimed = turn.claimed.iter().filter(|claimed| claimed.claim.kind == kind).count();
                let look = looks[kind as usize];
                let again = turn.again.contains(&kind);
                let slots = state.slots_mut(kind);
                slots.free += reserved(look, settled(settlements, kind));
                slots.free += settled(settlements, kind);
                slots.free -= claimed;
                match look.most {
                    Some(_) if again => {
                        slots.backlog = false;
                        slots.due_in(CLAIM_AGAIN);
                    }
                    Some(_) if claimed < look.most() => {
                        slots.backlog = slots.signals != signals[kind as usize];
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
    }
}
