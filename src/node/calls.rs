use std::sync::{Arc, Mutex, PoisonError};

use napi::Status;
use napi::bindgen_prelude::{Buffer, spawn};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;

use super::{NodeReply, to_js};
use crate::error::Result;
use crate::storage::reply::Reply;
use crate::tasks::caught;

/// Told that there are answers to take. Does not keep the process alive.
pub type AnsweredFunction = ThreadsafeFunction<(), (), (), Status, false, true>;

/// The frequent calls: JavaScript numbers them, and one notification of its thread brings it all answers
/// that are there. A promise of napi's own makes a threadsafe function for each call, at several times the
/// cost.
#[napi]
pub struct Calls {
    pub(super) open: Arc<OpenCalls>,
}

pub struct OpenCalls {
    answered: AnsweredFunction,
    answers: Mutex<Vec<(u32, Result<Reply>)>>,
}

/// `error`, or else what a reply has; neither where there is nothing to say.
#[napi(object, object_from_js = false)]
pub struct Answer {
    pub call: u32,
    pub json: Option<String>,
    pub bytes: Option<Buffer>,
    pub error: Option<String>,
}

#[napi]
impl Calls {
    #[napi(constructor, catch_unwind)]
    pub fn new(answered: AnsweredFunction) -> Self {
        Self { open: Arc::new(OpenCalls { answered, answers: Mutex::default() }) }
    }

    /// The answers that came since the last time, in their order.
    #[napi(catch_unwind)]
    pub fn take(&self) -> Vec<Answer> {
        let answers = std::mem::take(&mut *self.open.answers.lock().unwrap_or_else(PoisonError::into_inner));
        answers
            .into_iter()
            .map(|(call, outcome)| match outcome {
                Ok(reply) => {
                    let NodeReply { json, bytes } = reply.into();
                    Answer { call, json: (!json.is_empty()).then_some(json), bytes, error: None }
                }
                Err(error) => Answer { call, json: None, bytes: None, error: Some(to_js(error).reason) },
            })
            .collect()
    }
}

impl OpenCalls {
    pub fn make(self: &Arc<Self>, call: u32, work: impl Future<Output = Result<Reply>> + Send + 'static) {
        let calls = Arc::clone(self);
        spawn(async move {
            let outcome = caught("A call", work).await;
            calls.answer(call, outcome.and_then(|outcome| outcome));
        });
    }

    fn answer(&self, call: u32, outcome: Result<Reply>) {
        let first = {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.push((call, outcome));
            answers.len() == 1
        };
        // Others ride along with the first.
        if first {
            self.answered.call((), ThreadsafeFunctionCallMode::NonBlocking);
        }
    }
}
