//! The one error of the core. Each variant's doc names the JavaScript class that it becomes in
//! `lib/errors.js`; the SDK recognises those by name.

use serde_json::{Value, json};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// `WorkflowRunNotFoundError`, status 404.
    #[error("Workflow run \"{run_id}\" not found")]
    RunNotFound { run_id: String },
    /// `HookNotFoundError`, status 404. `token` is the token or hook id that was asked for.
    #[error("Hook not found")]
    HookNotFound { token: String },
    /// `EntityConflictError`, status 409: it exists already or has reached a terminal state.
    #[error("{0}")]
    EntityConflict(String),
    /// `RunExpiredError`, status 410: the run has ended.
    #[error("{0}")]
    RunExpired(String),
    /// `TooEarlyError`, status 425.
    #[error("Cannot start step \"{step_id}\": its retry time is {retry_after_seconds} s away")]
    TooEarly { step_id: String, retry_after_seconds: u64 },
    /// `PreconditionFailedError`, status 412: the caller's snapshot of the log is stale.
    #[error("An event was recorded after the snapshot that this {event_type} was made from")]
    PreconditionFailed { event_type: String },
    /// `RunNotSupportedError`: the run was made for a newer spec version than this World's.
    #[error("Run requires spec version {run}, but this World supports up to {world}")]
    RunNotSupported { run: i64, world: i64 },
    /// `WorkflowWorldError`, status 404: a step, wait or event that does not exist.
    #[error("{0}")]
    NotFound(String),
    /// `WorkflowWorldError`, status 400: the caller's input is wrong.
    #[error("{0}")]
    Invalid(String),
    /// `WorkflowWorldError`, status 500, code `CONFIGURATION`: a setting is wrong or missing.
    #[error("{0}")]
    Configuration(String),
    /// `WorkflowWorldError`, status 500, code `NOT_SET_UP`: the database lacks our tables, or has others.
    #[error("{0}")]
    NotSetUp(String),
    /// `WorkflowWorldError`, status 503, code `TRANSPORT`: no connection; the call may be repeated.
    #[error("PostgreSQL is not reachable: {0}")]
    Unavailable(String),
    /// `WorkflowWorldError`, status 503, code `CONTENTION`: PostgreSQL undid the statement in favour of
    /// another one; nothing was written and the call may be repeated.
    #[error("PostgreSQL gave way to another transaction: {0}")]
    Contention(String),
    /// `WorkflowWorldError`, status 503, code `TRANSPORT`: the target of a delivery does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// `ThrottleError`, status 429: the queue takes no more for a while.
    #[error("The queue takes no more messages for {retry_after_seconds} s")]
    Throttled { retry_after_seconds: u64 },
    /// `WorkflowWorldError`, status 500, code `QUEUE`: the queue refused a message.
    #[error("{0}")]
    Queue(String),
    /// `WorkflowWorldError`, status 500, code `DATABASE`: PostgreSQL refused a statement.
    #[error("PostgreSQL refused a statement: {0}")]
    Database(String),
    /// `WorkflowWorldError`, status 500, code `INTERNAL`: code of this package panicked.
    #[error("A defect of @workflow/world-postgres: {0}")]
    Internal(String),
    /// `WorkflowWorldError`, status 500, code `CLOSED`: the World was closed.
    #[error("This World is closed; create a new one with createWorld()")]
    Closed,
}

/// The newest spec version that this World can store and replay.
pub const SPEC_VERSION: i64 = 3;

