//! Tasks that a panic does not end.
//!
//! A panic is a defect of this package, or of a library below it. It is reported once, and the task goes on:
//! nobody waits for ever for a task that has ended, and no lane counts as busy without one.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::error::{Error, Result};

/// Before a task that has panicked begins anew.
const PAUSE: Duration = Duration::from_millis(500);
/// The same panic is not reported again within this time.
const QUIET: Duration = Duration::from_secs(600);

type Report = dyn Fn(&str) + Send + Sync;

static REPORTS: Mutex<Vec<Weak<Report>>> = Mutex::new(Vec::new());
static REPORTED: Mutex<Vec<(String, Instant)>> = Mutex::new(Vec::new());

/// Panics are reported to `report` for as long as it is held.
pub fn report_panics_to(report: &Arc<Report>) {
    let mut reports = REPORTS.lock().unwrap_or_else(PoisonError::into_inner);
    reports.retain(|report| report.strong_count() > 0);
    reports.push(Arc::downgrade(report));
}

/// Carries `work` out. A panic in it is reported, and becomes an [`Error::Internal`].
pub async fn caught<T>(name: &str, work: impl Future<Output = T>) -> Result<T> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| {
        let text = format!("{name} panicked: {}", message_of(&*panic));
        report(&text);
        Error::Internal(text)
    })
}

/// Spawns a task that begins anew after a panic. `task` must take up the work that the panic has left behind.
pub fn spawn<F>(name: &'static str, mut task: impl FnMut() -> F + Send + 'static) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        while caught(name, async { task().await }).await.is_err() {
            sleep(PAUSE).await;
        }
    })
}

/// The error of a call whose answer cannot come any more, because the task that should give it has panicked.
pub fn unanswered<T>() -> Result<T> {
    Err(Error::Internal(
        "the task that was to answer has panicked; whether it had done its work is unknown".to_owned(),
    ))
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

fn report(text: &str) {
    {
        let mut reported = REPORTED.lock().unwrap_or_else(PoisonError::into_inner);
        reported.retain(|(_, at)| at.elapsed() < QUIET);
        if reported.iter().any(|(other, _)| other == text) {
            return;
        }
        reported.push((text.to_owned(), Instant::now()));
    }
    let reports = REPORTS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for report in reports.iter().filter_map(Weak::upgrade) {
        report(text);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_reported_once_and_begins_anew() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let report: Arc<Report> = {
            let lines = Arc::clone(&lines);
            Arc::new(move |text: &str| lines.lock().unwrap().push(text.to_owned()))
        };
        report_panics_to(&report);
        let begun = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&begun);
        spawn("a task of a test", move || {
            let round = counter.fetch_add(1, Ordering::Relaxed);
            async move { assert!(round == 2, "too early") }
        })
        .await
        .unwrap();
        assert_eq!(begun.load(Ordering::Relaxed), 3);
        assert_eq!(*lines.lock().unwrap(), ["a task of a test panicked: too early"]);
    }
}
