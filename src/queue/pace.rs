//! How often a run is replayed while many of its steps run.
//!
//! Each step that ends wakes its run. A replay reads the whole log, on the very thread that the steps
//! of the app need, and with many steps pending it takes the SDK seconds. Replays back to back would
//! leave the steps little of that thread. So while several steps of a run are running here, replays take only a
//! part of the time:
//!
//! * a sixth for all such runs together, and less where a replay takes long, as long as more steps wait for a slot:
//!   a replay could not help those, but it may decide a race;
//! * a third otherwise: a wake during a replay, or soon after it, waits for twice the time that the replay took.
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
/// The same while steps wait for a slot, for each run that is replayed meanwhile: this for a replay of up to 167 ms.
const PAUSE_IN_BACKLOG: f64 = 5.0;
/// And this for each second that it took, if that is more: what takes long blocks the thread that the steps need.
const PAUSE_PER_SECOND: f64 = 30.0;
const LONGEST_PAUSE_IN_BACKLOG: Duration = Duration::from_secs(15);
/// The assumed time of a replay of a run of which this process has measured none.
const UNMEASURED: Duration = Duration::from_millis(50);
/// How long a wake is held back at most that comes during a replay: the end of that brings it forward.
const LONGEST_HOLD: Duration = Duration::from_secs(15);
/// Fewer running steps than this are no fan-out.
const FEW: usize = 2;
/// A run that was not heard of for this long is forgotten: another process may have gone on with it.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// How often forgotten runs are looked for.
const LOOK_FOR_FORGOTTEN: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Paces {
    runs: HashMap<String, Pace>,
    looked: Option<Instant>,
}

struct Pace {
    /// The last replay that ended here: how long it took, and when.
    last: Option<(Duration, Instant)>,
    /// The newest wake that was held back.
    held: Option<Push>,
    touched: Instant,
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

impl Pace {
    /// How long the next replay should wait.
    fn rest(&self, backlog: bool, crowd: u32) -> Duration {
        let rest =
            |(took, ended): (Duration, Instant)| pause(took, backlog, crowd).saturating_sub(ended.elapsed());
        self.last.map_or(Duration::ZERO, rest)
    }
}

impl Paces {
    /// The run is being delivered: what was held back for it is in this delivery.
    pub fn delivering(&mut self, run: &str) {
        if let Some(pace) = self.runs.get_mut(run) {
            pace.held = None;
        }
    }

    /// A replay has ended; `steps` of its run are running. How long to wait before [`Self::due`] is asked,
    /// if a wake is held back.
    pub fn replayed(&mut self, run: &str, took: Duration, steps: usize, backlog: bool) -> Option<Duration> {
        // With a backlog, its steps may be about to start.
        if steps < FEW && !backlog {
            if self.is_holding(run) {
                return Some(Duration::ZERO);
            }
            // No fan-out any more: nothing of this run is kept.
            self.runs.remove(run);
            return None;
        }
        let pace = self.pace(run);
        pace.last = Some((took, Instant::now()));
        let holds = pace.held.is_some();
        holds.then(|| pause(took, backlog, self.crowd()))
    }

    /// The wake to bring forward when the pause after a replay is over; otherwise how long to wait before this is
    /// asked again, if a wake is held back.
    pub fn due(&mut self, run: &str, backlog: bool) -> Result<Push, Option<Duration>> {
        let crowd = self.crowd();
        let Some(pace) = self.runs.get_mut(run) else { return Err(None) };
        let rest = pace.rest(backlog, crowd);
        let wake = pace.held.take_if(|_| rest.is_zero());
        wake.map(at_once).ok_or_else(|| pace.held.is_some().then_some(rest))
    }

    /// Delays a wake that comes too early.
    pub fn hold(&mut self, wake: &mut Push, situation: Situation) {
        if situation.steps < FEW {
            return;
        }
        let pace = self.runs.get(&wake.group).filter(|pace| pace.last.is_some());
        let delay = match pace {
            // How long this replay takes, its end will tell.
            _ if situation.replaying => LONGEST_HOLD,
            Some(pace) => pace.rest(situation.backlog, self.crowd()),
            None if situation.backlog => pause(UNMEASURED, true, self.crowd()),
            None => return,
        };
        if delay > wake.delay {
            wake.delay = delay;
            self.pace(&wake.group).held = Some(wake.clone());
        }
    }

    /// A step has ended and `steps` others of its run are running: the wake to bring forward, if any. Not
    /// while more of them may be about to start: `None`, and to be asked again.
    pub fn step_ended(&mut self, run: &str, steps: usize, backlog: bool) -> Option<Push> {
        if steps > 0 || backlog {
            return None;
        }
        self.runs.remove(run)?.held.map(at_once)
    }

    pub fn is_holding(&self, run: &str) -> bool {
        self.runs.get(run).is_some_and(|pace| pace.held.is_some())
    }

    /// How many runs share the time for replays now.
    fn crowd(&self) -> u32 {
        let held = self.runs.values().filter(|pace| pace.held.is_some());
        u32::try_from(held.count()).unwrap_or(u32::MAX).max(1)
    }

