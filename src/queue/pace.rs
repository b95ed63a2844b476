//! How often a run is replayed while many of its steps run.
//!
//! Each step that ends wakes its run. A replay reads the whole log, on the very thread that the steps
//! of the app need: replays back to back would leave them little of it, the less the wider the
//! fan-out. So while several steps of a run are running here, its replays take a third of the time. What
//! is waited for is never late: the wake of the last running step is not held back, and pulls forward
//! those that were.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::store::Push;

/// The pause after a replay, in replays.
const PAUSE: u32 = 2;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Fewer running steps than this are no fan-out.
const FEW: usize = 2;

#[derive(Default)]
pub struct Paces(HashMap<String, Pace>);

struct Pace {
    took: Duration,
    ended: Instant,
    /// The newest wake that was held back.
    held: Option<Push>,
}

impl Paces {
    /// A replay has ended; `steps` of its run are running here.
    pub fn replayed(&mut self, run: &str, took: Duration, steps: usize) {
        if steps < FEW {
            self.0.remove(run);
            return;
        }
        let held = self.0.remove(run).and_then(|pace| pace.held);
        self.0.insert(run.to_owned(), Pace { took, ended: Instant::now(), held });
    }

    /// Delays a wake that comes too early. `replaying`: its run is being replayed here.
    pub fn hold(&mut self, wake: &mut Push, replaying: bool, steps: usize) {
        let Some(pace) = self.0.get_mut(&wake.group).filter(|_| steps >= FEW) else { return };
        let now = Instant::now();
        let last = if replaying { now } else { pace.ended };
        let pause = (pace.took * PAUSE).min(LONGEST_PAUSE);
        let delay = (last + pause).saturating_duration_since(now);
        if delay > wake.delay {
            wake.delay = delay;
            pace.held = Some(wake.clone());
        }
    }

    /// A step has ended and `steps` others of its run are running: the wake to bring forward, if any.
    pub fn step_ended(&mut self, run: &str, steps: usize) -> Option<Push> {
        if steps > 0 {
            return None;
        }
        let mut wake = self.0.remove(run)?.held?;
        wake.delay = Duration::ZERO;
        Some(wake)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::queue::{Kind, Message};

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
        paces.hold(&mut held, false, 10);
        assert_eq!(held.delay, Duration::from_millis(150));
        let mut during = wake();
        paces.hold(&mut during, true, 10);
        assert_eq!(during.delay, Duration::from_millis(200));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_running_step_brings_a_held_wake_forward() {
        let mut paces = Paces::default();
        paces.replayed("wrun_1", Duration::from_millis(100), 3);
        paces.hold(&mut wake(), false, 3);
        assert!(paces.step_ended("wrun_1", 1).is_none());
        assert_eq!(paces.step_ended("wrun_1", 0).map(|wake| wake.delay), Some(Duration::ZERO));
        assert!(paces.step_ended("wrun_1", 0).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn few_steps_are_not_held_up() {
        let mut paces = Paces::default();
        paces.replayed("wrun_1", Duration::from_millis(100), 1);
        let mut one = wake();
        paces.hold(&mut one, false, 1);
        assert_eq!(one.delay, Duration::ZERO);
        paces.replayed("wrun_1", Duration::from_millis(100), 5);
        paces.hold(&mut one, false, 1);
        assert_eq!(one.delay, Duration::ZERO);
    }
}
