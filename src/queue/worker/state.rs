//! What a worker remembers: its slots, what runs in them, and what is to be written.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Worker;
use super::watch::{Stall, Watch};
use crate::queue::Kind;
use crate::queue::pace::Paces;
use crate::queue::store::{Action, Claim, Push, Settlement};
use crate::queue::ticket::HeldTicket;
use crate::queue::timing::{ALONE, CLAIM_AGAIN, LONGEST_DELAY, NOT_TAKEN_SHOWN, REFUSED_FIRST, REFUSED_MAX};

pub(super) struct State {
    pub(super) slots: [Slots; 2],
    pub(super) running: HashMap<Claim, Running>,
    pub(super) settlements: Vec<Settlement>,
    pub(super) gate: Gate,
    pub(super) closing: bool,
    /// The last message that the target did not take while it took others, and why.
    pub(super) not_taken: Option<(Instant, String)>,
    pub(super) paces: Paces,
    /// When PostgreSQL last failed us: the leases of others may have suffered from the same.
    pub(super) trouble: Option<Instant>,
    pub(super) watch: Watch,
    /// A job of this kind is to be delivered beside nothing else: until then, or this time, nothing is claimed.
    pub(super) lonely: Option<(Kind, Instant)>,
    /// Settlements that PostgreSQL refused, and when each is tried again.
    pub(super) aside: Vec<(Instant, Settlement)>,
}

pub(super) struct Slots {
    pub(super) configured: usize,
    /// How many there are now: as many as configured, or up to `limit` while those only wait.
    pub(super) capacity: usize,
    pub(super) limit: usize,
    pub(super) stall: Stall,
    /// How many deliveries have ended.
    pub(super) ended: u64,
    /// For jobs that a statement under way may claim; see [`Reserved`].
    reserved: usize,
    /// Jobs may be waiting to be claimed.
    pub(super) backlog: bool,
    /// Bumped by each wake-up: a claim that began before the last one must not clear `backlog`.
    pub(super) signals: u64,
    /// When the next job will be due.
    pub(super) next: Option<Instant>,
    /// Where the next look begins; see [`Look`].
    pub(super) since: Option<i64>,
}

pub(super) struct Running {
    pub(super) group: String,
    /// Of the workflow or the step.
    pub(super) name: String,
    /// Nothing else is to run beside it: its process died more than once.
    pub(super) alone: bool,
    /// How often PostgreSQL has refused to settle it.
    pub(super) refusals: u32,
    pub(super) since: Instant,
    /// `None` while it is being started.
    pub(super) task: Option<AbortHandle>,
    /// What became of it is being written.
    pub(super) settling: bool,
    /// Another worker has the job by now.
    pub(super) lost: bool,
    pub(super) ticket: HeldTicket,
}

/// What follows from the end of a delivery for a wake that was held back.
pub(super) enum Pacing {
    Wake(Push),
    Pause { run: String, pause: Duration },
}

impl Running {
    /// Whether a turn to come will settle it, and look what waits for the same run.
    pub(super) fn will_settle(&self, group: &str) -> bool {
        self.group == group && !self.settling
    }
}

/// Slots for what a statement under way may claim. They are free again when this is dropped, also by a panic.
pub struct Reserved {
    worker: Arc<Worker>,
    slots: [usize; 2],
}

impl Reserved {
    pub(super) fn new(worker: &Arc<Worker>, state: &mut State, slots: [usize; 2]) -> Self {
        let mut reserved = Self { worker: Arc::clone(worker), slots: [0, 0] };
        reserved.change(state, slots);
        reserved
    }

    pub(super) fn change(&mut self, state: &mut State, slots: [usize; 2]) {
        for kind in Kind::ALL {
            let all = &mut state.slots_mut(kind).reserved;
            *all = *all + slots[kind as usize] - self.slots[kind as usize];
        }
        self.slots = slots;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.slots != [0, 0] {
            let worker = Arc::clone(&self.worker);
            self.change(&mut worker.state(), [0, 0]);
            worker.wake.notify_one();
        }
    }
}

/// Deliveries go out only while the target takes them.
pub(super) struct Gate {
    pub(super) open: bool,
    /// How often in a row it turned out to be closed.
    pub(super) closings: u32,
    /// A log line said that it is closed.
    pub(super) told: bool,
}

impl State {
    pub(super) fn slots(&self, kind: Kind) -> &Slots {
        &self.slots[kind as usize]
    }

    pub(super) fn slots_mut(&mut self, kind: Kind) -> &mut Slots {
        &mut self.slots[kind as usize]
    }

    /// How many jobs of a kind there is room for.
    pub(super) fn free(&self, kind: Kind) -> usize {
        let slots = self.slots(kind);
        slots.capacity.saturating_sub(slots.reserved + self.running(kind))
    }

    pub(super) fn running(&self, kind: Kind) -> usize {
        let counts = |(claim, running): &(&Claim, &Running)| claim.kind == kind && running.refusals == 0;
        self.running.iter().filter(counts).count()
    }

    /// Whether what this worker has claimed may be delivered now.
    pub(super) fn takes_jobs(&self) -> bool {
        self.gate.open && !self.closing && !self.watch.blocked
    }

    /// Whether this worker may claim anything now.
    pub(super) fn claims_jobs(&self) -> bool {
        self.takes_jobs() && self.lonely.is_none() && !self.has_lonely()
    }

