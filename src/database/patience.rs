//! How long a call that may be sent again waits for PostgreSQL to come back.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{Error, Result};

/// What the SDK, or a user's request, waits for: then they are told 503 and try again themselves.
pub const BOUNDED: Option<Duration> = Some(Duration::from_secs(10));
/// The outcome of user code that has run: refused, it would run again. Its process lives and has the
/// outcome in hand, so it waits until this World is closed.
pub const UNBOUNDED: Option<Duration> = None;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Also the longest time that an answer comes late, once PostgreSQL is back.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy)]
pub struct Patience {
    since: Instant,
    limit: Option<Duration>,
}

impl Patience {
    pub fn new(limit: Option<Duration>) -> Self {
        Self { since: Instant::now(), limit }
    }

    /// Whether to try again after this.
    pub fn bears(&self, error: &Error) -> bool {
        match error {
            Error::Unavailable(_) | Error::Contention(_) => {
                self.limit.is_none_or(|limit| self.since.elapsed() < limit)
            }
            // A right that was taken away, a password that was changed: somebody will mend it.
            Error::Configuration(_) => self.limit.is_none(),
            _ => false,
        }
    }
}

/// Tries until PostgreSQL answers, or the patience ends. An attempt is told how many went before
/// it: they may have come through, or may still arrive.
pub async fn patiently<T, Attempt: Future<Output = Result<T>>>(
    limit: Option<Duration>,
    mut attempt: impl FnMut(i32) -> Attempt,
) -> Result<T> {
    let patience = Patience::new(limit);
    let mut failures: u32 = 0;
    loop {
        match attempt(i32::try_from(failures).unwrap_or(i32::MAX)).await {
            Err(error) if patience.bears(&error) => pause(failures).await,
            outcome => return outcome,
        }
        failures = failures.saturating_add(1);
    }
}

/// Before the next try.
pub async fn pause(failures: u32) {
    let longest = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
    sleep(longest.mul_f64(rand::random_range(0.75..=1.0))).await;
}
