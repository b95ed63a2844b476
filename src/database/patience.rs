//! How long a call that may be sent again waits for PostgreSQL to come back.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{Error, Result};

/// How long a call waits for PostgreSQL: for a connection that is free, and then for the answer. Longer than
/// statements wait for each other, which the `lock_timeout` of our functions bounds; a connection whose other
/// end is gone without a word would keep silent for a quarter of an hour.
const ANSWER: Duration = Duration::from_secs(8);
/// Of the statements that keep leases alive.
const URGENT: Duration = Duration::from_secs(4);
/// And then how long the call waits until it is clear why there was no answer, and that its statement is under
/// way no more.
pub const ENDING: Duration = Duration::from_secs(2);
/// Together: after so long every caller is told, but those that wait with an outcome.
pub const LONGEST_CALL: Duration = Duration::from_secs(10);

/// How long one statement may take.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// With the wait for a connection.
    pub total: Duration,
    /// Without a word of the server.
    pub silence: Duration,
    /// Until the server has let go of a statement that was given up. A repetition that comes before that may
    /// overtake it.
    pub ending: Duration,
}

impl Limit {
    pub const READ: Self = Self { total: ANSWER, silence: ANSWER, ending: Duration::ZERO };
    pub const WRITE: Self = Self { total: ANSWER, silence: ANSWER, ending: ENDING };
    /// Its caller waits as long as it takes, and repeats it.
    pub const OUTCOME: Self = Self { total: ANSWER, silence: ANSWER, ending: Duration::MAX };
    /// Settling and sweeping: what is silent must not stop them for long.
    pub const TURN: Self = Self { total: ANSWER, silence: URGENT, ending: ENDING };
    pub const LEASE: Self = Self { total: URGENT, silence: URGENT, ending: Duration::ZERO };

    pub fn at_most(self, total: Duration) -> Self {
        Self { total: self.total.min(total), ..self }
    }
}

/// The SDK, or a user's request, waits for it: then they are told 503 and try again themselves.
pub const BOUNDED: Option<Duration> = Some(ANSWER);
/// The outcome of user code that has run: refused, it would run again. Its process lives and has the
/// outcome in hand, so it waits until this World is closed.
pub const UNBOUNDED: Option<Duration> = None;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Also the longest time that an answer comes late, once PostgreSQL is back.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A try with less time than this is not begun.
const SHORTEST_TRY: Duration = Duration::from_secs(1);

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
        if error.passes() {
            return self.left().is_none_or(|left| left >= SHORTEST_TRY);
        }
        // A right that was taken away, a password that was changed: somebody will mend it.
        matches!(error, Error::Configuration(_) | Error::Unprepared(_)) && self.limit.is_none()
    }

    /// When the caller is told, whatever the call waits for.
    pub fn end(&self) -> Option<Instant> {
        self.limit.map(|_| self.since + LONGEST_CALL)
    }

    fn left(&self) -> Option<Duration> {
        self.limit.map(|limit| limit.saturating_sub(self.since.elapsed()))
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Try {
    /// How many went before it: they may have come through, or may still arrive.
    pub earlier: i32,
    pub limit: Limit,
}

/// Tries until PostgreSQL answers, or the patience ends.
pub async fn patiently<T, Attempt: Future<Output = Result<T>>>(
    limit: Option<Duration>,
    mut attempt: impl FnMut(Try) -> Attempt,
) -> Result<T> {
    let patience = Patience::new(limit);
    let mut failures: u32 = 0;
    loop {
        let limit = patience.left().map_or(Limit::OUTCOME, |left| Limit::WRITE.at_most(left));
        let earlier = i32::try_from(failures).unwrap_or(i32::MAX);
        match attempt(Try { earlier, limit }).await {
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
