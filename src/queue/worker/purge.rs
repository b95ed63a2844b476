//! Purges: jobs that ended, and were kept long enough, are deleted.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Worker;
use super::service::Service;
use crate::error::Result;
use crate::queue::timing::PURGE;

const SERVICE: Service = Service { name: "The purge of ended jobs", longest_pause: PURGE };

impl Worker {
    pub(super) async fn keep_purging(self: Arc<Self>) {
        // Not all processes of a deployment at once.
        sleep(PURGE.mul_f64(rand::random_range(0.5..1.5))).await;
        self.serve(SERVICE, Self::purge).await;
    }

    async fn purge(self: Arc<Self>) -> Result<Duration> {
        self.store.purge().await?;
        Ok(PURGE)
    }
}
