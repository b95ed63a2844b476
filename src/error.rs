//! The one error of the core. Each variant's doc names the JavaScript class that it becomes in
//! `lib/errors.js`; the SDK recognises those by name.

use std::io;

use serde_json::{Value, json};

use crate::tls;

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
    #[error("Cannot start step \"{step_id}\": its retryAfter is {retry_after_seconds} s away")]
    TooEarly { step_id: String, retry_after_seconds: u64 },
    /// `PreconditionFailedError`, status 412: the caller's snapshot of the log is stale.
    #[error("An event was recorded after the snapshot that this {event_type} was made from")]
    PreconditionFailed { event_type: String },
    /// `PreconditionFailedError`, status 412, with `lost`: the caller's snapshot is of events that are gone.
    #[error(
        "The log ends before the snapshot that this {event_type} was made from: PostgreSQL has lost its end, as a \
         failover to an asynchronous standby can"
    )]
    LogLost { event_type: String },
    /// Never leaves the storage: the event has to wait for a replay of its run, and the call is made again.
    #[error("The event waits for a replay of its run")]
    HeldBack,
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
    /// `WorkflowWorldError`, status 503, code `REFUSED`: PostgreSQL refused a statement and wrote nothing. It
    /// may accept the same statement later; the call may be repeated.
    #[error("PostgreSQL refused a statement for now: {0}")]
    Refused(String),
    /// `WorkflowWorldError`, status 503, code `CONFIGURATION`: a pooler does not know what was prepared. Tried
    /// again until it does by chance, the call would be slow for ever, and nobody would be told why.
    #[error(
        "{0}. A pooler that does not know prepared statements needs WORKFLOW_POSTGRES_STATEMENT_CACHE=false (or \
         statementCache)."
    )]
    Unprepared(String),
    /// `WorkflowWorldError`, status 503, code `TRANSPORT`: the target of a delivery does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// `ThrottleError`, status 429: the queue takes no more for a while.
    #[error("The queue takes no more messages for {retry_after_seconds} s")]
    Throttled { retry_after_seconds: u64 },
    /// `WorkflowWorldError`, status 500, code `QUEUE`: the queue refused a message.
    #[error("{0}")]
    Queue(String),
    /// `WorkflowWorldError`, status 500, code `DATABASE`: PostgreSQL refused a statement, and always will.
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
    /// Whether PostgreSQL refused what the statement was to do: another statement may fare better.
    pub fn is_refusal(&self) -> bool {
        !matches!(
            self,
            Self::Unavailable(_)
                | Self::Unreachable(_)
                | Self::Contention(_)
                | Self::NotSetUp(_)
                | Self::Closed
        )
    }

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
            Self::LogLost { .. } => json!({"name": "PreconditionFailedError", "status": 412, "lost": true}),
            Self::HeldBack => json!({"name": "WorkflowWorldError", "status": 503, "code": "CONTENTION"}),
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
            Self::Refused(_) => json!({"name": "WorkflowWorldError", "status": 503, "code": "REFUSED"}),
            Self::Unprepared(_) => {
                json!({"name": "WorkflowWorldError", "status": 503, "code": "CONFIGURATION"})
            }
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

    /// Whether the same call may succeed later without anybody having changed a setting.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Contention(_) | Self::Refused(_))
    }

    /// PostgreSQL, or a pooler before it, lets nobody in.
    pub fn at_connect(error: sqlx::Error, server: &str) -> Self {
        if let Some(untrusted) = untrusted_certificate(&error) {
            return Self::Configuration(format!("{server} is not trusted: {untrusted}"));
        }
        let is_socket = server.starts_with('/');
        if matches!(&error, sqlx::Error::Io(error) if error.kind() == io::ErrorKind::NotFound && !is_socket) {
            return Self::Configuration(
                "WORKFLOW_POSTGRES_URL (or connectionString) names a file that does not exist: see its sslrootcert, \
                 sslcert and sslkey"
                    .to_owned(),
            );
        }
        let refusal = error.as_database_error().map(|refusal| {
            let code = refusal.code().unwrap_or_default();
            format!("{} ({code})", refusal.message())
        });
        match (Self::from(error), refusal) {
            (error @ (Self::Configuration(_) | Self::Closed), _) => error,
            // Poolers have codes of their own for "too many clients", and for servers that they do not reach.
            (_, Some(refusal)) => Self::Unavailable(format!("{server} lets nobody in: {refusal}")),
            (Self::Unavailable(reason), None) => Self::unreachable_server(server, &reason),
            (error, None) => error,
        }
    }

    pub fn unreachable_server(server: &str, reason: &str) -> Self {
        Self::Unavailable(format!("{server}: {reason}. Does it run, and is WORKFLOW_POSTGRES_URL right?"))
    }

    fn of_refusal(message: &str, code: &str) -> Self {
        let class = code.get(..2).unwrap_or_default();
        match (class, code) {
            _ if loses_prepared_statements(code, message) => Self::Unprepared(format!("{message} ({code})")),
            // The connection, resources of the server, and an operator's intervention: shutdown, terminated backend.
            ("08" | "53", _) | (_, "57P01" | "57P02" | "57P03" | "57P04" | "57P05") => {
                Self::Unavailable(message.to_owned())
            }
            (_, "42P01" | "3F000" | "42883") => Self::NotSetUp(not_set_up(message)),
            (_, "40P01" | "40001" | "55P03") => Self::Contention(message.to_owned()),
            (_, "42501") => Self::Configuration(format!(
                "{message}. The role of WORKFLOW_POSTGRES_URL (or connectionString) needs the right to use our schemas; \
                 the setup needs CREATE on the database, or empty schemas of these names that the role owns."
            )),
            // Wrong password, no such role, no such database.
            (_, "28P01" | "28000" | "3D000") => Self::Configuration(format!(
                "PostgreSQL does not let us in: {message}. Check WORKFLOW_POSTGRES_URL (or connectionString)."
            )),
            // Data exceptions, and limits of PostgreSQL: the caller's values.
            ("22" | "54", _) => Self::Invalid(format!("PostgreSQL cannot store a value: {message} ({code})")),
            // Constraints, and errors of syntax or access.
            ("23" | "42", _) => Self::Database(format!("{message} ({code})")),
            // As good as away: it takes no write of anybody's.
            (_, READ_ONLY) => Self::Unavailable(format!("{message}: {READ_ONLY_SERVER}")),
            // Timeouts of statements and transactions, cancelled statements, errors of the disk or of a pooler …
            _ => Self::Refused(format!("{message} ({code})")),
        }
    }
}

