//! What waits to be sent: what comes while all lanes are busy goes out together in the next batch, and at
//! rest nothing waits for company.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::database::lanes::{Lanes, carry_out};
use crate::error::Result;

pub struct Outbox<T, R> {
    batch: usize,
    state: Mutex<State<T, R>>,
}

struct State<T, R> {
    waiting: VecDeque<Waiting<T, R>>,
    lanes: Lanes,
}

/// With what its sender waits for.
pub type Waiting<T, R> = (T, oneshot::Sender<Result<R>>);

impl<T, R> Outbox<T, R> {
    pub fn new(lanes: usize, batch: usize) -> Self {
        Self { batch, state: Mutex::new(State { waiting: VecDeque::new(), lanes: Lanes::new(lanes) }) }
    }

    /// The answer to come, and whether the caller has to start a lane for it.
    pub fn add(&self, item: T) -> (oneshot::Receiver<Result<R>>, bool) {
        let (reply, answer) = oneshot::channel();
        let mut state = self.state();
        state.waiting.push_back((item, reply));
        let free = state.lanes.enter();
        (answer, free)
    }

    /// What a lane sends next; with nothing left the lane has ended.
    pub fn next(&self) -> Option<Vec<Waiting<T, R>>> {
        let mut state = self.state();
        let mut batch = Vec::new();
        while batch.len() < self.batch
            && let Some(waiting) = state.waiting.pop_front()
        {
            // Its sender has stopped waiting, and was told that it was not sent.
            if !waiting.1.is_closed() {
                batch.push(waiting);
            }
        }
        if batch.is_empty() {
            state.lanes.leave();
            return None;
        }
        Some(batch)
    }

    /// Sends a batch. `more` starts another lane, where this takes long and there is something to send.
    pub async fn send<S>(&self, batch: impl Future<Output = S>, more: impl FnOnce()) -> S {
        let more = || {
            let mut state = self.state();
            if !state.waiting.is_empty() && state.lanes.enter() {
                more();
            }
        };
        carry_out(batch, |change| change(&mut self.state().lanes), more).await
    }

    fn state(&self) -> MutexGuard<'_, State<T, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
