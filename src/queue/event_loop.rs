//! The event loop of the JavaScript that this process runs: it ticks while it turns.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(Default)]
pub struct EventLoop {
    ticks: AtomicU64,
    /// Of the process, in µs.
    cpu: AtomicU64,
}

impl EventLoop {
    /// `cpu`: what the process has used of processors so far.
    pub fn tick(&self, cpu: Duration) {
        self.cpu.store(u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it has ticked. 0: there is none, or nobody makes it tick.
    pub fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// At the last tick.
    pub fn cpu(&self) -> Duration {
        Duration::from_micros(self.cpu.load(Ordering::Relaxed))
    }
}
