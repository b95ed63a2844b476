//! The SDK's `Storage`: the event log and the entities that are derived from it.

mod append;
mod leases;
pub mod reply;

use std::sync::Arc;

use sqlx::Row;
use sqlx::postgres::PgRow;

pub use append::Append;
use append::{Appender, event_of_row};
use leases::Leases;
pub use leases::{LEASE, Lease};
use reply::{EntityOut, Page, Payloads, Reply, raw};

use crate::database::{Database, Query, Statement};
use crate::error::{Error, Result};
use crate::ids::{EventIds, can_exist, check_id, check_token, new_request_id, ulid_time_ms};

/// The largest page, as documented in `PaginationOptions` of @workflow/world.
const MAX_LIMIT: i64 = 1000;
const DEFAULT_LIMIT: i64 = 20;
const DEFAULT_HOOKS_LIMIT: i64 = 100;
/// The replay asks for whole logs without a limit: fewer pages are fewer round trips.
const DEFAULT_EVENTS_LIMIT: i64 = 1000;

#[derive(Debug, Clone, Default)]
pub struct Pagination {
    pub limit: Option<i64>,
    pub cursor: Option<String>,
    /// `asc` or `desc`; absent means the list's own default.
    pub sort_order: Option<String>,
}

#[derive(Clone, Copy)]
enum Order {
    Ascending,
    Descending,
}

impl Order {
    fn keyword(self) -> &'static str {
        if matches!(self, Self::Ascending) { "ASC" } else { "DESC" }
    }

    /// The comparison of rows that lie beyond a cursor.
    fn beyond(self) -> &'static str {
        if matches!(self, Self::Ascending) { ">" } else { "<" }
    }
}

impl Pagination {
    fn limit(&self, default: i64) -> i64 {
        self.limit.unwrap_or(default).clamp(1, MAX_LIMIT)
    }

    fn order(&self, default: Order) -> Result<Order> {
        match self.sort_order.as_deref() {
            None => Ok(default),
            Some("asc") => Ok(Order::Ascending),
            Some("desc") => Ok(Order::Descending),
            Some(other) => {
                Err(Error::Invalid(format!("sortOrder must be \"asc\" or \"desc\", not {other:?}")))
            }
        }
    }

    fn cursor(&self) -> Result<Option<String>> {
        self.cursor.as_deref().map(|cursor| check_id("cursor", cursor).map(str::to_owned)).transpose()
    }
}

pub struct Storage {
    pub leases: Arc<Leases>,
    database: Arc<Database>,
    appender: Arc<Appender>,
    run_get: Statement,
    step_get: Statement,
    run_of_correlation: Statement,
    let_in: Statement,
}

impl Storage {
    /// `job_prefix` names the queues that serve the runs created here.
    pub fn new(database: Arc<Database>, job_prefix: String) -> Self {
        Self {
            leases: Leases::new(Arc::clone(&database)),
            appender: Appender::new(Arc::clone(&database), job_prefix),
            run_get: database.render(include_str!("sql/run_get.sql")),
            step_get: database.render(include_str!("sql/step_get.sql")),
            run_of_correlation: database.render(include_str!("sql/run_of_correlation.sql")),
            let_in: database.render(include_str!("sql/let_in.sql")),
            database,
        }
    }

    pub async fn append(&self, mut append: Append) -> Result<Reply> {
        let request = new_request_id();
        let starts = append.lease;
        let lease = append.lease_of(request);
        let starting = starts.then(|| self.leases.starting());
        append.shared = starting.as_ref().is_some_and(|starting| starting.shared);
        let reply = self.appender.append(append, request).await;
        match (lease, starting, &reply) {
            (Some(lease), Some(starting), Ok(_)) => self.leases.taken(lease, starting).await,
            (Some(lease), None, Ok(_) | Err(Error::EntityConflict(_))) => self.leases.ended(&lease),
            _ => {}
        }
        reply
    }

    /// A replay has ended that external events of its run waited for. Where this fails, they wait a little longer.
    pub async fn let_in(&self, run_id: String) {
        let query = || self.database.query(&self.let_in).bind(run_id.clone());
        let _ = self.database.fetch_all(query).await;
    }

