//! The connection to PostgreSQL: the pool, the rendering of SQL files, LISTEN, migrations.

mod connections;
pub mod lanes;
pub mod migrations;
pub mod notifications;
pub mod patience;
pub mod queue_schema;

use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::error::DatabaseError;
use sqlx::postgres::{
    PgArguments, PgConnectOptions, PgConnection, PgDatabaseError, PgQueryResult, PgRow, PgSeverity,
};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Encode, Executor, Postgres, Row, SqlSafeStr, Type,
};
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::DatabaseConfig;
use crate::error::{Error, READ_ONLY, READ_ONLY_SERVER, Result, loses_prepared_statements};
use crate::tls;
pub use connections::Connection;
use connections::Connections;
use notifications::{Channels, Notifications};
use patience::{BOUNDED, Limit, patiently};

/// Heartbeats of the queue, and renewals of the steps' leases: neither waits for the other.
const URGENT_CONNECTIONS: u32 = 2;
/// Longer than the pause between two heartbeats: connections stay open while leases are held, and are closed
/// soon after that.
const URGENT_IDLE: Duration = Duration::from_secs(3);
/// Who asks for health wants an answer soon.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);
const APPLICATION_NAME: &str = "workflow-world-postgres";

pub struct Database {
    pub config: DatabaseConfig,
    connections: Arc<Connections>,
    /// Of the statements that keep leases alive: readers never occupy them.
    urgent: Arc<Connections>,
    pub notifications: Notifications,
}

/// A statement of a file under `sql/`, rendered for one database: the `:"schema"` and
/// `:"queue_schema"` of psql stand for the quoted names.
#[derive(Clone)]
pub struct Statement(Arc<str>);

type Prepared = sqlx::query::Query<'static, Postgres, PgArguments>;

/// A statement with its parameters. The server shows its text as long as it executes it.
pub struct Query {
    text: Arc<str>,
    query: Prepared,
}

impl Query {
    pub fn bind<T>(self, value: T) -> Self
    where
        T: Encode<'static, Postgres> + Type<Postgres> + Send + 'static,
    {
        Self { query: self.query.bind(value), ..self }
    }

    /// For a connection that was acquired, once.
    pub fn unprepared(self) -> Prepared {
        self.query.persistent(false)
    }
}

impl Database {
    /// Opens nothing: the first statement connects.
    pub fn new(config: DatabaseConfig) -> Result<Self> {
        let options = connect_options(&config, &config.url)?;
        let idle_timeout = Duration::from_secs(config.idle_timeout_seconds.into());
        let sessions = config.statement_cache;
        let connections = Connections::new(options.clone(), config.max_pool_size, idle_timeout, sessions);
        let urgent = Connections::new(options, URGENT_CONNECTIONS, URGENT_IDLE, sessions);
        let listen_url = config.listen_url.as_deref().unwrap_or(&config.url);
        let notifications = Notifications::new(
            config.listen.then(|| connect_options(&config, listen_url)).transpose()?,
            Arc::clone(&connections),
            Channels::of(&config.schema, &config.queue_schema),
        );
        Ok(Self { config, connections, urgent, notifications })
    }

    pub fn render(&self, sql: &str) -> Statement {
        Statement(render(&self.config, sql).into())
    }