    fn pace(&mut self, run: &str) -> &mut Pace {
        let now = Instant::now();
        if self.looked.is_none_or(|at| now - at >= LOOK_FOR_FORGOTTEN) {
            self.looked = Some(now);
            self.runs.retain(|_, pace| now - pace.touched < FORGOTTEN);
        }
        let pace = self.runs.entry(run.to_owned()).or_insert(Pace { last: None, held: None, touched: now });
        pace.touched = now;
        pace
    }
}

/// `crowd`: how many runs share the time for replays.
fn pause(took: Duration, backlog: bool, crowd: u32) -> Duration {
    if backlog {
        let took = took.min(LONGEST_PAUSE_IN_BACKLOG);
        let replays = PAUSE_IN_BACKLOG.max(PAUSE_PER_SECOND * took.as_secs_f64()) * f64::from(crowd);
        took.mul_f64(replays).min(LONGEST_PAUSE_IN_BACKLOG)
    } else {
        took.saturating_mul(PAUSE).min(LONGEST_PAUSE)
    }
}

fn at_once(mut wake: Push) -> Push {
    wake.delay = Duration::ZERO;
    wake
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
        paces.replayed("wrun_1", Duration::from_millis(100), 10, false);
        tokio::time::advance(Duration::from_millis(50)).await;
        let mut held = wake();
        paces.hold(&mut held, IDLE);
        assert_eq!(held.delay, Duration::from_millis(150));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_during_a_replay_waits_for_twice_the_time_that_this_takes() {
        let mut paces = Paces::default();
        paces.hold(&mut wake(), Situation { replaying: true, ..IDLE });
        let pause = paces.replayed("wrun_1", Duration::from_millis(100), 10, false);
        assert_eq!(pause, Some(Duration::from_millis(200)));
        assert_eq!(paces.due("wrun_1", false).err(), Some(pause));
        tokio::time::advance(Duration::from_millis(200)).await;
        assert_eq!(paces.due("wrun_1", true).err(), Some(Some(Duration::from_millis(300))));
        assert_eq!(paces.due("wrun_1", false).ok().map(|wake| wake.delay), Some(Duration::ZERO));
        assert_eq!(paces.due("wrun_1", false).err(), Some(None));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_running_step_brings_a_held_wake_forward() {
        let mut paces = Paces::default();
        paces.replayed("wrun_1", Duration::from_millis(100), 3, false);
        paces.hold(&mut wake(), IDLE);
        assert!(paces.step_ended("wrun_1", 1, false).is_none());
        assert_eq!(paces.step_ended("wrun_1", 0, false).map(|wake| wake.delay), Some(Duration::ZERO));
        assert!(paces.step_ended("wrun_1", 0, false).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn few_steps_are_not_held_up() {
        let mut paces = Paces::default();
        paces.replayed("wrun_1", Duration::from_millis(100), 1, false);
        let mut one = wake();
        paces.hold(&mut one, Situation { steps: 1, ..IDLE });
        assert_eq!(one.delay, Duration::ZERO);
        assert!(paces.runs.is_empty());
        paces.replayed("wrun_1", Duration::from_millis(100), 5, false);
        paces.replayed("wrun_1", Duration::from_millis(100), 0, false);
        assert!(paces.runs.is_empty(), "a run that is no fan-out any more leaves nothing behind");
        paces.replayed("wrun_1", Duration::from_millis(100), 5, false);
        paces.hold(&mut one, Situation { steps: 1, ..IDLE });
        assert_eq!(one.delay, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn while_steps_wait_for_a_slot_their_run_waits_for_as_long_as_its_replays_cost() {
        let mut paces = Paces::default();
        let backlog = Situation { backlog: true, ..IDLE };
        let mut first = wake();
        paces.hold(&mut first, backlog);
        assert_eq!(first.delay, UNMEASURED * 5);
        assert!(paces.step_ended("wrun_1", 0, true).is_none());
        assert!(paces.step_ended("wrun_1", 0, false).is_some());

        for (took, delay) in
            [(10, 50), (100, 500), (200, 1200), (600, 10_800), (1000, 15_000), (60_000, 15_000)]
        {
            paces.replayed("wrun_1", Duration::from_millis(took), 10, true);
            let mut held = wake();
            paces.hold(&mut held, backlog);
            assert_eq!(held.delay, Duration::from_millis(delay), "a replay takes {took} ms");
        }
        let mut alone = wake();
        paces.hold(&mut alone, Situation { steps: 1, ..backlog });
        assert_eq!(alone.delay, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn runs_that_end_elsewhere_are_forgotten() {
        let mut paces = Paces::default();
        for n in 0..10_000 {
            let run = format!("wrun_{n}");
            paces.replayed(&run, Duration::from_millis(1), 10, false);
            // Its last step ends while others wait for a slot.
            assert!(paces.step_ended(&run, 0, true).is_none());
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        let most = (FORGOTTEN + LOOK_FOR_FORGOTTEN).as_millis() / 100;
        assert!(paces.runs.len() <= most as usize, "{} runs", paces.runs.len());
    }
}