    pub async fn run(&self, run_id: &str, with_payloads: bool) -> Result<Reply> {
        let missing = || Error::RunNotFound { run_id: run_id.to_owned() };
        if !can_exist(run_id) {
            return Err(missing());
        }
        let query = || self.database.query(&self.run_get).bind(run_id.to_owned()).bind(with_payloads);
        let rows = self.database.fetch_all(query).await?;
        let row = rows.first().ok_or_else(missing)?;
        let mut payloads = Payloads::default();
        let entity = entity_of_row(row, &mut payloads)?;
        payloads.reply(&entity)
    }

    pub async fn runs(
        &self,
        workflow_name: Option<String>,
        status: Option<String>,
        pagination: &Pagination,
        with_payloads: bool,
    ) -> Result<Reply> {
        let order = pagination.order(Order::Descending)?;
        let limit = pagination.limit(DEFAULT_LIMIT);
        let cursor = pagination.cursor()?;
        if !workflow_name.iter().chain(&status).all(|filter| can_exist(filter)) {
            return Payloads::default().reply(&Page::<()>::empty());
        }
        let statement = self.list(
            include_str!("sql/runs_list.sql"),
            order,
            limit + 1,
            &[
                (workflow_name.is_some(), "workflow_name =", 1),
                (status.is_some(), "status =", 2),
                (cursor.is_some(), &format!("run_id {}", order.beyond()), 3),
            ],
        );
        let query = || {
            self.database
                .query(&statement)
                .bind(workflow_name.clone())
                .bind(status.clone())
                .bind(cursor.clone())
                .bind(with_payloads)
        };
        self.entity_page(query, limit).await
    }

    pub async fn step(&self, run_id: Option<&str>, step_id: &str, with_payloads: bool) -> Result<Reply> {
        let missing = || Error::NotFound(format!("Step \"{step_id}\" not found"));
        if !can_exist(step_id) || !run_id.is_none_or(can_exist) {
            return Err(missing());
        }
        let run_id = match run_id {
            Some(run_id) => run_id.to_owned(),
            None => self.run_of_correlation(step_id).await?.ok_or_else(missing)?,
        };
        let query = || {
            self.database
                .query(&self.step_get)
                .bind(run_id.clone())
                .bind(step_id.to_owned())
                .bind(with_payloads)
        };
        let rows = self.database.fetch_all(query).await?;
        let mut payloads = Payloads::default();
        let entity = entity_of_row(rows.first().ok_or_else(missing)?, &mut payloads)?;
        payloads.reply(&entity)
    }

    pub async fn steps(&self, run_id: &str, pagination: &Pagination, with_payloads: bool) -> Result<Reply> {
        check_id("runId", run_id)?;
        let order = pagination.order(Order::Descending)?;
        let limit = pagination.limit(DEFAULT_LIMIT);
        let cursor = pagination.cursor()?;
        let statement = self.list(
            include_str!("sql/steps_list.sql"),
            order,
            limit + 1,
            &[(cursor.is_some(), &format!("step_id {}", order.beyond()), 2)],
        );
        let query = || {
            self.database.query(&statement).bind(run_id.to_owned()).bind(cursor.clone()).bind(with_payloads)
        };
        self.entity_page(query, limit).await
    }

    pub async fn hook(&self, hook_id: &str, with_metadata: bool) -> Result<Reply> {
        self.one_hook((None, Some(hook_id), None), hook_id, with_metadata).await
    }

    pub async fn hook_by_token(&self, token: &str, with_metadata: bool) -> Result<Reply> {
        self.one_hook((None, None, Some(token)), token, with_metadata).await
    }

    pub async fn hooks(
        &self,
        run_id: Option<&str>,
        pagination: &Pagination,
        with_metadata: bool,
    ) -> Result<Reply> {
        let page = self.hook_page((run_id, None, None), pagination, with_metadata).await?;
        page.payloads.reply(&page.page)
    }

