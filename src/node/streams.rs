use std::sync::Arc;

use napi_derive::napi;

use super::calls::OpenCalls;
use crate::error::Result;
use crate::storage::reply::{Payloads, Reply};
use crate::streams;

/// A live reader. `next` is called again when it was answered.
#[napi]
pub struct StreamReader {
    pub(super) reader: Arc<streams::StreamReader>,
    pub(super) calls: Arc<OpenCalls>,
}

#[napi]
impl StreamReader {
    /// Answers `call` with the next chunks, as a JSON array of `[offset, length]`; with nothing at the end of
    /// the stream.
    #[napi(catch_unwind)]
    pub fn start_next(&self, call: u32) {
        let reader = Arc::clone(&self.reader);
        self.calls.make(call, async move {
            match reader.next().await? {
                None => Ok(Reply::default()),
                Some(chunks) => spans(chunks),
            }
        });
    }

    /// Ends a pending `next()` at once.
    #[napi(catch_unwind)]
    pub fn cancel(&self) {
        self.reader.cancel();
    }
}

fn spans(chunks: Vec<streams::Chunk>) -> Result<Reply> {
    let mut payloads = Payloads::default();
    let spans: Vec<_> = chunks.iter().map(|chunk| payloads.push(Some(&chunk.data))).collect();
    payloads.reply(&spans)
}