    /// A job is being delivered that nothing else is to run beside. Should it take long after all, it is not what
    /// killed its processes.
    pub(super) fn has_lonely(&self) -> bool {
        let lonely =
            |running: &Running| running.alone && !running.settling && running.since.elapsed() < ALONE;
        self.running.values().any(lonely)
    }

    /// Whether the next look is for a job that is to be delivered beside nothing else, and its kind.
    pub(super) fn looks_alone(&mut self, now: Instant) -> Option<Kind> {
        let (kind, until) = self.lonely?;
        if now >= until {
            self.lonely = None;
        }
        let idle = self.running.values().all(|running| running.refusals > 0);
        (now < until && self.takes_jobs() && idle).then_some(kind)
    }

    /// The run that a delivery is about, and the name of its workflow or step.
    pub(super) fn about(&self, claim: &Claim) -> (String, String) {
        self.running
            .get(claim)
            .map(|running| (running.group.clone(), running.name.clone()))
            .unwrap_or_default()
    }

    /// Keeps a settlement that PostgreSQL refused for later; whether this is the first time.
    pub(super) fn set_aside(&mut self, settlement: &Settlement) -> bool {
        let Some(running) = self.running.get_mut(&settlement.claim) else { return false };
        let pause = REFUSED_FIRST.saturating_mul(1 << running.refusals.min(10)).min(REFUSED_MAX);
        running.refusals = running.refusals.saturating_add(1);
        let first = running.refusals == 1;
        self.aside.push((Instant::now() + pause, settlement.clone()));
        first
    }

    /// A settlement whose next try is due.
    pub(super) fn take_back(&mut self, now: Instant) -> Option<Settlement> {
        let due = self.aside.iter().position(|(at, _)| *at <= now)?;
        Some(self.aside.swap_remove(due).1)
    }

    pub(super) fn refused(&self) -> usize {
        self.running.values().filter(|running| running.refusals > 0).count()
    }

    pub(super) fn claims(&self) -> Vec<Claim> {
        self.running.keys().cloned().collect()
    }

    /// How many deliveries of a run are going on.
    pub(super) fn delivering(&self, kind: Kind, group: &str) -> usize {
        self.running
            .iter()
            .filter(|(claim, running)| claim.kind == kind && running.will_settle(group))
            .count()
    }

    /// Keeps the pace of a run whose delivery has ended.
    pub(super) fn keep_pace(&mut self, claim: &Claim) -> Option<Pacing> {
        let Running { group, since, .. } = self.running.get(claim)?;
        let (run, took) = (group.clone(), since.elapsed());
        let steps = self.delivering(Kind::Step, &run);
        let backlog = self.slots(Kind::Step).backlog;
        match claim.kind {
            Kind::Flow => {
                self.paces.replayed(&run, took, steps, backlog).map(|pause| Pacing::Pause { run, pause })
            }
            Kind::Step => match self.paces.step_ended(&run, steps, backlog) {
                Some(wake) => Some(Pacing::Wake(wake)),
                None => (steps == 0 && self.paces.is_holding(&run))
                    .then_some(Pacing::Pause { run, pause: CLAIM_AGAIN }),
            },
        }
    }

    /// A claim is settled once: what was given back on close cannot end as well.
    pub(super) fn settle(&mut self, claim: &Claim, action: Action) {
        if let Some(running) = self.running.get_mut(claim)
            && !running.settling
        {
            running.settling = true;
            self.settlements.push(Settlement { claim: claim.clone(), action });
        }
    }

    pub(super) fn not_taken_lately(&self) -> Option<&str> {
        let (at, error) = self.not_taken.as_ref()?;
        (at.elapsed() < NOT_TAKEN_SHOWN).then_some(error)
    }

    /// Marks claims that others have taken over, and leaves those in `claims` that were not marked before. Their
    /// deliveries cannot be stopped, but what becomes of them does not count any more.
    pub(super) fn lose(&mut self, claims: &mut Vec<Claim>) {
        claims.retain(|claim| match self.running.get_mut(claim) {
            Some(running) => !std::mem::replace(&mut running.lost, true),
            None => false,
        });
    }

    /// When the turns should look without being woken.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let again = self.aside.iter().map(|(at, _)| *at).min();
        if !self.claims_jobs() {
            return again;
        }
        self.slots.iter().filter_map(|slots| slots.next).chain(again).min()
    }

    pub(super) fn at_rest(&self) -> bool {
        self.running.values().all(|running| running.refusals > 0)
            && self.settlements.is_empty()
            && self.slots.iter().all(|slots| slots.reserved == 0)
    }
}

impl Slots {
    pub(super) fn new(configured: usize, limit: usize) -> Self {
        let stall = Stall::default();
        Self {
            configured,
            capacity: configured,
            limit,
            stall,
            ended: 0,
            reserved: 0,
            backlog: true,
            signals: 0,
            next: None,
            since: None,
        }
    }

    pub(super) fn signal(&mut self) {
        self.backlog = true;
        self.signals += 1;
    }

    pub(super) fn due_in(&mut self, delay: Duration) {
        let at = Instant::now() + delay.min(LONGEST_DELAY);
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }
}

pub(super) fn settled(settlements: &[Settlement], kind: Kind) -> usize {
    settlements.iter().filter(|settlement| settlement.claim.kind == kind).count()
}
