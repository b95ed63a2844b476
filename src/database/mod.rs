//! The connection to PostgreSQL: the pool, the rendering of SQL files, LISTEN, migrations.

pub mod migrations;
pub mod notifications;
pub mod queue_schema;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgQueryResult, PgRow};
use sqlx::{AssertSqlSafe, Connection, Executor, Postgres, Row, SqlSafeStr};
use tokio::time::{Instant, timeout};

use crate::config::DatabaseConfig;
use crate::error::{Error, Result};
use notifications::{Channels, Notifications};

/// How long a call waits for a connection before it is told 503; the SDK then hands its work back.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that rested longer is asked whether it still lives: a restarted server or a
/// firewall may have cut it, and a statement sent into the void must not fail its caller.
const CHECK_AFTER_IDLE: Duration = Duration::from_secs(1);
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Who asks for health wants an answer soon.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);
const APPLICATION_NAME: &str = "workflow-world-postgres";

pub struct Database {
    pub config: DatabaseConfig,
    pool: PgPool,
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
        let pool = PgPoolOptions::new()
            .max_connections(config.max_pool_size)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(Duration::from_secs(config.idle_timeout_seconds.into()))
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    Ok(meta.idle_for < CHECK_AFTER_IDLE
                        || timeout(CHECK_TIMEOUT, connection.ping()).await.is_ok_and(|answer| answer.is_ok()))
                })
            })
            .connect_lazy_with(connect_options(&config, &config.url)?);
        let listen_url = config.listen_url.as_deref().unwrap_or(&config.url);
        let notifications = Notifications::new(
            config.listen.then(|| connect_options(&config, listen_url)).transpose()?,
            pool.clone(),
            Channels::of(&config.schema, &config.queue_schema),
        );
        Ok(Self { config, pool, notifications })
    }

    pub fn render(&self, sql: &str) -> Statement {
        Statement(render(&self.config, sql).into())
    }

    pub fn query(&self, statement: &Statement) -> Query {
        sqlx::query(AssertSqlSafe(Arc::clone(&statement.0))).persistent(self.config.statement_cache)
    }

    /// A read. Repeated once where the connection turns out to be dead: a read changes nothing.
    pub async fn fetch_all(&self, query: impl Fn() -> Query) -> Result<Vec<PgRow>> {
        let first = self.run(query()).await;
        let result = match first {
            Err(error) if is_disconnect(&error) => self.run(query()).await,
            other => other,
        };
        self.told(result).await
    }

    /// A write, or anything that must not run twice. Never repeated: its commit may have happened.
    pub async fn fetch_all_once(&self, query: Query) -> Result<Vec<PgRow>> {
        self.told(self.run(query).await).await
    }

    pub async fn execute_once(&self, query: Query) -> Result<PgQueryResult> {
        let result = self.execute(query).await;
        self.told(result).await
    }

    pub async fn acquire(&self) -> Result<PoolConnection<Postgres>> {
        self.told(self.pool.acquire().await).await
    }

    /// How long a round trip takes.
    pub async fn ping(&self) -> Result<Duration> {
        let start = Instant::now();
        let answer = timeout(HEALTH_TIMEOUT, async {
            let mut connection = self.pool.acquire().await?;
            connection.ping().await
        });
        match answer.await {
            Ok(answer) => answer?,
            Err(_) => return Err(Error::Unavailable("no answer within 3 s".to_owned())),
        }
        Ok(start.elapsed())
    }

    /// A statement is parsed in one exchange and executed in the next. Between two transactions a
    /// pooler may change the server, and one that does not know prepared statements then fails.
    async fn run(&self, query: Query) -> sqlx::Result<Vec<PgRow>> {
        if self.config.statement_cache {
            return self.pool.fetch_all(query).await;
        }
        let mut transaction = self.pool.begin().await?;
        let rows = transaction.fetch_all(query).await?;
        transaction.commit().await?;
        Ok(rows)
    }

    async fn execute(&self, query: Query) -> sqlx::Result<PgQueryResult> {
        if self.config.statement_cache {
            return self.pool.execute(query).await;
        }
        let mut transaction = self.pool.begin().await?;
        let result = transaction.execute(query).await?;
        transaction.commit().await?;
        Ok(result)
    }

    /// The pool tells that it waited, not what for: one direct attempt does.
    async fn told<T>(&self, result: sqlx::Result<T>) -> Result<T> {
        match result {
            Err(sqlx::Error::PoolTimedOut) => {}
            other => return Ok(other?),
        }
        let options = self.pool.connect_options();
        let reason = match timeout(CHECK_TIMEOUT, PgConnection::connect_with(&options)).await {
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
        self.pool.close().await;
    }
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
