use napi::Status;
use napi::bindgen_prelude::FnArgs;
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use serde_json::{Map, Value};

use crate::queue::{Level, Log};

/// `(level, message, JSON of the fields)`. Does not keep the process alive.
pub type LogFunction = ThreadsafeFunction<
    FnArgs<(String, String, String)>,
    (),
    FnArgs<(String, String, String)>,
    Status,
    false,
    true,
>;

pub struct JsLog(pub LogFunction);

impl Log for JsLog {
    fn log(&self, level: Level, message: &str, fields: &[(&str, &str)]) {
        let level = match level {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        let fields: Map<String, Value> =
            fields.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))).collect();
        let line = (level.to_owned(), message.to_owned(), Value::from(fields).to_string());
        self.0.call(line.into(), ThreadsafeFunctionCallMode::NonBlocking);
    }
}
