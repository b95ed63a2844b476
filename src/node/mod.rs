//! The only modules that know napi. They convert and forward; nothing is decided here.
//!
//! What crosses: ids and types as strings, times as epoch milliseconds, everything nested as one JSON
//! text, payloads as bytes. An error crosses as JSON in the message of a plain `Error`;
//! `lib/errors.js` makes the SDK's class of it.

mod bytes;
mod calls;
mod configuration;
mod core;
mod log;
mod proxy;
mod qstash;
mod queue;
mod streams;

use napi::bindgen_prelude::{Buffer, create_custom_tokio_runtime};
use napi_derive::{module_init, napi};

use crate::error::{Error, Result};
use crate::storage::reply::Reply;

/// The statements run in PostgreSQL, and user code on JavaScript's thread. Between two threads of ours each
/// call would wake both.
const WORKER_THREADS: usize = 1;

#[module_init]
fn init() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .thread_name("workflow-world-postgres")
        .enable_all()
        .build();
    // Without a runtime of ours napi makes its default one.
    if let Ok(runtime) = runtime {
        create_custom_tokio_runtime(runtime);
    }
}

/// One JSON text and the payloads that it points into.
#[napi(object, object_from_js = false)]
pub struct NodeReply {
    pub json: String,
    pub bytes: Option<Buffer>,
}

impl From<Reply> for NodeReply {
    fn from(reply: Reply) -> Self {
        Self { json: reply.json, bytes: (!reply.bytes.is_empty()).then(|| reply.bytes.into()) }
    }
}

fn to_js(error: Error) -> napi::Error {
    napi::Error::from_reason(error.to_json().to_string())
}

fn reply(result: Result<Reply>) -> napi::Result<NodeReply> {
    result.map(NodeReply::from).map_err(to_js)
}

#[napi(catch_unwind)]
pub fn new_message_id() -> String {
    crate::ids::new_message_id()
}
