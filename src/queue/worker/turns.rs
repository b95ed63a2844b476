//! Turns: each is one statement that settles what has ended and claims what there are slots for.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::{Instant, sleep, sleep_until};

use super::state::{Reserved, settled};
use super::{Job, Worker};
use crate::error::{Error, Result};
use crate::queue::store::{Action, Claimed, Dead, Look, Settlement, Turn};
use crate::queue::timing::{ALONE, CLAIM_AGAIN, SWEEP, backoff};
use crate::queue::{Delivery, Kind, Level};

/// The settlements and slots that a turn has taken. Dropped before its statement has succeeded, by an error or a panic, it
/// gives all of that back.
pub(super) struct Taken {
    worker: Arc<Worker>,
    settlements: Vec<Settlement>,
    looks: [Look; 2],
    /// Of [`super::state::Slots`], before the statement.
    signals: [u64; 2],
    reserved: Reserved,
    /// The look is for a job that is to be delivered beside nothing else.
    alone: bool,
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
        match self.store.settle(&taken.settlements, taken.looks, taken.alone).await {
            Ok(turn) => self.apply(taken, turn, asked),
            Err(error) if error.is_refusal() && !taken.settlements.is_empty() => {
                self.settle_each(taken).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// One by one, so that a settlement that PostgreSQL refuses holds up nothing but itself. What was to be
    /// claimed, the next turn claims.
    async fn settle_each(self: &Arc<Self>, mut taken: Taken) -> Result<()> {
        const NOTHING: [Look; 2] = [Look { most: None, since: None }; 2];
        while !taken.settlements.is_empty() {
            let mut one = Taken {
                worker: Arc::clone(self),
                settlements: vec![taken.settlements.remove(0)],
                looks: NOTHING,
                signals: taken.signals,
                reserved: Reserved::new(self, &mut self.state(), [0, 0]),
                alone: false,
            };
            let asked = Instant::now();
            match self.store.settle(&one.settlements, NOTHING, false).await {
                Ok(turn) => self.apply(one, turn, asked),
                Err(error) if error.is_refusal() => {
                    for settlement in std::mem::take(&mut one.settlements) {
                        self.set_aside(settlement, &error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The lease is kept, so that what has run does not run again, and the settlement is tried again with
    /// growing pauses. It takes no slot.
    fn set_aside(&self, settlement: Settlement, error: &Error) {
        let (run, name) = self.state().about(&settlement.claim);
        let first = self.state().set_aside(&settlement);
        if first {
            self.log.log(
                Level::Error,
                "PostgreSQL refuses what became of a delivery; it is tried again, and the rest goes on",
                &[
                    ("run", &run),
                    (settlement.claim.kind.noun(), &name),
                    ("job", &settlement.claim.job_id),
                    ("error", &error.to_string()),
                ],
            );
        }
    }

    /// What the next statement is to do, with the slots for its claims taken; `None`: nothing.
    pub(super) fn next_turn(self: &Arc<Self>) -> Option<Taken> {
        let mut state = self.state();
        let now = Instant::now();
        if let Some(settlement) = state.take_back(now) {
            state.settlements.push(settlement);
        }
        let alone = state.looks_alone(now);
        let claiming = state.claims_jobs();
        let looks = Kind::ALL.map(|kind| {
            let settled = settled(&state.settlements, kind);
            let free = state.free(kind);
            let slots = state.slots_mut(kind);
            if slots.next.is_some_and(|at| at <= now) {
                slots.next = None;
                slots.signal();
            }
            let since = slots.since;
            if !claiming || alone.is_some() {
                return Look { most: (alone == Some(kind)).then_some(1), since };
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
        let alone = alone.is_some();
        Some(Taken { worker: Arc::clone(self), settlements, looks, signals, reserved, alone })
    }

    fn apply(self: &Arc<Self>, mut taken: Taken, mut turn: Turn, asked: Instant) {
        let settlements = std::mem::take(&mut taken.settlements);
        let looks = std::mem::replace(&mut taken.looks, [Look { most: None, since: None }; 2]);
        let dead: Vec<_> = turn.dead.iter().map(|dead| (dead, self.state().about(&dead.claim))).collect();
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
            if taken.alone {
                state.lonely = None;
                // Others may be due.
                for kind in Kind::ALL.into_iter().filter(|kind| looks[*kind as usize].most.is_some()) {
                    state.slots_mut(kind).signal();
                }
            }
            if let Some(kind) = turn.lonely {
                state.lonely = Some((kind, Instant::now() + ALONE));
                state.slots_mut(kind).signal();
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
        for (Dead { claim, attempts, group }, (_, name)) in dead {
            let error = settlements.iter().find_map(|settlement| match &settlement.action {
                Action::Fail { error, .. } if settlement.claim == *claim => Some(error.as_str()),
                _ => None,
            });
            self.counters.given_up.fetch_add(1, Ordering::Relaxed);
            self.log.log(
                Level::Error,
                "A message was given up",
                &[
                    ("run", group),
                    (claim.kind.noun(), &name),
                    ("job", &claim.job_id),
                    ("attempts", &attempts.to_string()),
                    ("error", error.unwrap_or_default()),
                ],
            );
        }
        for (job_id, error) in &turn.refused {
            self.tell_refused(job_id, error);
        }
        for Claimed { claim, attempt, group, data, lost_leases } in turn.claimed {
            let delivery =
                Delivery::from_data(claim.kind, self.namespace.as_deref(), attempt, &claim.job_id, &data);
            let job = Job { claim, group, attempt, alone: lost_leases >= 2 };
            self.run(job, delivery, asked);
        }
        self.tell_lost(&turn.lost);
    }
}
