//! The schema of the pg-boss tables. pg-boss itself says what is in it: the setup command hands its SQL
//! to us, so that it runs over our connection. A schema that somebody else made is never migrated.

use std::time::Duration;

use serde::Serialize;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor, Row};
use tokio::time::sleep;

use super::{Database, OWN_NAMES, find_schema, render, unprepared};
use crate::error::{Error, Result};

/// Whether another process has ended its setup.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// The comment that tells our installation from a user's own pg-boss.
const MARK: &str = "pg-boss tables, installed by @workflow/world-postgres";

#[derive(Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum QueueSchema {
    /// `schema`: whether it is there, but empty.
    Absent { schema: bool },
    /// Something else is in it.
    Foreign,
    PgBoss {
        version: i32,
        /// Whether we made it, and so may migrate it.
        ours: bool,
    },
}

pub async fn inspect(database: &Database) -> Result<QueueSchema> {
    let mut connection = database.acquire().await?;
    let mut transaction = connection.begin().await?;
    transaction.execute(OWN_NAMES).await?;
    let found = look(&mut transaction, database).await?;
    transaction.commit().await?;
    connection.give_back();
    Ok(found)
}

async fn look(connection: &mut PgConnection, database: &Database) -> Result<QueueSchema> {
    let schema =
        find_schema(connection, &database.config.queue_schema, "WORKFLOW_POSTGRES_QUEUE_SCHEMA").await?;
    let row = unprepared(
        "SELECT to_regclass(quote_ident($1) || '.version') IS NOT NULL AND to_regclass(quote_ident($1) || '.job') IS NOT NULL,
                EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                        WHERE n.nspname = $1),
                COALESCE(obj_description(to_regclass(quote_ident($1) || '.version'), 'pg_class') = $2, false)",
    )
    .bind(database.config.queue_schema.clone())
    .bind(MARK)
    .fetch_one(&mut *connection)
    .await?;
    let (installed, anything, ours): (bool, bool, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    if !installed {
        return Ok(if anything { QueueSchema::Foreign } else { QueueSchema::Absent { schema } });
    }
    let sql = render(&database.config, "SELECT version FROM :\"queue_schema\".version");
    let version = unprepared(AssertSqlSafe(sql)).fetch_one(connection).await?.try_get(0)?;
    Ok(QueueSchema::PgBoss { version, ours })
}

/// Runs pg-boss's construction script. `false` where another process was faster.
pub async fn install(database: &Database, script: String) -> Result<bool> {
    let mark = render(&database.config, &format!("COMMENT ON TABLE :\"queue_schema\".version IS '{MARK}'"));
    // A job lives for moments, and a claim rewrites it: beside the old version, where there is room, only the
    // difference goes to the WAL.
    let room =
        render(&database.config, "ALTER TABLE IF EXISTS :\"queue_schema\".job_common SET (fillfactor = 50)");
    run(database, format!("{script};\n{mark};\n{room}")).await
}

/// Runs pg-boss's migration script. `false` where another process was faster. The script brings its own BEGIN,
/// lock and COMMIT, but ends with indexes that are built concurrently, outside of a transaction, and two
/// processes that build one wait for each other: they take turns.
pub async fn migrate(database: &Database, script: String) -> Result<bool> {
    let mut holder = database.connect().await?;
    // The lock is asked for again and again: whoever waits in a statement has a snapshot, and the one that
    // builds an index waits for that. Each time in a new transaction: behind a pooler an open one keeps a
    // server from the process whose turn it is.
    let turn = loop {
        let mut transaction = holder.begin().await?;
        if try_lock(&mut transaction, database).await? {
            break transaction;
        }
        transaction.rollback().await?;
        sleep(ASK_AGAIN).await;
    };
    let outcome = run(database, script).await;
    turn.rollback().await?;
    holder.close().await?;
    outcome
}

async fn try_lock(connection: &mut PgConnection, database: &Database) -> Result<bool> {
    let row = unprepared("SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0::bigint))")
        .bind(format!("workflow-postgres-setup-queue:{}", database.config.queue_schema))
        .fetch_one(connection)
        .await?;
    Ok(row.try_get(0)?)
}

async fn run(database: &Database, script: String) -> Result<bool> {
    let mut connection = database.acquire().await?;
    let script = script.replacen("BEGIN;", &format!("BEGIN;\n{OWN_NAMES};\n"), 1);
    match connection.execute(AssertSqlSafe(script)).await {
        Ok(_) => {
            connection.give_back();
            Ok(true)
        }
        Err(error) => match error.as_database_error().and_then(|refusal| refusal.code()).as_deref() {
            // Duplicate schema, table, function, type or row: it was made meanwhile. Division by zero
            // is how a migration script of pg-boss says that its version has been reached.
            Some("42P06" | "42P07" | "42723" | "42710" | "23505" | "22012") => Ok(false),
            _ => Err(Error::from(error)),
        },
    }
}
