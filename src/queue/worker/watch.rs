//! The watch over the process: whether its JavaScript turns, and whether its slots only wait.
//!
//! While the event loop does not turn, nothing that is delivered to it begins. So the worker claims nothing more,
//! and hands back what has not begun; what has begun keeps its leases.
//!
//! Deliveries that wait for each other, such as steps that await other runs, can take all slots. So while due
//! messages wait, no delivery ends and the process is idle, there are more slots than it was told.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Worker;
use super::state::State;
use crate::queue::store::Action;
use crate::queue::timing::{
    LOOP_BLOCKED, LOOP_RECENT, LOOP_TICK, LOOP_WARN, STALLED, STALLED_AGAIN, STALLED_FORGOTTEN,
};
use crate::queue::{Kind, Level};

/// A process that uses less of a processor than this is idle.
const IDLE: f64 = 0.5;

/// The state of the event loop, as its ticks show it.
#[derive(Default)]
pub(super) struct Watch {
    ticks: u64,
    /// For how long it has not turned.
    lag: Duration,
    /// The longest lag lately, and when that was.
    longest: Option<(Duration, Instant)>,
    /// Nothing is claimed.
    pub(super) blocked: bool,
    warned: bool,
}

/// How long all slots of a kind have been taken, while messages waited for them and no delivery ended.
#[derive(Default)]
pub(super) struct Stall {
    lasts: Duration,
    ended: u64,
    /// The CPU time that the process had used when it began.
    cpu: Duration,
    /// When there were last made more slots.
    grown: Option<Instant>,
    told: bool,
}

impl Watch {
    fn see(&mut self, ticks: u64, elapsed: Duration) {
        self.lag = if ticks == self.ticks { self.lag + elapsed } else { Duration::ZERO };
        self.ticks = ticks;
        // Less is within what timers are late by.
        if self.lag > LOOP_TICK * 2 && self.lag >= self.longest_lag() {
            self.longest = Some((self.lag, Instant::now()));
        }
    }

    pub(super) fn longest_lag(&self) -> Duration {
        self.longest.filter(|(_, at)| at.elapsed() < LOOP_RECENT).map_or(Duration::ZERO, |(lag, _)| lag)
    }
}

impl Worker {
    pub(super) async fn keep_watch(self: Arc<Self>) {
        loop {
            let since = Instant::now();
            sleep(LOOP_TICK).await;
            // No more than this task itself could see: a process that was stopped as a whole has no lag.
            let elapsed = since.elapsed().min(LOOP_TICK * 2);
            self.watch_event_loop(elapsed);
            for kind in Kind::ALL {
                if self.watch_slots(kind, elapsed) && self.deliver.is_at_leisure().await {
                    self.grow(kind);
                }
            }
        }
    }

    fn watch_event_loop(self: &Arc<Self>, elapsed: Duration) {
        let ticks = self.event_loop.ticks();
        if ticks == 0 {
            return;
        }
        let (lag, lag_before, blocked, was_blocked, warned) = {
            let mut state = self.state();
            let Watch { lag: lag_before, blocked: was_blocked, warned, .. } = state.watch;
            state.watch.see(ticks, elapsed);
            let lag = state.watch.lag;
            let blocked = lag >= LOOP_BLOCKED && self.deliver.is_local();
            state.watch.blocked = blocked;
            state.watch.warned = blocked && lag >= LOOP_WARN;
            if blocked {
                hand_back_what_has_not_begun(&mut state);
            }
            (lag, lag_before, blocked, was_blocked, warned)
        };
        if blocked || was_blocked {
            self.wake.notify_one();
        }
        if blocked && !was_blocked {
            self.spawn("The announcement of due jobs", Self::tell_others);
        }
        if blocked && lag >= LOOP_WARN && !warned {
            // Not by the log, which is JavaScript and would tell it afterwards at best.
            eprintln!(
                "[@workflow/world-postgres] The event loop of process {} has not turned for {:.1} s: something in \
                 it computes without a pause. Its worker claims nothing meanwhile.",
                std::process::id(),
                lag.as_secs_f64(),
            );
        }
        if !blocked && warned {
            let seconds = format!("{:.1}", lag_before.as_secs_f64());
            self.log.log(
                Level::Warn,
                "The event loop turns again; while it did not, nothing was claimed",
                &[("seconds", &seconds)],
            );
        }
    }

    /// Whether it is time for more slots of a kind.
    fn watch_slots(&self, kind: Kind, elapsed: Duration) -> bool {
        let mut guard = self.state();
        let state = &mut *guard;
        let running = state.running(kind);
        let stalls = state.takes_jobs() && state.slots(kind).backlog && state.free(kind) == 0;
        let cpu = self.event_loop.cpu();
        let lags = state.watch.lag > LOOP_TICK * 2;
        let slots = state.slots_mut(kind);
        // Slots beyond the configured ones go when they are not needed, or have not been for a while.
        let forgotten = slots.stall.grown.is_some_and(|at| at.elapsed() > STALLED_FORGOTTEN);
        if slots.capacity > slots.configured && (running < slots.configured || forgotten) {
            slots.capacity = slots.configured.max(if forgotten { running } else { 0 });
        }
        if !stalls || slots.stall.ended != slots.ended {
            slots.stall.lasts = Duration::ZERO;
            slots.stall.ended = slots.ended;
            slots.stall.cpu = cpu;
            return false;
        }
        slots.stall.lasts += elapsed;
        let lasts = slots.stall.lasts;
        let due = lasts >= STALLED && slots.stall.grown.is_none_or(|at| at.elapsed() >= STALLED_AGAIN);
        let used = cpu.saturating_sub(slots.stall.cpu).as_secs_f64();
        due && !lags && used < IDLE * lasts.as_secs_f64()
    }

    fn grow(&self, kind: Kind) {
        let (capacity, limit, first) = {
            let mut state = self.state();
            let slots = state.slots_mut(kind);
            slots.stall.grown = Some(Instant::now());
            if slots.capacity >= slots.limit {
                return;
            }
            slots.capacity = slots.limit.min(slots.capacity + slots.configured.div_ceil(2));
            let first = !std::mem::replace(&mut slots.stall.told, true);
            (slots.capacity, slots.limit, first)
        };
        self.wake.notify_one();
        if first {
            self.log.log(
                Level::Warn,
                "All slots of a kind only wait while messages are due; more are used, up to the limit \
                 (WORKFLOW_POSTGRES_WORKER_CONCURRENCY_LIMIT)",
                &[("kind", kind.noun()), ("slots", &capacity.to_string()), ("limit", &limit.to_string())],
            );
        }
    }
}

fn hand_back_what_has_not_begun(state: &mut State) {
    for claim in state.claims() {
        let Some(running) = state.running.get_mut(&claim) else { continue };
        if running.settling || !running.ticket.ticket().withdraw() {
            continue;
        }
        if let Some(task) = running.task.take() {
            task.abort();
        }
        state.settle(&claim, Action::Release { delay: Duration::ZERO });
    }
}
