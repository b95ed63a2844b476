//! What waits to be sent. As many lanes send at the same time as there may be; what comes while all are
//! busy goes out together in the next batch, and at rest nothing waits for company.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::error::Result;

pub struct Outbox<T, R> {
    lanes: usize,
    batch: usize,
    state: Mutex<State<T, R>>,
}

struct State<T, R> {
    waiting: VecDeque<Waiting<T, R>>,
    busy: usize,
}

/// With what its sender waits for.
pub type Waiting<T, R> = (T, oneshot::Sender<Result<R>>);

impl<T, R> Outbox<T, R> {
    pub fn new(lanes: usize, batch: usize) -> Self {
        Self { lanes, batch, state: Mutex::new(State { waiting: VecDeque::new(), busy: 0 }) }
    }

    /// The answer to come, and whether the caller has to start a lane for it.
    pub fn add(&self, item: T) -> (oneshot::Receiver<Result<R>>, bool) {
        let (reply, answer) = oneshot::channel();
        let mut state = self.state();
        state.waiting.push_back((item, reply));
        let free = state.busy < self.lanes;
        state.busy += usize::from(free);
        (answer, free)
    }

    /// What a lane sends next; with nothing left the lane has ended.
    pub fn next(&self) -> Option<Vec<Waiting<T, R>>> {
        let mut state = self.state();
        let count = state.waiting.len().min(self.batch);
        if count == 0 {
            state.busy -= 1;
            return None;
        }
        Some(state.waiting.drain(..count).collect())
    }

    fn state(&self) -> MutexGuard<'_, State<T, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
