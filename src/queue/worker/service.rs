//! The periodic services of a worker: each is a task of its own, so that none waits for another.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Worker;
use crate::error::{Error, Result};
use crate::queue::Level;
use crate::queue::timing::{BACKOFF_MAX, backoff_up_to};
use crate::tasks::caught;

/// When something was last done.
pub(super) struct Pulse(Mutex<Instant>);

impl Default for Pulse {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Pulse {
    pub(super) fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub(super) fn age(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// How a service behaves when a round of it fails.
#[derive(Clone, Copy)]
pub(super) struct Service {
    pub(super) name: &'static str,
    /// The longest pause after failures in a row; the first is short.
    pub(super) longest_pause: Duration,
}

impl Worker {
    /// Carries out round after round, until the database is closed. A round returns how long to wait for the
    /// next one; after one that fails, or panics, the pauses grow.
    pub(super) async fn serve<F>(self: Arc<Self>, service: Service, mut round: impl FnMut(Arc<Self>) -> F)
    where
        F: Future<Output = Result<Duration>>,
    {
        let mut failures = 0;
        loop {
            let ended = caught(service.name, async { round(Arc::clone(&self)).await }).await;
            let pause = match ended.and_then(|outcome| outcome) {
                Ok(pause) => {
                    failures = 0;
                    pause
                }
                Err(Error::Closed) => return,
                Err(error) => {
                    self.trouble(service.name, failures == 0, &error);
                    let pause = backoff_up_to(service.longest_pause, failures);
                    failures = failures.saturating_add(1);
                    pause
                }
            };
            sleep(pause).await;
        }
    }

    /// Logs that something failed: while PostgreSQL is away once for all services, otherwise once for each
    /// row of failures.
    pub(super) fn trouble(&self, name: &str, first: bool, error: &Error) {
        let told = if matches!(error, Error::Unavailable(_)) {
            let mut state = self.state();
            let quiet = state.trouble.is_some_and(|at| at.elapsed() < BACKOFF_MAX * 4);
            state.trouble = Some(Instant::now());
            quiet
        } else {
            // A panic was reported when it was caught.
            !first || matches!(error, Error::Internal(_))
        };
        if !told {
            let message = format!("{name} failed; it is tried again");
            self.log.log(Level::Warn, &message, &[("error", &error.to_string())]);
        }
    }
}