    pub fn query(&self, statement: &Statement) -> Query {
        let text = Arc::clone(&statement.0);
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&text))).persistent(self.config.statement_cache);
        Query { text, query }
    }

    /// A read. Repeated where that may help: a read changes nothing.
    pub async fn fetch_all(&self, query: impl Fn() -> Query) -> Result<Vec<PgRow>> {
        let limit = |limit: Limit| Limit::READ.at_most(limit.total);
        patiently(BOUNDED, |attempt| self.fetch_once(query(), limit(attempt.limit))).await
    }

    /// A write, or anything that must not run twice. Never repeated: its commit may have happened.
    pub async fn fetch_once(&self, query: Query, limit: Limit) -> Result<Vec<PgRow>> {
        self.run(&self.connections, query, limit).await
    }

    pub async fn execute_once(&self, query: Query, limit: Limit) -> Result<PgQueryResult> {
        self.execute(&self.connections, query, limit).await
    }

    /// A write that keeps leases alive, on a connection that nothing else uses.
    pub async fn fetch_urgently(&self, query: Query) -> Result<Vec<PgRow>> {
        self.run(&self.urgent, query, Limit::LEASE).await
    }

    /// The same for a write without rows.
    pub async fn execute_urgently(&self, query: Query) -> Result<PgQueryResult> {
        self.execute(&self.urgent, query, Limit::LEASE).await
    }

    /// For whoever sends more than one statement. It is closed after that, with what is left of a
    /// transaction.
    pub async fn acquire(&self) -> Result<Connection> {
        self.connections.get(Instant::now() + Limit::WRITE.total).await
    }

    /// One beside the pool's, which may have a single one.
    async fn connect(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect_with(self.connections.options()).await?)
    }

    /// How long a round trip takes, and why nothing can be written, if it is so.
    pub async fn ping(&self) -> Result<(Duration, Option<String>)> {
        let answer = timeout(HEALTH_TIMEOUT, async {
            let mut connection = self.connections.get(Instant::now() + HEALTH_TIMEOUT).await?;
            connection.check_isolation()?;
            let start = Instant::now();
            // As plain text: poolers lose prepared statements.
            let row = connection.fetch_one("SELECT current_setting('transaction_read_only')").await?;
            let round_trip = start.elapsed();
            connection.give_back();
            let read_only = row.try_get::<String, _>(0)? == "on";
            Ok((round_trip, read_only.then(|| format!("PostgreSQL takes no writes: {READ_ONLY_SERVER}"))))
        });
        answer.await.unwrap_or_else(|_| Err(Error::Unavailable("no answer within 3 s".to_owned())))
    }

    async fn run(&self, connections: &Arc<Connections>, query: Query, limit: Limit) -> Result<Vec<PgRow>> {
        let Query { text, query } = query;
        self.on_connection(connections, text, limit, async |connection, deadline| {
            let mut rows = connection.fetch(query);
            let mut all = Vec::new();
            let mut deadline = deadline;
            while let Some(row) = answered(deadline, rows.try_next()).await? {
                all.push(row);
                deadline = Instant::now() + limit.silence;
            }
            Ok(all)
        })
        .await
    }

    async fn execute(
        &self,
        connections: &Arc<Connections>,
        query: Query,
        limit: Limit,
    ) -> Result<PgQueryResult> {
        let Query { text, query } = query;
        self.on_connection(connections, text, limit, async |connection, deadline| {
            answered(deadline, connection.execute(query)).await
        })
        .await
    }

    /// A statement is parsed in one exchange and executed in the next. Between two transactions a
    /// pooler may change the server, and one that does not know prepared statements then fails.
    async fn on_connection<T>(
        &self,
        connections: &Arc<Connections>,
        text: Arc<str>,
        limit: Limit,
        statement: impl AsyncFnOnce(&mut PgConnection, Instant) -> sqlx::Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit.total;
        let mut connection = self.connection(connections, deadline).await?;
        connection.check_isolation()?;
        connection.executes(text);
        let deadline = deadline.min(Instant::now() + limit.silence);
        let result = if self.config.statement_cache {
            statement(&mut connection, deadline).await
        } else {
            async {
                let mut transaction = answered(deadline, connection.begin()).await?;
                let result = statement(&mut transaction, deadline).await?;
                answered(Instant::now() + limit.silence, transaction.commit()).await?;
                Ok(result)
            }
            .await
        };
        match &result {
            Ok(_) => connection.give_back(),
            // It awaits the next statement, unless a transaction is not at its end.
            Err(sqlx::Error::Database(refusal)) if self.config.statement_cache && !is_useless(&**refusal) => {
                connection.give_back();
            }
            Err(sqlx::Error::Database(_)) => connection.close(),
            // The answer is lost, or late: the statement may be under way.
            Err(error) => {
                if matches!(error, sqlx::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut) {
                    connection.kept_silent();
                }
                connection.end(limit.ending).await;
            }
        }
        Ok(result?)
    }

    async fn connection(&self, connections: &Arc<Connections>, deadline: Instant) -> Result<Connection> {
        if !Arc::ptr_eq(connections, &self.urgent) {
            return connections.get(deadline).await;
        }
        match self.urgent.try_get(deadline).await {
            // PostgreSQL grants no more connections than the pool has.
            Err(error) if error.passes() => self.connections.get(deadline).await,
            outcome => outcome,
        }
    }

    pub async fn close(&self) {
        self.notifications.close().await;
        tokio::join!(self.connections.close(), self.urgent.close());
    }
}