impl Error {
    /// What `lib/errors.js` needs to build the JavaScript error.
    pub fn to_json(&self) -> Value {
        let mut json = match self {
            Self::RunNotFound { run_id } => {
                json!({"name": "WorkflowRunNotFoundError", "status": 404, "runId": run_id})
            }
            Self::HookNotFound { token } => {
                json!({"name": "HookNotFoundError", "status": 404, "token": token})
            }
            Self::EntityConflict(_) => json!({"name": "EntityConflictError", "status": 409}),
            Self::RunExpired(_) => json!({"name": "RunExpiredError", "status": 410}),
            Self::TooEarly { retry_after_seconds, .. } => {
                json!({"name": "TooEarlyError", "status": 425, "retryAfter": retry_after_seconds})
            }
            Self::PreconditionFailed { .. } => json!({"name": "PreconditionFailedError", "status": 412}),
            Self::RunNotSupported { run, world } => {
                json!({"name": "RunNotSupportedError", "runSpecVersion": run, "worldSpecVersion": world})
            }
            Self::NotFound(_) => json!({"name": "WorkflowWorldError", "status": 404}),
            Self::Invalid(_) => json!({"name": "WorkflowWorldError", "status": 400}),
            Self::Configuration(_) => {
                json!({"name": "WorkflowWorldError", "status": 500, "code": "CONFIGURATION"})
            }
            Self::NotSetUp(_) => json!({"name": "WorkflowWorldError", "status": 500, "code": "NOT_SET_UP"}),
            // The SDK hands work back to the queue only for a status of 500 and more.
            Self::Unavailable(_) | Self::Unreachable(_) => {
                json!({"name": "WorkflowWorldError", "status": 503, "code": "TRANSPORT"})
            }
            Self::Contention(_) => json!({"name": "WorkflowWorldError", "status": 503, "code": "CONTENTION"}),
            Self::Throttled { retry_after_seconds } => {
                json!({"name": "ThrottleError", "status": 429, "retryAfter": retry_after_seconds})
            }
            Self::Queue(_) => json!({"name": "WorkflowWorldError", "status": 500, "code": "QUEUE"}),
            Self::Database(_) => json!({"name": "WorkflowWorldError", "status": 500, "code": "DATABASE"}),
            Self::Internal(_) => json!({"name": "WorkflowWorldError", "status": 500, "code": "INTERNAL"}),
            Self::Closed => json!({"name": "WorkflowWorldError", "status": 500, "code": "CLOSED"}),
        };
        json["message"] = Value::String(self.to_string());
        json
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match &error {
            E::Io(_) | E::Tls(_) | E::Protocol(_) | E::PoolTimedOut | E::WorkerCrashed => {
                Self::Unavailable(error.to_string())
            }
            E::PoolClosed => Self::Closed,
            E::Database(refusal) => match refusal.code().as_deref() {
                // Classes 08 (connection), 53 (resources), 57 (operator intervention: shutdown, terminated backend).
                Some(code) if code.starts_with("08") || code.starts_with("53") || code.starts_with("57P") => {
                    Self::Unavailable(refusal.message().to_owned())
                }
                Some("42P01" | "3F000" | "42883") => Self::NotSetUp(not_set_up(refusal.message())),
                Some("40P01" | "40001" | "55P03") => Self::Contention(refusal.message().to_owned()),
                Some("42501") => Self::Configuration(format!(
                    "{}. The role of WORKFLOW_POSTGRES_URL (or connectionString) needs the right to use our schemas; the \
                     setup needs CREATE on the database, or empty schemas of these names that the role owns.",
                    refusal.message()
                )),
                // Wrong password, no such role, no such database.
                Some("28P01" | "28000" | "3D000") => Self::Configuration(format!(
                    "PostgreSQL does not let us in: {}. Check WORKFLOW_POSTGRES_URL (or connectionString).",
                    refusal.message()
                )),
                // Classes 22 (data exception) and 54 (a limit of PostgreSQL): the caller's values.
                Some(code) if code.starts_with("22") || code.starts_with("54") => {
                    Self::Invalid(format!("PostgreSQL cannot store a value: {} ({code})", refusal.message()))
                }
                code => Self::Database(format!("{} ({})", refusal.message(), code.unwrap_or("no code"))),
            },
            _ => Self::Database(error.to_string()),
        }
    }
}

/// The message for a database without our tables; it names the command that mends it.
pub fn not_set_up(what: &str) -> String {
    format!(
        "The database is not set up for @workflow/world-postgres ({what}). Run `npx workflow-postgres-setup` \
         with the same WORKFLOW_POSTGRES_URL, then start again."
    )
}
