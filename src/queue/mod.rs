//! The queue: messages, and the driver that keeps them as pg-boss jobs and delivers them.
//!
//! It knows no proxies: who starts a worker says how to [`Deliver`].

mod event_loop;
pub mod headers;
pub mod message;
mod outbox;
mod pace;
pub mod pgboss;
pub mod qstash;
mod store;
pub mod ticket;
mod timing;
mod worker;

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

pub use event_loop::EventLoop;
pub use message::{Delivery, Message};
pub use pgboss::PgBossQueue;
pub use qstash::QStash;
pub use timing::LONGEST_DELAY;
pub use worker::Health;

/// Flows are replays of a run, steps execute user code; each kind has its own queue and its own slots,
/// so that long steps never keep replays waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Flow,
    Step,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Flow, Self::Step];

    /// The word for it in queue names.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Flow => "workflow",
            Self::Step => "step",
        }
    }
}

/// A delay as callers give it: any number of milliseconds.
pub fn delay_of_ms(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0)).min(LONGEST_DELAY)
}

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Deliver the same message again after a while; this is no failure.
    Reschedule {
        delay: Duration,
    },
    /// An attempt was made and did not succeed.
    Failed {
        error: String,
    },
    /// The target takes no messages at all: no attempt was made.
    Unreachable {
        error: String,
    },
    /// The target did not take this message and takes others: no attempt was made.
    NotTaken {
        error: String,
    },
}

pub trait Deliver: Send + Sync + 'static {
    /// May take as long as the user's code does: there is no deadline.
    fn deliver(&self, delivery: Delivery) -> BoxFuture<'static, Outcome>;

    /// Whether this process's own event loop is what deliveries wait for.
    fn is_local(&self) -> bool {
        true
    }

    /// Whether the target has time for more deliveries than it was meant to have at once.
    fn is_at_leisure(&self) -> BoxFuture<'static, bool> {
        std::future::ready(true).boxed()
    }

    /// Whether the target takes deliveries, or why not. Until it does, none are claimed.
    fn ready(&self) -> BoxFuture<'static, std::result::Result<(), String>> {
        std::future::ready(Ok(())).boxed()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

/// Where log lines go. Nothing is logged per job but at [`Level::Debug`].
pub trait Log: Send + Sync + 'static {
    fn log(&self, level: Level, message: &str, fields: &[(&str, &str)]);
}
