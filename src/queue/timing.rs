//! All periods of the queue, in one place, because they depend on each other.

use std::time::Duration;

/// How long a job stays with a process that gives no sign of life. With [`SWEEP`] on top, the jobs of
/// a killed worker run elsewhere within 15 s.
pub const LEASE: Duration = Duration::from_secs(8);
/// Three of these may get lost before a lease does.
pub const HEARTBEAT: Duration = Duration::from_secs(2);
/// How often a worker looks for expired leases and for what no notification told: the floor.
pub const SWEEP: Duration = Duration::from_secs(5);
/// The same while there are leases, of whatever process: each sweep notes in PostgreSQL that leases could be
/// renewed, and a silence of more than 3 s says that they could not (`pulse.sql`).
pub const SWEEP_BESIDE_LEASES: Duration = Duration::from_secs(2);
/// The same while notifications do not arrive (no LISTEN through a pooler, a lost connection).
pub const SWEEP_WITHOUT_LISTEN: Duration = Duration::from_millis(500);
/// Sweeps never follow each other faster.
pub const SWEEP_GAP: Duration = Duration::from_millis(100);

/// How often the unfinished runs are searched for those that nothing will wake: after each pass over all of them.
pub const RESCUE: Duration = Duration::from_secs(30);
/// A pass takes many statements, and this pause between them.
pub const RESCUE_NEXT: Duration = Duration::from_millis(500);
/// A statement of it takes this long, and the time of one more page.
pub const RESCUE_BUDGET: Duration = Duration::from_millis(100);
pub const RESCUE_PAGE: i32 = 500;
/// Another process goes on with a pass that has stood still for this long.
pub const RESCUE_TAKEN_OVER: Duration = Duration::from_secs(5);
/// A run with an event since is not stranded: who wrote it may be about to send its message.
pub const RESCUE_QUIET: Duration = Duration::from_secs(30);

/// A worker whose turns, or whose sweeps, have not come to an end for this long is not healthy: longer than a
/// statement may take, with its wait for a connection.
pub const STUCK: Duration = Duration::from_secs(30);

/// How often the event loop ticks, and is looked at.
pub const LOOP_TICK: Duration = Duration::from_millis(500);
/// A worker whose event loop has not turned for this long claims nothing, and hands back what has not begun.
pub const LOOP_BLOCKED: Duration = Duration::from_secs(2);
pub const LOOP_WARN: Duration = Duration::from_secs(5);
/// How long a lag is shown after it has ended.
pub const LOOP_RECENT: Duration = Duration::from_secs(30);

/// How long all slots of a kind may only wait before there are more; see `worker::watch`.
pub const STALLED: Duration = Duration::from_secs(4);
pub const STALLED_AGAIN: Duration = Duration::from_secs(1);
/// After this long without a further one, only what runs keeps its additional slots.
pub const STALLED_FORGOTTEN: Duration = Duration::from_secs(60);

/// How often jobs that ended are looked through for those that were kept long enough.
pub const PURGE: Duration = Duration::from_secs(600);

/// After a statement that failed, and while a target does not answer.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);
pub const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Before the next try, after a target did not take a message though it takes others.
pub const NOT_TAKEN: Duration = Duration::from_secs(5);
/// For so long [`NOT_TAKEN`] shows in the health, and no second log line tells of it.
pub const NOT_TAKEN_SHOWN: Duration = Duration::from_secs(60);
/// Before the next try, after PostgreSQL refused a settlement.
pub const REFUSED_FIRST: Duration = Duration::from_secs(1);
pub const REFUSED_MAX: Duration = Duration::from_secs(60);
/// How long a worker claims nothing for the sake of a job that is to be delivered beside nothing else: first while
/// what it delivers ends, then while that job is delivered.
pub const ALONE: Duration = Duration::from_secs(30);
/// A sweep that reads the whole backlog follows only after this many times the time that the last one took.
pub const FULL_SWEEP: u32 = 20;
/// How long a target may keep the first deliveries waiting, as an app does that starts, before the log tells.
pub const TARGET_STARTS: Duration = Duration::from_secs(5);

/// A claim that met another one tries again.
pub const CLAIM_AGAIN: Duration = Duration::from_millis(20);

/// Longer delays are shortened to this where they come in: the arithmetic of clocks must not overflow. What
/// comes too early then is replayed, and asks for the rest.
pub const LONGEST_DELAY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// `2^n` times the first pause, up to the longest.
pub fn backoff(failures: u32) -> Duration {
    backoff_up_to(BACKOFF_MAX, failures)
}

pub fn backoff_up_to(longest: Duration, failures: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(1 << failures.min(20)).min(longest)
}

/// Before the next attempt, after `attempt` of them failed: 1 s, 2 s, 4 s … 15 min, a random part of
/// up to a quarter earlier so that what failed together does not come back together.
pub fn retry_delay(attempt: u32) -> Duration {
    let seconds = 2f64.powi(attempt.saturating_sub(1).min(10) as i32).min(900.0);
    Duration::from_secs_f64(seconds * rand::random_range(0.75..=1.0))
}

pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.min(LONGEST_DELAY).as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_slow_down_to_a_quarter_of_an_hour() {
        for (attempt, longest) in [(1, 1), (2, 2), (3, 4), (10, 512), (11, 900), (49, 900), (u32::MAX, 900)] {
            let delay = retry_delay(attempt);
            let longest = Duration::from_secs(longest);
            assert!(delay <= longest && delay >= longest.mul_f64(0.75), "{attempt}: {delay:?}");
        }
    }
}
