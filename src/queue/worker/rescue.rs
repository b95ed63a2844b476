//! Rescues: unfinished runs that nothing would wake are woken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use super::Worker;
use super::service::Service;
use crate::error::Result;
use crate::ids::new_message_id;
use crate::queue::store::{Push, Stranded};
use crate::queue::timing::RESCUE;
use crate::queue::{Kind, Level, Message};

const SERVICE: Service = Service { name: "The search for stranded runs", longest_pause: RESCUE };

impl Worker {
    pub(super) async fn keep_rescuing(self: Arc<Self>) {
        // Soon: a deployment is when runs get stranded.
        sleep(RESCUE.mul_f64(rand::random_range(0.05..0.2))).await;
        let mine = Arc::new(AtomicBool::new(false));
        self.serve(SERVICE, |worker| worker.rescue(Arc::clone(&mine))).await;
    }

    /// Goes on with the search, and wakes what it finds. `mine`: this process is making the pass.
    async fn rescue(self: Arc<Self>, mine: Arc<AtomicBool>) -> Result<Duration> {
        if self.state().closing {
            return Ok(RESCUE);
        }
        let search = self.store.stranded(mine.load(Ordering::Relaxed)).await?;
        mine.store(search.mine, Ordering::Relaxed);
        let stranded = search.stranded;
        if !stranded.is_empty() {
            let mut pushes = stranded.iter().map(wake_up).collect::<Result<Vec<_>>>()?;
            pushes.sort_by(|a, b| a.order().cmp(&b.order()));
            // Woken first, marked then: a crash in between wakes once more, but leaves nobody behind.
            let mut woken = Vec::new();
            for (push, pushed) in pushes.iter().zip(self.store.push(&pushes).await) {
                match pushed {
                    Ok(_) => woken.extend(stranded.iter().find(|run| run.run_id == push.group).cloned()),
                    Err(error) if error.is_refusal() => self.log.log(
                        Level::Error,
                        "A run without a message could not be woken",
                        &[("run", &push.group), ("error", &error.to_string())],
                    ),
                    Err(error) => return Err(error),
                }
            }
            self.store.mark_rescued(&woken).await?;
            self.counters.rescued.fetch_add(woken.len() as u64, Ordering::Relaxed);
            let count = woken.len().to_string();
            self.log.log(Level::Info, "Runs without a message were woken", &[("runs", &count)]);
        }
        // Not all processes at once.
        Ok(search.pause.mul_f64(rand::random_range(1.0..1.25)))
    }
}

fn wake_up(run: &Stranded) -> Result<Push> {
    Push::new(Arc::new(Message {
        kind: Kind::Flow,
        id: run.workflow.clone(),
        queue_name: format!("__wkf_workflow_{}", run.workflow),
        idempotency_key: None,
        message_id: new_message_id(),
        body: serde_json::json!({ "runId": run.run_id }).to_string().into_bytes(),
        headers: Vec::new(),
        delay: None,
    }))
}