    async fn one_hook(&self, by: HookFilter<'_>, asked: &str, with_metadata: bool) -> Result<Reply> {
        let missing = || Error::HookNotFound { token: asked.to_owned() };
        let possible = if by.2.is_some() { check_token(asked).is_ok() } else { can_exist(asked) };
        if !possible {
            return Err(missing());
        }
        let pagination = Pagination { limit: Some(1), ..Pagination::default() };
        let HookPage { page, payloads } = self.hook_page(by, &pagination, with_metadata).await?;
        let hook = page.data.into_iter().next().ok_or_else(missing)?;
        payloads.reply(&hook)
    }

    async fn hook_page(
        &self,
        by: HookFilter<'_>,
        pagination: &Pagination,
        with_metadata: bool,
    ) -> Result<HookPage> {
        let run_id = by.0.map(|run_id| check_id("runId", run_id)).transpose()?.map(str::to_owned);
        let (hook_id, token) = (by.1.map(str::to_owned), by.2.map(str::to_owned));
        let order = pagination.order(Order::Ascending)?;
        let limit = pagination.limit(DEFAULT_HOOKS_LIMIT);
        let cursor = pagination.cursor()?;
        let digest = ":\"schema\".token_digest";
        let statement = self.list(
            include_str!("sql/hooks_list.sql"),
            order,
            limit + 1,
            &[
                (run_id.is_some(), "run_id =", 1),
                (hook_id.is_some(), "hook_id =", 2),
                (token.is_some(), &format!("{digest}(token) = {digest}($3) AND token ="), 3),
                (cursor.is_some(), &format!("hook_id {}", order.beyond()), 4),
            ],
        );
        let query = || {
            self.database
                .query(&statement)
                .bind(run_id.clone())
                .bind(hook_id.clone())
                .bind(token.clone())
                .bind(cursor.clone())
                .bind(with_metadata)
        };
        let rows = self.database.fetch_all(query).await?;
        let mut payloads = Payloads::default();
        let page = page(
            &rows,
            limit,
            |row| row.try_get::<String, _>(0).map_err(Error::from),
            |row| {
                Ok(EntityOut {
                    entity: required(raw(row.try_get(1)?)?)?,
                    input: payloads.push(row.try_get(2)?),
                    input_data: raw(row.try_get(3)?)?,
                    output: None,
                    output_data: None,
                })
            },
        )?;
        Ok(HookPage { page, payloads })
    }

    pub async fn event(&self, run_id: &str, event_id: &str, with_payloads: bool) -> Result<Reply> {
        let ids = EventIds::of(run_id);
        let missing = || Error::NotFound(format!("Event \"{event_id}\" not found"));
        let slot = ids.decode(event_id).filter(|_| can_exist(run_id)).ok_or_else(missing)?;
        let statement =
            self.list(include_str!("sql/events_list.sql"), Order::Ascending, 1, &[(true, "slot =", 3)]);
        let query = || {
            self.database
                .query(&statement)
                .bind(run_id.to_owned())
                .bind(None::<String>)
                .bind(slot)
                .bind(with_payloads)
        };
        let rows = self.database.fetch_all(query).await?;
        let mut payloads = Payloads::default();
        let event = event_of_row(rows.first().ok_or_else(missing)?, 0, &ids, &mut payloads)?;
        // An id with another time names no event, though its slot exists.
        if event.event_id != event_id {
            return Err(missing());
        }
        payloads.reply(&event)
    }

    pub async fn events(
        &self,
        run_id: &str,
        correlation_id: Option<String>,
        pagination: &Pagination,
        with_payloads: bool,
    ) -> Result<Reply> {
        check_id("runId", run_id)?;
        let ids = EventIds::of(run_id);
        let order = pagination.order(Order::Ascending)?;
        let limit = pagination.limit(DEFAULT_EVENTS_LIMIT);
        let after = match &pagination.cursor {
            None => None,
            Some(cursor) => Some(ids.decode(cursor).ok_or_else(|| {
                Error::Invalid(format!("cursor {cursor:?} is not an event id of run \"{run_id}\""))
            })?),
        };
        let statement = self.list(
            include_str!("sql/events_list.sql"),
            order,
            limit + 1,
            &[
                (correlation_id.is_some(), "correlation_id =", 2),
                (after.is_some(), &format!("slot {}", order.beyond()), 3),
            ],
        );
        let query = || {
            self.database
                .query(&statement)
                .bind(run_id.to_owned())
                .bind(correlation_id.clone())
                .bind(after)
                .bind(with_payloads)
        };
        let rows = self.database.fetch_all(query).await?;
        let mut payloads = Payloads::default();
        let key = |row: &PgRow| Ok(ids.encode(row.try_get(0)?, row.try_get(3)?));
        let page = page(&rows, limit, key, |row| event_of_row(row, 0, &ids, &mut payloads))?;
        payloads.reply(&Page { run_id: Some(run_id.to_owned()), ..page })
    }

