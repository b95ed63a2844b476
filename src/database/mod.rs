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
use sqlx::postgres::{PgConnectOptions, PgConnection, PgQueryResult, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Executor, Row, SqlSafeStr};
use tokio::time::{Instant, timeout};

use crate::config::DatabaseConfig;
use crate::error::{Error, Result};
pub use connections::Connection;
use connections::{CHECK_TIMEOUT, Connections};
use notifications::{Channels, Notifications};

/// How long PostgreSQL may keep silent before and within an answer. Longer than statements wait for each
/// other; a connection whose other end is gone without a word would keep silent for a quarter of an hour.
const SILENCE: Duration = Duration::from_secs(10);
/// Of the statements that keep leases alive.
pub const URGENT: Duration = Duration::from_secs(4);
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

pub type Query = sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments>;

impl Database {
    /// Opens nothing: the first statement connects.
    pub fn new(config: DatabaseConfig) -> Result<Self> {
        let connections = Connections::new(
            connect_options(&config, &config.url)?,
            config.max_pool_size,
            Duration::from_secs(config.idle_timeout_seconds.into()),
        );
        let urgent = Connections::new(connections.options().clone(), URGENT_CONNECTIONS, URGENT_IDLE);
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
        sqlx::query(AssertSqlSafe(Arc::clone(&statement.0))).persistent(self.config.statement_cache)
    }

    /// A read. Repeated once where the connection turns out to be dead: a read changes nothing.
    pub async fn fetch_all(&self, query: impl Fn() -> Query) -> Result<Vec<PgRow>> {
        let first = self.run(&self.connections, query(), SILENCE).await;
        let result = match first {
            Err(error) if is_disconnect(&error) => self.run(&self.connections, query(), SILENCE).await,
            other => other,
        };
        self.told(result).await
    }

    /// A write, or anything that must not run twice. Never repeated: its commit may have happened.
    pub async fn fetch_all_once(&self, query: Query) -> Result<Vec<PgRow>> {
        self.fetch_all_once_within(query, SILENCE).await
    }

    pub async fn fetch_all_once_within(&self, query: Query, silence: Duration) -> Result<Vec<PgRow>> {
        self.told(self.run(&self.connections, query, silence).await).await
    }

    pub async fn execute_once(&self, query: Query) -> Result<PgQueryResult> {
        let result = self.execute(&self.connections, query, SILENCE).await;
        self.told(result).await
    }

    /// A write that keeps leases alive, on a connection that nothing else uses.
    pub async fn fetch_urgently(&self, query: Query) -> Result<Vec<PgRow>> {
        let result = self.run(&self.urgent, query, URGENT).await;
        self.told(result).await
    }

    /// The same for a write without rows.
    pub async fn execute_urgently(&self, query: Query) -> Result<PgQueryResult> {
        let result = self.execute(&self.urgent, query, URGENT).await;
        self.told(result).await
    }

    /// For whoever sends more than one statement. It is closed after that, with what is left of a
    /// transaction.
    pub async fn acquire(&self) -> Result<Connection> {
        self.told(self.connections.get().await).await
    }

