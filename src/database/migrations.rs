//! Our schema: creating it, bringing it up to date, and recognising it.
//!
//! State: none → create; ours and older → apply what is missing; ours and current → nothing to do;
//! ours and newer, or not ours → refuse and touch nothing.

use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use super::{Database, OWN_NAMES, find_schema, render, unprepared};
use crate::error::{Error, Result, not_set_up};

struct Migration {
    version: i32,
    name: &'static str,
    sql: &'static str,
}

const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "tables", sql: include_str!("../../migrations/0001_tables.sql") },
    Migration { version: 2, name: "views", sql: include_str!("../../migrations/0002_views.sql") },
];

/// Replaced as a whole by each setup, after the migrations.
const FUNCTIONS: &[&str] = &[
    include_str!("../../migrations/functions/entity_json.sql"),
    include_str!("../../migrations/functions/pulse.sql"),
    include_str!("../../migrations/functions/overtaken_calls.sql"),
    include_str!("../../migrations/functions/append_events.sql"),
    include_str!("../../migrations/functions/stream_append.sql"),
    include_str!("../../migrations/functions/queue_is_special.sql"),
    include_str!("../../migrations/functions/queue_push.sql"),
    include_str!("../../migrations/functions/queue_claim.sql"),
    include_str!("../../migrations/functions/queue_return.sql"),
    include_str!("../../migrations/functions/queue_settle.sql"),
    include_str!("../../migrations/functions/queue_heartbeat.sql"),
    include_str!("../../migrations/functions/queue_sweep.sql"),
    include_str!("../../migrations/functions/queue_stranded.sql"),
];

const LEDGER: &str = "CREATE TABLE IF NOT EXISTS :\"schema\".workflow_migrations (
    version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())";

const NEWEST: i32 = MIGRATIONS[MIGRATIONS.len() - 1].version;

/// What a setup did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub schema: String,
    pub created: bool,
    pub applied: Vec<String>,
    pub version: i32,
}

/// Creates or updates the schema, in one transaction under a lock: any number of processes may call it.
pub async fn migrate(database: &Database) -> Result<Report> {
    let mut connection = database.acquire().await?;
    let mut transaction = connection.begin().await?;
    transaction.execute(OWN_NAMES).await?;
    // Concurrent CREATE SCHEMA IF NOT EXISTS statements can collide; one at a time cannot.
    unprepared("SELECT pg_advisory_xact_lock(hashtextextended($1, 0::bigint))")
        .bind(format!("workflow-postgres-setup:{}", database.config.schema))
        .execute(&mut *transaction)
        .await?;

    let exists = find_schema(&mut transaction, &database.config.schema, "WORKFLOW_POSTGRES_SCHEMA").await?;
    let found = inspect(&mut transaction, database).await?;
    if let State::Newer(version) = found {
        return Err(newer(database, version));
    }
    if found == State::Foreign {
        return Err(Error::NotSetUp(format!(
            "Schema \"{0}\" exists, but its tables are not ours: nothing was changed. Choose another name with \
             WORKFLOW_POSTGRES_SCHEMA, or remove schema \"{0}\" if nothing needs it.",
            database.config.schema
        )));
    }
    let run = async |connection: &mut PgConnection, sql: &str| {
        connection.execute(AssertSqlSafe(render(&database.config, sql))).await.map_err(Error::from)
    };
    if found == State::Absent {
        if !exists {
            run(&mut transaction, "CREATE SCHEMA :\"schema\"").await?;
        }
        run(&mut transaction, LEDGER).await?;
    }
    let at = if let State::Ours(version) = found { version } else { 0 };
    let mut applied = Vec::new();
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > at) {
        run(&mut transaction, migration.sql).await?;
        let record = render(
            &database.config,
            "INSERT INTO :\"schema\".workflow_migrations (version, name) VALUES ($1, $2)",
        );
        unprepared(AssertSqlSafe(record))
            .bind(migration.version)
            .bind(migration.name)
            .execute(&mut *transaction)
            .await?;
        applied.push(format!("{:04}_{}", migration.version, migration.name));
    }
    for function in FUNCTIONS {
        run(&mut transaction, function).await?;
    }
    transaction.commit().await?;
    connection.give_back();
    Ok(Report {
        schema: database.config.schema.clone(),
        created: found == State::Absent,
        applied,
        version: NEWEST,
    })
}

/// For `start()`: whether this database is ours and of this version.
pub async fn check(database: &Database) -> Result<()> {
    let mut connection = database.acquire().await?;
    connection.check_isolation()?;
    let mut transaction = connection.begin().await?;
    transaction.execute(OWN_NAMES).await?;
    let found = inspect(&mut transaction, database).await?;
    transaction.commit().await?;
    connection.give_back();
    match found {
        State::Ours(version) if version == NEWEST => Ok(()),
        State::Ours(version) => Err(Error::NotSetUp(not_set_up(&format!(
            "schema \"{}\" is at version {version}, this package needs {NEWEST}",
            database.config.schema
        )))),
        State::Newer(version) => Err(newer(database, version)),
        State::Foreign => Err(Error::NotSetUp(not_set_up(&format!(
            "schema \"{}\" exists, but its tables are not ours; see WORKFLOW_POSTGRES_SCHEMA",
            database.config.schema
        )))),
        State::Absent => {
            Err(Error::NotSetUp(not_set_up(&format!("schema \"{}\" does not exist", database.config.schema))))
        }
    }
}

#[derive(PartialEq, Eq)]
enum State {
    Absent,
    Ours(i32),
    Newer(i32),
    Foreign,
}

async fn inspect(connection: &mut PgConnection, database: &Database) -> Result<State> {
    let row = unprepared(
        "SELECT to_regclass(quote_ident($1) || '.workflow_migrations') IS NOT NULL,
                EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                        WHERE n.nspname = $1)",
    )
    .bind(database.config.schema.clone())
    .fetch_one(&mut *connection)
    .await?;
    let (ledger, anything): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    if !ledger {
        // An empty schema, made beforehand by an administrator, is fine.
        return Ok(if anything { State::Foreign } else { State::Absent });
    }
    let sql =
        render(&database.config, "SELECT COALESCE(max(version), 0) FROM :\"schema\".workflow_migrations");
    let version: i32 = match unprepared(AssertSqlSafe(sql)).fetch_one(connection).await {
        Ok(row) => row.try_get(0)?,
        // Undefined column: a table of that name, but another program's.
        Err(error)
            if error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("42703")) =>
        {
            return Ok(State::Foreign);
        }
        Err(error) => return Err(error.into()),
    };
    Ok(if version > NEWEST { State::Newer(version) } else { State::Ours(version) })
}

fn newer(database: &Database, version: i32) -> Error {
    Error::NotSetUp(format!(
        "Schema \"{}\" is at version {version}, made by a newer @workflow/world-postgres; this one knows {NEWEST}. \
         Nothing was changed: update this package.",
        database.config.schema
    ))
}