/// SQLSTATE of a write to a server that takes none.
pub const READ_ONLY: &str = "25006";
pub const READ_ONLY_SERVER: &str = "the server is a standby, or default_transaction_read_only is on";

/// Whether the server does not know a statement that was prepared, or knows another one of its name: a pooler has
/// changed the server meanwhile.
pub fn loses_prepared_statements(code: &str, message: &str) -> bool {
    matches!(code, "26000" | "42P05") || (code == "08P01" && message.contains("prepared statement"))
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match &error {
            E::Io(_) | E::Tls(_) | E::Protocol(_) | E::PoolTimedOut | E::WorkerCrashed => {
                Self::Unavailable(tls::explain(error.to_string()))
            }
            E::PoolClosed => Self::Closed,
            E::Database(refusal) => {
                Self::of_refusal(refusal.message(), refusal.code().as_deref().unwrap_or("no code"))
            }
            _ => Self::Database(error.to_string()),
        }
    }
}

/// Why TLS does not trust the server, and what to do.
fn untrusted_certificate(error: &sqlx::Error) -> Option<String> {
    use rustls::CertificateError as C;
    let sqlx::Error::Io(error) = error else { return None };
    let rustls::Error::InvalidCertificate(reason) = error.get_ref()?.downcast_ref()? else { return None };
    let cure = match reason {
        C::NotValidForName | C::NotValidForNameContext { .. } => {
            "Use a name that the certificate holds, or sslmode=verify-ca, which does not compare names."
        }
        C::Expired | C::ExpiredContext { .. } => "Renew the certificate of the server.",
        C::NotValidYet | C::NotValidYetContext { .. } => "Set the clock of this host.",
        // As `openssl req -x509` makes them, unless told otherwise.
        C::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "It is self-signed and a CA's own, which cannot be the certificate of a server as well. Make it anew with \
             `-addext basicConstraints=critical,CA:FALSE`, and give it as sslrootcert; or have a CA sign another one for \
             the server."
        }
        _ => {
            "Give the certificate of its CA as sslrootcert=/path/to/ca.pem in WORKFLOW_POSTGRES_URL (or connectionString), \
             or, with those that Node trusts, as NODE_EXTRA_CA_CERTS."
        }
    };
    Some(format!(
        "{reason}. {cure} With sslmode=require the connection is encrypted, but nobody checks who answers."
    ))
}

/// The message for a database without our tables; it names the command that mends it.
pub fn not_set_up(what: &str) -> String {
    format!(
        "The database is not set up for @workflow/world-postgres ({what}). Run `npx workflow-postgres-setup` \
         with the same WORKFLOW_POSTGRES_URL, then start again."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_never_succeed_is_told_apart_from_what_may_succeed_later() {
        let code = |code| Error::of_refusal("m", code).to_json()["code"].clone();
        for refused in ["57014", "25P03", "25P04", "58030", "58P01", "XX000", "P0001", "0A000", "2D000"] {
            assert_eq!(code(refused), "REFUSED", "{refused}");
        }
        for gone in ["08006", "53300", "53100", "57P01", "57P03", "57P05", READ_ONLY] {
            assert_eq!(code(gone), "TRANSPORT", "{gone}");
        }
        for contention in ["40001", "40P01", "55P03"] {
            assert_eq!(code(contention), "CONTENTION", "{contention}");
        }
        for never in ["23505", "23514", "42601", "42703"] {
            assert_eq!(code(never), "DATABASE", "{never}");
        }
        for lost in ["26000", "42P05"] {
            assert_eq!(code(lost), "CONFIGURATION", "{lost}");
            assert!(Error::of_refusal("m", lost).to_string().contains("STATEMENT_CACHE=false"));
        }
        assert_eq!(Error::of_refusal("m", "22P05").to_json()["status"], 400);
        assert_eq!(Error::of_refusal("m", "54000").to_json()["status"], 400);
    }
}