async fn answered<T>(deadline: Instant, answer: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let begin = Instant::now();
    timeout_at(deadline, answer).await.unwrap_or_else(|_| {
        let message = format!("no answer within {:.1} s", begin.elapsed().as_secs_f64());
        Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, message)))
    })
}

/// A statement that is not kept by name: it runs once, and a pooler may not know it the next time.
fn unprepared(sql: impl SqlSafeStr) -> Prepared {
    sqlx::query(sql).persistent(false)
}

/// For transactions that make or look at the tables: names are PostgreSQL's own, whatever somebody has put
/// into another schema of the session's search_path.
pub const OWN_NAMES: &str = "SET LOCAL search_path = pg_catalog, pg_temp";

/// Whether a schema is there: an administrator may have made it for a role that may not create any. One that
/// belongs to somebody else is refused: its owner can replace all that is made in it.
async fn find_schema(connection: &mut PgConnection, schema: &str, variable: &str) -> Result<bool> {
    let row = unprepared(
        "SELECT r.rolname::text, r.rolsuper OR pg_catalog.pg_has_role(r.oid, 'MEMBER')
         FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner WHERE n.nspname = $1::name",
    )
    .bind(schema.to_owned())
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(false) };
    let (owner, trusted): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
    if trusted {
        return Ok(true);
    }
    Err(Error::NotSetUp(format!(
        "Schema \"{schema}\" belongs to the role \"{owner}\", which could change what this package keeps and executes \
         there: nothing was changed. Let the role of WORKFLOW_POSTGRES_URL own it (ALTER SCHEMA \"{schema}\" OWNER TO …), make \
         that role a member of \"{owner}\" (GRANT \"{owner}\" TO …), or choose another name with {variable}."
    )))
}

/// Whether the server has closed the connection.
fn is_fatal(refusal: &dyn DatabaseError) -> bool {
    refusal
        .try_downcast_ref::<PgDatabaseError>()
        .is_none_or(|refusal| matches!(refusal.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// Whether no other statement will do any better on the same connection: it is closed, a failover has made it
/// read-only, or its prepared statements are gone or outdated.
fn is_useless(refusal: &dyn DatabaseError) -> bool {
    const OUTDATED_PLAN: &str = "0A000";
    let code = refusal.code().unwrap_or_default();
    is_fatal(refusal)
        || [READ_ONLY, OUTDATED_PLAN].contains(&&*code)
        || loses_prepared_statements(&code, refusal.message())
}

fn connect_options(config: &DatabaseConfig, url: &str) -> Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url)
        // The message of a parse error could quote the URL, which holds a password.
        .map_err(|_| {
            let cause = if url.contains("sslmode=no-verify") {
                "sslmode=no-verify, which only node-postgres knows; sslmode=require does the same: it encrypts, and does \
                 not check the certificate"
            } else {
                "a part that PostgreSQL clients do not know, such as an unknown sslmode (it may be disable, allow, \
                 prefer, require, verify-ca or verify-full)"
            };
            Error::Configuration(format!("WORKFLOW_POSTGRES_URL (or connectionString) has {cause}"))
        })?
        .application_name(APPLICATION_NAME)
        // PgBouncer refuses it by default, and we have no floats.
        .extra_float_digits(None);
    // A root given by the URL or by PGSSLROOTCERT is the one that counts.
    let names_root = options.to_url_lossy().query_pairs().any(|(name, _)| name == "sslrootcert");
    let options = match tls::roots_pem() {
        Some(roots) if !names_root => options.ssl_root_cert_from_pem(roots.to_vec()),
        _ => options,
    };
    Ok(if config.statement_cache { options } else { options.statement_cache_capacity(0) })
}

/// Both names are validated identifiers without quotes (`config::identifier`).
fn render(config: &DatabaseConfig, sql: &str) -> String {
    sql.replace(":\"schema\"", &format!("\"{}\"", config.schema))
        .replace(":\"queue_schema\"", &format!("\"{}\"", config.queue_schema))
}