    /// One beside the pool's, which may have a single one.
    async fn connect(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect_with(self.connections.options()).await?)
    }

    /// How long a round trip takes.
    pub async fn ping(&self) -> Result<Duration> {
        let start = Instant::now();
        let answer = timeout(HEALTH_TIMEOUT, async {
            let mut connection = self.connections.get().await?;
            connection.ping().await?;
            connection.give_back();
            Ok::<_, sqlx::Error>(())
        });
        match answer.await {
            Ok(answer) => answer?,
            Err(_) => return Err(Error::Unavailable("no answer within 3 s".to_owned())),
        }
        Ok(start.elapsed())
    }

    async fn run(
        &self,
        connections: &Arc<Connections>,
        query: Query,
        silence: Duration,
    ) -> sqlx::Result<Vec<PgRow>> {
        self.on_connection(connections, async |connection| {
            let mut rows = connection.fetch(query);
            let mut all = Vec::new();
            while let Some(row) = answered(silence, rows.try_next()).await? {
                all.push(row);
            }
            Ok(all)
        })
        .await
    }

    async fn execute(
        &self,
        connections: &Arc<Connections>,
        query: Query,
        silence: Duration,
    ) -> sqlx::Result<PgQueryResult> {
        self.on_connection(connections, async |connection| answered(silence, connection.execute(query)).await)
            .await
    }

    /// A statement is parsed in one exchange and executed in the next. Between two transactions a
    /// pooler may change the server, and one that does not know prepared statements then fails.
    async fn on_connection<T>(
        &self,
        connections: &Arc<Connections>,
        statement: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>,
    ) -> sqlx::Result<T> {
        let mut connection = if Arc::ptr_eq(connections, &self.urgent) {
            match self.urgent.get_within(URGENT).await {
                // PostgreSQL grants no more connections than the pool has.
                Err(sqlx::Error::Database(_)) => self.connections.get_within(URGENT).await?,
                other => other?,
            }
        } else {
            connections.get().await?
        };
        let result = if self.config.statement_cache {
            statement(&mut connection).await
        } else {
            async {
                let mut transaction = answered(SILENCE, connection.begin()).await?;
                let result = statement(&mut transaction).await?;
                answered(SILENCE, transaction.commit()).await?;
                Ok(result)
            }
            .await
        };
        match &result {
            Err(sqlx::Error::Io(error)) if error.kind() == io::ErrorKind::TimedOut => {
                connection.kept_silent()
            }
            // Refused by the server, which awaits the next statement; but a transaction is not at its end.
            Err(error @ sqlx::Error::Database(_)) if self.config.statement_cache && !is_useless(error) => {
                connection.give_back();
            }
            Err(_) => {}
            Ok(_) => connection.give_back(),
        }
        result
    }

    /// The pool tells that it waited, not what for: one direct attempt does.
    async fn told<T>(&self, result: sqlx::Result<T>) -> Result<T> {
        match result {
            Err(sqlx::Error::PoolTimedOut) => {}
            other => return Ok(other?),
        }
        let options = self.connections.options();
        let reason = match timeout(CHECK_TIMEOUT, PgConnection::connect_with(options)).await {
            Ok(Ok(_)) => {
                return Err(Error::Unavailable(format!(
                    "all {} connections stayed busy (WORKFLOW_POSTGRES_MAX_POOL_SIZE)",
                    self.config.max_pool_size
                )));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        Err(Error::Unavailable(format!(
            "{}:{}: {reason}. Does it run, and is WORKFLOW_POSTGRES_URL right?",
            options.get_host(),
            options.get_port()
        )))
    }

    pub async fn close(&self) {
        self.notifications.close().await;
        tokio::join!(self.connections.close(), self.urgent.close());
    }
}

async fn answered<T>(silence: Duration, answer: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    timeout(silence, answer).await.unwrap_or_else(|_| {
        let message = format!("no answer within {} s", silence.as_secs());
        Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, message)))
    })
}

/// A statement that is not kept by name: it runs once, and a pooler may not know it the next time.
fn unprepared(sql: impl SqlSafeStr) -> Query {
    sqlx::query(sql).persistent(false)
}

/// An administrator may have made the schema for a role that may not create any.
async fn schema_exists(connection: &mut PgConnection, schema: &str) -> Result<bool> {
    let row = unprepared("SELECT to_regnamespace(quote_ident($1)) IS NOT NULL")
        .bind(schema.to_owned())
        .fetch_one(connection)
        .await?;
    Ok(row.try_get(0)?)
}

/// Whether no other statement will do any better on the same connection. After a failover it may lead to a
/// server that takes no writes any more.
fn is_useless(error: &sqlx::Error) -> bool {
    const READ_ONLY: &str = "25006";
    let code = error.as_database_error().and_then(|refusal| refusal.code());
    is_disconnect(error) || code.is_some_and(|code| code == READ_ONLY)
}

fn is_disconnect(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(_) | sqlx::Error::Protocol(_))
        || error
            .as_database_error()
            .and_then(|refusal| refusal.code())
            .is_some_and(|code| code.starts_with("57P") || code.starts_with("08"))
}

fn connect_options(config: &DatabaseConfig, url: &str) -> Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url)
        // The message of a parse error could quote the URL, which holds a password.
        .map_err(|_| {
            Error::Configuration("WORKFLOW_POSTGRES_URL (or connectionString) has a part that PostgreSQL clients do not know, such as an unknown sslmode".to_owned())
        })?
        .application_name(APPLICATION_NAME)
        // PgBouncer refuses it by default, and we have no floats.
        .extra_float_digits(None);
    Ok(if config.statement_cache { options } else { options.statement_cache_capacity(0) })
}

/// Both names are validated identifiers without quotes (`config::identifier`).
fn render(config: &DatabaseConfig, sql: &str) -> String {
    sql.replace(":\"schema\"", &format!("\"{}\"", config.schema))
        .replace(":\"queue_schema\"", &format!("\"{}\"", config.queue_schema))
}
