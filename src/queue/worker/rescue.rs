//! Rescues: unfinished runs that nothing would wake are woken.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::sleep;

use super::Worker;
use super::service::Service;
use crate::error::Result;
use crate::ids::new_message_id;
use crate::queue::store::{Push, Stranded};
use crate::queue::timing::{RESCUE, RESCUE_NEXT_PAGE};
use crate::queue::{Kind, Level, Message};

const SERVICE: Service = Service { name: "The search for stranded runs", longest_pause: RESCUE };

impl Worker {
    pub(super) async fn keep_rescuing(self: Arc<Self>) {
        // Soon: a deployment is when runs get stranded.
        sleep(RESCUE.mul_f64(rand::random_range(0.05..0.2))).await;
        let page = Arc::new(Mutex::new(String::new()));
        self.serve(SERVICE, |worker| worker.rescue(Arc::clone(&page))).await;
    }

    /// Wakes the stranded runs of the next page; returns how long to wait for the one after it.
    async fn rescue(self: Arc<Self>, page: Arc<Mutex<String>>) -> Result<Duration> {
        if self.state().closing {
            return Ok(RESCUE);
        }
        let after = page.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (stranded, next) = self.store.stranded(&after).await?;
        if !stranded.is_empty() {
            let mut pushes = stranded.iter().map(wake_up).collect::<Result<Vec<_>>>()?;
            pushes.sort_by(|a, b| a.order().cmp(&b.order()));
            // Woken first, marked then: a crash in between wakes once more, but leaves nobody behind.
            self.store.push(&pushes).await?;
            self.store.mark_rescued(&stranded).await?;
            self.counters.rescued.fetch_add(stranded.len() as u64, Ordering::Relaxed);
            let count = stranded.len().to_string();
            self.log.log(Level::Info, "Runs without a message were woken", &[("runs", &count)]);
        }
        let pause = if next.is_some() { RESCUE_NEXT_PAGE } else { RESCUE };
        *page.lock().unwrap_or_else(PoisonError::into_inner) = next.unwrap_or_default();
        Ok(pause.mul_f64(rand::random_range(0.75..1.25)))
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
