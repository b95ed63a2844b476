//! How often a run is replayed while many of its steps run.
//!
//! Each step that ends wakes its run. A replay reads the whole log, on the very thread that the steps
//! of the app need, and with many steps pending it takes the SDK seconds. Replays back to back would
//! leave the steps little of that thread. So while several steps of a run are running here:
//!
//! * as long as more steps wait for a slot, which a replay could not help, its wakes are held back;
//! * otherwise its replays take a third of the time: a wake during a replay, or soon after it, waits
//!   for twice the time that the replay took.
//!
//! The end of a fan-out is never late: the wake of the last running step is not held back, and brings
//! forward those that were.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::store::Push;

/// The pause after a replay, in replays.
const PAUSE: u32 = 2;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long at most a wake is held back: what it tells may be what a `Promise.race` waits for. Long
/// enough for a fan-out of 500, whose every needless replay would take longer.
const LONGEST_HOLD: Duration = Duration::from_secs(15);
/// Fewer running steps than this are no fan-out.
const FEW: usize = 2;

#[derive(Default)]
pub struct Paces(HashMap<String, Pace>);

#[derive(Default)]
struct Pace {
    /// The last replay that ended here: how long it took, and when.
    last: Option<(Duration, Instant)>,
    /// The newest wake that was held back.
    held: Option<Push>,
}

/// What goes on in this process.
#[derive(Clone, Copy)]
pub struct Situation {
    /// The run is being replayed.
    pub replaying: bool,
    /// How many steps of the run are running.
    pub steps: usize,
    /// Steps wait for a slot.
    pub backlog: bool,
}

impl Paces {
    /// The run is being delivered: what was held back for it is in this delivery.
    pub fn delivering(&mut self, run: &str) {
        if let Some(pace) = self.0.get_mut(run) {
            pace.held = None;
        }
    }

    /// A replay has ended; `steps` of its run are running. How long to wait before [`Self::due`] is asked,
    /// if a wake is held back.
    pub fn replayed(&mut self, run: &str, took: Duration, steps: usize) -> Option<Duration> {
        if steps < FEW {
            if self.is_holding(run) {
                return Some(Duration::ZERO);
            }
            // No fan-out any more: nothing of this run is kept.
            self.0.remove(run);
            return None;
        }
        let pace = self.0.entry(run.to_owned()).or_default();
        pace.last = Some((took, Instant::now()));
        pace.held.is_some().then(|| pause(took))
    }

    /// The wake to bring forward when the pause after a replay is over.
    pub fn due(&mut self, run: &str, backlog: bool) -> Option<Push> {
        let pace = self.0.get_mut(run).filter(|_| !backlog)?;
        let resting = pace.last.is_none_or(|(took, ended)| ended.elapsed() >= pause(took));
        at_once(pace.held.take_if(|_| resting)?)
    }

    /// Delays a wake that comes too early.
    pub fn hold(&mut self, wake: &mut Push, situation: Situation) {
        if situation.steps < FEW {
            return;
        }
        let last = self.0.get(&wake.group).and_then(|pace| pace.last);
        let delay = match last {
            // How long this replay takes, its end will tell.
            _ if situation.backlog || situation.replaying => LONGEST_HOLD,
            None => return,
            Some((took, ended)) => pause(took).saturating_sub(ended.elapsed()),
        };
        if delay > wake.delay {
            wake.delay = delay;
            self.0.entry(wake.group.clone()).or_default().held = Some(wake.clone());
        }
    }

    /// A step has ended and `steps` others of its run are running: the wake to bring forward, if any. Not
    /// while more of them may be about to start: `None`, and to be asked again.
    pub fn step_ended(&mut self, run: &str, steps: usize, backlog: bool) -> Option<Push> {
        if steps > 0 || backlog {
            return None;
        }
        at_once(self.0.remove(run)?.held?)
    }

    pub fn is_holding(&self, run: &str) -> bool {
        self.0.get(run).is_some_and(|pace| pace.held.is_some())
    }
}

fn pause(took: Duration) -> Duration {
    (took * PAUSE).min(LONGEST_PAUSE)
}

fn at_once(mut wake: Push) -> Option<Push> {
    wake.delay = Duration::ZERO;
    Some(wake)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::queue::{Kind, Message};

    const IDLE: Situation = Situation { replaying: false, steps: 10, backlog: false };

    fn wake() -> Push {
        Push::new(Arc::new(Message {
            kind: Kind::Flow,
            id: "w".to_owned(),
            queue_name: "__wkf_workflow_w".to_owned(),
            idempotency_key: None,
            message_id: "msg_1".to_owned(),
            body: br#"{"runId":"wrun_1"}"#.to_vec(),
            headers: Vec::new(),
            delay: None,
        }))
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn while_many_steps_run_a_wake_waits_for_two_replays_time() {
        let mut paces = Paces::default();
        paces.replayed("wrun_1", Duration::from_millis(100), 10);
        tokio::time::advance(Duration::from_millis(50)).await;
        let mut held = wake();
        paces.hold(&mut held, IDLE);
        assert_eq!(held.delay, Duration::from_millis(150));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_during_a_replay_waits_for_twice_the_time_that_this_takes() {
        let mut paces = Paces::default();
        paces.hold(&mut wake(), Situation { replaying: true, ..IDLE });
        let pause = paces.replayed("wrun_1", Duration::from_millis(100), 10);
        assert_eq!(pause, Some(Duration::from_millis(200)));
        assert!(paces.due("wrun_1", false).is_none());
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(paces.due("wrun_1", true).is_none());
        assert_eq!(paces.due("wrun_1", false).map(|wake| wake.delay), Some(Duration::ZERO));
        assert!(paces.due("wrun_1", false).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_running_step_brings_a_held_wake_forward() {
        let mut paces = Paces::default();
        paces.replayed("wrun_1", Duration::from_millis(100), 3);
        paces.hold(&mut wake(), IDLE);
        assert!(paces.step_ended("wrun_1", 1, false).is_none());
        assert_eq!(paces.step_ended("wrun_1", 0, false).map(|wake| wake.delay), Some(Duration::ZERO));
        assert!(paces.step_ended("wrun_1", 0, false).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn few_steps_are_not_held_up() {
        let mut paces = Paces::default();
        paces.replayed("wrun_1", Duration::from_millis(100), 1);
        let mut one = wake();
        paces.hold(&mut one, Situation { steps: 1, ..IDLE });
        assert_eq!(one.delay, Duration::ZERO);
        assert!(paces.0.is_empty());
        paces.replayed("wrun_1", Duration::from_millis(100), 5);
        paces.replayed("wrun_1", Duration::from_millis(100), 0);
        assert!(paces.0.is_empty(), "a run that is no fan-out any more leaves nothing behind");
        paces.replayed("wrun_1", Duration::from_millis(100), 5);
        paces.hold(&mut one, Situation { steps: 1, ..IDLE });
        assert_eq!(one.delay, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn while_steps_wait_for_a_slot_their_run_waits_too_but_not_for_ever() {
        let mut paces = Paces::default();
        let mut first = wake();
        paces.hold(&mut first, Situation { backlog: true, ..IDLE });
        assert_eq!(first.delay, LONGEST_HOLD);
        assert!(paces.step_ended("wrun_1", 0, true).is_none());
        assert!(paces.step_ended("wrun_1", 0, false).is_some());
        let mut alone = wake();
        paces.hold(&mut alone, Situation { backlog: true, steps: 1, ..IDLE });
        assert_eq!(alone.delay, Duration::ZERO);
    }
}
