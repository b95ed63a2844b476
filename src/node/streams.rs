use napi_derive::napi;

use super::{NodeReply, reply, to_js};
use crate::error::Result;
use crate::storage::reply::{Payloads, Reply};
use crate::streams;

/// A live reader. `next()` is called again when its promise has settled.
#[napi]
pub struct StreamReader {
    pub(super) reader: streams::StreamReader,
}

#[napi]
impl StreamReader {
    /// The next chunks, as a JSON array of `[offset, length]`; null at the end of the stream.
    #[napi]
    pub async fn next(&self) -> napi::Result<Option<NodeReply>> {
        match self.reader.next().await {
            Ok(None) => Ok(None),
            Ok(Some(chunks)) => reply(spans(chunks)).map(Some),
            Err(error) => Err(to_js(error)),
        }
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