    /// A correlation id is unique within its run; without the run, the id itself leads to it.
    pub async fn events_by_correlation(
        &self,
        correlation_id: &str,
        run_id: Option<&str>,
        pagination: &Pagination,
        with_payloads: bool,
    ) -> Result<Reply> {
        check_id("correlationId", correlation_id)?;
        let run_id = match run_id {
            Some(run_id) => run_id.to_owned(),
            None => match self.run_of_correlation(correlation_id).await? {
                Some(run_id) => run_id,
                None => return Payloads::default().reply(&Page::<()>::empty()),
            },
        };
        self.events(&run_id, Some(correlation_id.to_owned()), pagination, with_payloads).await
    }

    async fn run_of_correlation(&self, correlation_id: &str) -> Result<Option<String>> {
        let query = || {
            self.database
                .query(&self.run_of_correlation)
                .bind(correlation_id.to_owned())
                .bind(ulid_time_ms(correlation_id))
        };
        let rows = self.database.fetch_all(query).await?;
        Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
    }

    /// One statement per combination of filters, so that each gets the index it deserves, and per number of
    /// rows: of a parameter PostgreSQL would expect a tenth of the table, and make a plan for each call.
    fn list(&self, sql: &str, order: Order, rows: i64, filters: &[(bool, &str, u8)]) -> Statement {
        let filters: String = filters
            .iter()
            .filter(|(present, ..)| *present)
            .map(|(_, condition, parameter)| format!("AND {condition} ${parameter} "))
            .collect();
        self.database.render(
            &sql.replace(":filters", &filters)
                .replace(":direction", order.keyword())
                .replace(":rows", &rows.to_string()),
        )
    }

    async fn entity_page(&self, query: impl Fn() -> Query, limit: i64) -> Result<Reply> {
        let rows = self.database.fetch_all(query).await?;
        let mut payloads = Payloads::default();
        let key = |row: &PgRow| row.try_get::<String, _>(0).map_err(Error::from);
        let page = page(&rows, limit, key, |row| entity_of_row(row, &mut payloads))?;
        payloads.reply(&page)
    }
}

/// Run id, hook id, token.
type HookFilter<'a> = (Option<&'a str>, Option<&'a str>, Option<&'a str>);

struct HookPage {
    page: Page<EntityOut>,
    payloads: Payloads,
}

/// Lists ask for one row more than a page: it tells whether there is a next one.
fn page<T>(
    rows: &[PgRow],
    limit: i64,
    key: impl Fn(&PgRow) -> Result<String>,
    item: impl FnMut(&PgRow) -> Result<T>,
) -> Result<Page<T>> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let shown = &rows[..rows.len().min(limit)];
    Ok(Page {
        data: shown.iter().map(item).collect::<Result<_>>()?,
        // Also on the last page: the runtime asks from there for what comes later.
        cursor: shown.last().map(key).transpose()?,
        has_more: rows.len() > limit,
        run_id: None,
    })
}

/// Columns: id, entity, input payload and data, output payload and data.
fn entity_of_row(row: &PgRow, payloads: &mut Payloads) -> Result<EntityOut> {
    Ok(EntityOut {
        entity: required(raw(row.try_get(1)?)?)?,
        input: payloads.push(row.try_get(2)?),
        input_data: raw(row.try_get(3)?)?,
        output: payloads.push(row.try_get(4)?),
        output_data: raw(row.try_get(5)?)?,
    })
}

fn required<T>(value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::Database("a row without its entity".to_owned()))
}
