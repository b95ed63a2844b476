//! One statement at a time for each stream: the writes of one process to it keep their order, and
//! those that wait for the statement in flight share the next one.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::{Shared, check_text};
use crate::database::patience::{UNBOUNDED, patiently};
use crate::error::Result;
use crate::ids::new_request_id;
use crate::tasks;

const MAX_CHUNKS: usize = 1000;
const MAX_BYTES: usize = 1 << 20;

pub(super) struct Write {
    run_id: String,
    chunks: Vec<Vec<u8>>,
    closing: bool,
    done: oneshot::Sender<Result<()>>,
}

pub(super) async fn write(
    shared: &Arc<Shared>,
    name: &str,
    run_id: &str,
    chunks: Vec<Vec<u8>>,
    closing: bool,
) -> Result<()> {
    check_text("name", name)?;
    check_text("run id", run_id)?;
    let (done, outcome) = oneshot::channel();
    let write = Write { run_id: run_id.to_owned(), chunks, closing, done };
    match shared.writes().entry(name.to_owned()) {
        Entry::Occupied(mut queue) => queue.get_mut().push_back(write),
        Entry::Vacant(queue) => {
            queue.insert(VecDeque::from([write]));
            // A task of its own: a caller that goes away must not take the writes of others with it.
            let (shared, name) = (Arc::clone(shared), name.to_owned());
            tasks::spawn("A writer of a stream", move || write_all(Arc::clone(&shared), name.clone()));
        }
    }
    outcome.await.unwrap_or_else(|_| tasks::unanswered())
}

async fn write_all(shared: Arc<Shared>, name: String) {
    while let Some(mut batch) = shared.next_batch(&name) {
        let outcome = shared.write_batch(&name, &mut batch).await;
        for write in batch {
            // A caller that went away does not need the outcome.
            let _ = write.done.send(outcome.clone());
        }
    }
}

impl Shared {
    fn writes(&self) -> MutexGuard<'_, HashMap<String, VecDeque<Write>>> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first write, and those behind it that fit the bounds of one statement.
    fn next_batch(&self, name: &str) -> Option<Vec<Write>> {
        let mut writes = self.writes();
        let queue = writes.get_mut(name)?;
        let (mut chunks, mut bytes) = (0, 0);
        let fitting = queue
            .iter()
            .take_while(|write| {
                chunks += write.chunks.len();
                bytes += write.chunks.iter().map(Vec::len).sum::<usize>();
                chunks <= MAX_CHUNKS && bytes <= MAX_BYTES
            })
            .count();
        let count = fitting.max(1).min(queue.len());
        if count == 0 {
            writes.remove(name);
            return None;
        }
        Some(queue.drain(..count).collect())
    }

    async fn write_batch(&self, name: &str, batch: &mut [Write]) -> Result<()> {
        // What follows a close within the batch would be ignored by the next statement, too.
        let closing = batch.iter().position(|write| write.closing);
        let effective = closing.map_or(batch.len(), |at| at + 1);
        let chunks: Vec<Vec<u8>> =
            batch[..effective].iter_mut().flat_map(|write| std::mem::take(&mut write.chunks)).collect();
        let request = new_request_id();
        // Who writes is a step: refused, it would run again.
        let written = patiently(UNBOUNDED, |attempt| {
            let query = self
                .database
                .query(&self.append)
                .bind(name.to_owned())
                .bind(batch[0].run_id.clone())
                .bind(chunks.clone())
                .bind(closing.is_some())
                .bind(self.database.notifications.channels().streams.clone())
                .bind(request)
                .bind(attempt.earlier);
            self.database.execute_once(query, attempt.limit)
        });
        written.await.map(drop)
    }
}
