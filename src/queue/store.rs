//! The statements of the queue: what is written to and read from pg-boss's tables.

use std::sync::Arc;
use std::time::Duration;

use rand::RngCore;
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, Executor as _, Row};

use super::timing::{
    LEASE, LONGEST_DELAY, PURGE, RESCUE, RESCUE_BUDGET, RESCUE_NEXT, RESCUE_PAGE, RESCUE_QUIET,
    RESCUE_TAKEN_OVER, SWEEP, millis,
};
use super::{Kind, Message};
use crate::config::QueueConfig;
use crate::database::patience::{BOUNDED, Limit, Try, patiently};
use crate::database::{Database, OWN_NAMES, Statement};
use crate::error::{Error, Result, not_set_up};
use crate::ids::new_request_id;

/// Names of pg-boss queues, and their policies: at most one job of a key per state among those that
/// wait or run; and at most one at all.
pub struct Queues {
    pub flows: String,
    pub steps: String,
}

pub const FLOWS_POLICY: &str = "stately";
pub const STEPS_POLICY: &str = "exclusive";

/// The attempt after which the SDK gives up is 49: 48 retries.
const RETRY_LIMIT: u32 = 48;
/// A job that waits is never too old. pg-boss deletes those that are.
const RETENTION: Duration = LONGEST_DELAY;
const KEEP_ENDED: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// For JavaScript workers; ours keep their leases as long as they live.
const EXPIRE: Duration = Duration::from_secs(24 * 60 * 60);

impl Queues {
    pub fn of(config: &QueueConfig) -> Self {
        Self { flows: format!("{}flows", config.job_prefix), steps: format!("{}steps", config.job_prefix) }
    }

    pub fn name(&self, kind: Kind) -> &str {
        match kind {
            Kind::Flow => &self.flows,
            Kind::Step => &self.steps,
        }
    }

    fn kind(&self, name: &str) -> Kind {
        if name == self.steps { Kind::Step } else { Kind::Flow }
    }

    pub fn options(kind: Kind) -> String {
        let policy = match kind {
            Kind::Flow => FLOWS_POLICY,
            Kind::Step => STEPS_POLICY,
        };
        serde_json::json!({
            "policy": policy,
            "retryLimit": RETRY_LIMIT,
            "retryDelay": 1,
            "retryBackoff": true,
            "retryDelayMax": 900,
            "expireInSeconds": EXPIRE.as_secs(),
            "retentionSeconds": RETENTION.as_secs(),
            "deleteAfterSeconds": KEEP_ENDED.as_secs(),
            "notify": true,
        })
        .to_string()
    }
}

/// A job under a claim. No other claim ever has the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    pub kind: Kind,
    pub job_id: String,
    /// Epoch µs of pg-boss's `started_on`.
    pub at: i64,
}

#[derive(Clone)]
pub struct Push {
    pub message: Arc<Message>,
    /// The message's own, or longer.
    pub delay: Duration,
    pub job_id: String,
    pub key: String,
    pub group: String,
    pub data: String,
    /// For a free slot of this process.
    pub claim: bool,
    /// This process will look for it in time.
    pub quiet: bool,
    /// Whether it must survive a crash of PostgreSQL from the moment that the caller is told.
    pub durable: bool,
}

pub struct Pushed {
    pub message_id: String,
    pub claim: Option<Claim>,
    /// Something new waits to be claimed.
    pub waits: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Complete,
    Fail {
        error: String,
        delay: Duration,
    },
    Reschedule {
        delay: Duration,
    },
    /// No attempt was made.
    Release {
        delay: Duration,
    },
}

impl Action {
    fn name(&self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Fail { .. } => "fail",
            Self::Reschedule { .. } => "reschedule",
            Self::Release { .. } => "release",
        }
    }

    /// When the job is due again, if it is.
    pub fn delay(&self) -> Option<Duration> {
        match self {
            Self::Complete => None,
            Self::Fail { delay, .. } | Self::Reschedule { delay } | Self::Release { delay } => Some(*delay),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Settlement {
    pub claim: Claim,
    pub action: Action,
}

pub struct Claimed {
    pub claim: Claim,
    pub attempt: u32,
    pub group: String,
    pub data: String,
    /// How often in a row its process died while it was delivered.
    pub lost_leases: i64,
}

/// A message that is not delivered any more.
pub struct Dead {
    pub claim: Claim,
    pub attempts: u32,
    pub group: String,
}

/// How a turn looks for jobs of a queue.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// How many to claim; `None` does not look.
    pub most: Option<i32>,
    /// Epoch µs: nothing waited before then. `None` looks from the beginning.
    pub since: Option<i64>,
}

impl Look {
    pub fn most(&self) -> usize {
        self.most.and_then(|most| usize::try_from(most).ok()).unwrap_or(0)
    }
}

#[derive(Default)]
pub struct Turn {
    pub claimed: Vec<Claimed>,
    pub lost: Vec<Claim>,
    pub again: Vec<Kind>,
    pub next: Vec<(Kind, Duration)>,
    pub since: Vec<(Kind, i64)>,
    pub dead: Vec<Dead>,
    /// A job is due that is to be delivered beside nothing else.
    pub lonely: Option<Kind>,
    /// Jobs that PostgreSQL does not let anybody claim, with its error.
    pub refused: Vec<(String, String)>,
}

/// A lease that has expired: its job waits again, or has failed.
pub struct Expired {
    pub job_id: String,
    pub group: String,
    /// How many leases were lost in a row.
    pub lost: i64,
    pub dead: bool,
}

#[derive(Default)]
pub struct Sweep {
    pub expired: Vec<Expired>,
    /// Jobs that PostgreSQL does not let anybody give back, with its error.
    pub refused: Vec<(String, String)>,
    pub due: Vec<Kind>,
    pub next: Vec<(Kind, Duration)>,
    pub expiry: Option<Duration>,
}

#[derive(Clone)]
pub struct Stranded {
    pub run_id: String,
    pub workflow: String,
    pub slot: i32,
}

/// A part of the search for stranded runs.
pub struct Search {
    pub stranded: Vec<Stranded>,
    /// The pass is not at its end, and this process's.
    pub mine: bool,
    /// How long to wait for the next part.
    pub pause: Duration,
}

/// How many jobs of a queue are in a state.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Depth {
    pub queue: String,
    pub state: String,
    pub count: i64,
    /// Of those, not due yet.
    pub delayed: i64,
    /// How long the oldest has been due.
    pub oldest_ms: Option<i64>,
}

pub struct Store {
    pub database: Arc<Database>,
    pub queues: Queues,
    job_prefix: String,
    keep_completed: bool,
    max_lost_leases: i32,
    push: Statement,
    settle: Statement,
    heartbeat: Statement,
    sweep: Statement,
    stranded: Statement,
    rescued: Statement,
    purge: Statement,
    depth: Statement,
    oldest: Statement,
}

impl Store {
    pub fn new(database: Arc<Database>, config: &QueueConfig) -> Self {
        Self {
            queues: Queues::of(config),
            job_prefix: config.job_prefix.clone(),
            keep_completed: config.keep_completed,
            max_lost_leases: i32::try_from(config.max_lost_leases).unwrap_or(i32::MAX),
            push: database.render(include_str!("sql/push.sql")),
            settle: database.render(include_str!("sql/settle.sql")),
            heartbeat: database.render(include_str!("sql/heartbeat.sql")),
            sweep: database.render(include_str!("sql/sweep.sql")),
            stranded: database.render(include_str!("sql/stranded.sql")),
            rescued: database.render(include_str!("sql/rescued.sql")),
            purge: database.render(include_str!("sql/purge.sql")),
            depth: database.render(include_str!("sql/depth.sql")),
            oldest: database.render(include_str!("sql/oldest.sql")),
            database,
        }
    }

    fn channel(&self) -> String {
        self.database.notifications.channels().queue.clone()
    }

    /// Results in the order of `pushes`, which must be sorted by [`Push::order`]. Waits for PostgreSQL to
    /// come back. A message that PostgreSQL refuses fails no other of its batch.
    pub async fn push(&self, pushes: &[Push]) -> Vec<Result<Pushed>> {
        match self.push_together(pushes).await {
            Ok(pushed) => pushed.into_iter().map(Ok).collect(),
            Err(error) if error.is_refusal() && pushes.len() > 1 => {
                let mut each = Vec::with_capacity(pushes.len());
                for push in pushes {
                    each.push(self.push_one(push).await);
                }
                each
            }
            Err(error) => pushes.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    pub async fn push_one(&self, push: &Push) -> Result<Pushed> {
        let pushed = self.push_together(std::slice::from_ref(push)).await?;
        let none = || Error::Database("queue_push answered for no message".to_owned());
        pushed.into_iter().next().ok_or_else(none)
    }

    async fn push_together(&self, pushes: &[Push]) -> Result<Vec<Pushed>> {
        let request = new_request_id();
        let rows = patiently(BOUNDED, |attempt| async move {
            match self.push_once(pushes, request, attempt).await {
                // Waited for with one of them alone.
                Err(error) if error.is_refusal() && pushes.len() > 1 => Ok(Err(error)),
                outcome => outcome.map(Ok),
            }
        })
        .await??;
        rows.iter()
            .map(|row| {
                let call = usize::try_from(row.try_get::<i32, _>(0)?).unwrap_or(usize::MAX);
                let push = pushes
                    .get(call)
                    .ok_or_else(|| Error::Database("queue_push answered for no message".to_owned()))?;
                Ok(Pushed {
                    message_id: row.try_get(1)?,
                    claim: row.try_get::<Option<i64>, _>(2)?.map(|at| Claim {
                        kind: push.message.kind,
                        job_id: push.job_id.clone(),
                        at,
                    }),
                    waits: row.try_get(3)?,
                })
            })
            .collect()
    }

    /// After an earlier try the messages may be there already.
    async fn push_once(
        &self,
        pushes: &[Push],
        request: i64,
        Try { earlier, limit }: Try,
    ) -> Result<Vec<PgRow>> {
        let query = self
            .database
            .query(&self.push)
            .bind(self.queues.flows.clone())
            .bind(self.queues.steps.clone())
            .bind(self.channel())
            .bind(lease())
            .bind(millis(SWEEP))
            .bind(
                pushes.iter().map(|push| self.queues.name(push.message.kind).to_owned()).collect::<Vec<_>>(),
            )
            .bind(pushes.iter().map(|push| push.job_id.clone()).collect::<Vec<_>>())
            .bind(pushes.iter().map(|push| push.key.clone()).collect::<Vec<_>>())
            .bind(pushes.iter().map(|push| push.group.clone()).collect::<Vec<_>>())
            .bind(pushes.iter().map(|push| push.message.message_id.clone()).collect::<Vec<_>>())
            .bind(pushes.iter().map(|push| push.data.clone()).collect::<Vec<_>>())
            .bind(pushes.iter().map(|push| millis(push.delay)).collect::<Vec<_>>())
            .bind(pushes.iter().map(|push| push.claim).collect::<Vec<_>>())
            .bind(pushes.iter().map(|push| push.quiet).collect::<Vec<_>>())
            .bind(pushes.iter().any(|push| push.durable))
            .bind(request)
            .bind(earlier);
        self.database.fetch_once(query, limit).await
    }

    /// Settles, and claims as asked. `alone`: a job that is to be delivered beside nothing else.
    pub async fn settle(&self, settlements: &[Settlement], asked: [Look; 2], alone: bool) -> Result<Turn> {
        let errors = |settlement: &Settlement| match &settlement.action {
            Action::Fail { error, .. } => Some(storable(error)),
            _ => None,
        };
        let names = |settlement: &Settlement| self.queues.name(settlement.claim.kind).to_owned();
        let delays = |settlement: &Settlement| settlement.action.delay().map_or(0, millis);
        let query = self
            .database
            .query(&self.settle)
            .bind(self.queues.flows.clone())
            .bind(self.queues.steps.clone())
            .bind(self.channel())
            .bind(lease())
            .bind(self.keep_completed)
            .bind(settlements.iter().map(names).collect::<Vec<_>>())
            .bind(settlements.iter().map(|settlement| settlement.claim.job_id.clone()).collect::<Vec<_>>())
            .bind(settlements.iter().map(|settlement| settlement.claim.at).collect::<Vec<_>>())
            .bind(
                settlements.iter().map(|settlement| settlement.action.name().to_owned()).collect::<Vec<_>>(),
            )
            .bind(settlements.iter().map(delays).collect::<Vec<_>>())
            .bind(settlements.iter().map(errors).collect::<Vec<_>>())
            .bind(asked[0].most)
            .bind(asked[1].most)
            .bind(asked[0].since)
            .bind(asked[1].since)
            .bind(alone);
        let mut turn = Turn::default();
        for row in self.database.fetch_once(query, Limit::TURN).await? {
            let kind = self.queues.kind(row.try_get(1)?);
            let claim = |row: &PgRow| -> Result<Claim> {
                Ok(Claim { kind, job_id: row.try_get(2)?, at: row.try_get(3)? })
            };
            match row.try_get(0)? {
                "claimed" => turn.claimed.push(Claimed {
                    claim: claim(&row)?,
                    attempt: row.try_get::<i32, _>(4)?.unsigned_abs(),
                    group: row.try_get(5)?,
                    data: row.try_get::<Option<_>, _>(6)?.unwrap_or_default(),
                    lost_leases: row.try_get::<Option<i64>, _>(7)?.unwrap_or(0),
                }),
                "dead" => turn.dead.push(Dead {
                    claim: claim(&row)?,
                    attempts: row.try_get::<i32, _>(4)?.unsigned_abs(),
                    group: row.try_get::<Option<_>, _>(5)?.unwrap_or_default(),
                }),
                "lonely" => turn.lonely = Some(kind),
                "refused" => turn.refused.push((row.try_get(2)?, row.try_get(6)?)),
                "lost" => turn.lost.push(claim(&row)?),
                "again" => turn.again.push(kind),
                "since" => turn.since.push((kind, row.try_get(3)?)),
                _ => turn.next.push((kind, from_millis(row.try_get(7)?))),
            }
        }
        Ok(turn)
    }

    /// Returns the claims that are not ours any more. A lease that PostgreSQL refuses to renew costs no other.
    pub async fn heartbeat(&self, claims: &[Claim]) -> Result<Vec<Claim>> {
        match self.heartbeat_all(claims).await {
            Err(error) if error.is_refusal() && claims.len() > 1 => {
                let (mut lost, mut renewed) = (Vec::new(), false);
                for claim in claims {
                    if let Ok(gone) = self.heartbeat_all(std::slice::from_ref(claim)).await {
                        renewed = true;
                        lost.extend(gone);
                    }
                }
                if renewed { Ok(lost) } else { Err(error) }
            }
            outcome => outcome,
        }
    }

    async fn heartbeat_all(&self, claims: &[Claim]) -> Result<Vec<Claim>> {
        let names: Vec<String> = claims.iter().map(|claim| self.queues.name(claim.kind).to_owned()).collect();
        let query = self
            .database
            .query(&self.heartbeat)
            .bind(names)
            .bind(claims.iter().map(|claim| claim.job_id.clone()).collect::<Vec<_>>())
            .bind(claims.iter().map(|claim| claim.at).collect::<Vec<_>>());
        let rows = self.database.fetch_urgently(query).await?;
        let mut lost = Vec::new();
        for row in rows {
            let (job_id, at): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            lost.extend(claims.iter().find(|claim| claim.job_id == job_id && claim.at == at).cloned());
        }
        Ok(lost)
    }

    /// `since`: see [`Look`].
    pub async fn sweep(&self, release: bool, own: &[Claim], since: [Option<i64>; 2]) -> Result<Sweep> {
        let query = self
            .database
            .query(&self.sweep)
            .bind(self.queues.flows.clone())
            .bind(self.queues.steps.clone())
            .bind(self.channel())
            .bind(release)
            .bind(own.iter().map(|claim| claim.job_id.clone()).collect::<Vec<_>>())
            .bind(self.max_lost_leases)
            .bind(since[0])
            .bind(since[1]);
        let mut sweep = Sweep::default();
        for row in self.database.fetch_once(query, Limit::TURN).await? {
            let kind = row.try_get::<Option<&str>, _>(1)?.map_or(Kind::Flow, |name| self.queues.kind(name));
            let number: i64 = row.try_get(2)?;
            match row.try_get(0)? {
                what @ ("released" | "dead") => sweep.expired.push(Expired {
                    job_id: row.try_get(3)?,
                    group: row.try_get::<Option<_>, _>(4)?.unwrap_or_default(),
                    lost: number,
                    dead: what == "dead",
                }),
                "refused" => sweep.refused.push((row.try_get(3)?, row.try_get(4)?)),
                "due" => sweep.due.push(kind),
                "next" => sweep.next.push((kind, from_millis(number))),
                _ => sweep.expiry = Some(from_millis(number)),
            }
        }
        Ok(sweep)
    }

    /// Goes on with the search for stranded runs. `mine`: this process is making the pass that is under way.
    pub async fn stranded(&self, mine: bool) -> Result<Search> {
        let query = self
            .database
            .query(&self.stranded)
            .bind(self.queues.flows.clone())
            .bind(self.queues.steps.clone())
            .bind(self.job_prefix.clone())
            .bind(millis(RESCUE_QUIET))
            .bind(mine)
            .bind(RESCUE_PAGE)
            .bind(millis(RESCUE_BUDGET))
            .bind(millis(RESCUE_NEXT))
            .bind(millis(RESCUE))
            .bind(millis(RESCUE_TAKEN_OVER));
        let mut search = Search { stranded: Vec::new(), mine: false, pause: RESCUE };
        for row in self.database.fetch_once(query, Limit::WRITE).await? {
            let run_id: Option<String> = row.try_get(0)?;
            match (run_id, row.try_get(1)?) {
                (Some(run_id), Some(workflow)) => {
                    search.stranded.push(Stranded { run_id, workflow, slot: row.try_get(2)? });
                }
                (place, _) => {
                    search.mine = place.is_some();
                    search.pause = from_millis(row.try_get::<i32, _>(2)?.into());
                }
            }
        }
        Ok(search)
    }

    pub async fn mark_rescued(&self, runs: &[Stranded]) -> Result<()> {
        let query = self
            .database
            .query(&self.rescued)
            .bind(runs.iter().map(|run| run.run_id.clone()).collect::<Vec<_>>())
            .bind(runs.iter().map(|run| run.slot).collect::<Vec<_>>());
        self.database.execute_once(query, Limit::WRITE).await?;
        Ok(())
    }

    pub async fn purge(&self) -> Result<u64> {
        let query = self
            .database
            .query(&self.purge)
            .bind(self.queues.flows.clone())
            .bind(self.queues.steps.clone())
            .bind(millis(PURGE));
        Ok(self.database.execute_once(query, Limit::WRITE).await?.rows_affected())
    }

    /// How long the job that has waited longest has been due.
    pub async fn oldest_due_ms(&self) -> Result<Option<i64>> {
        let query = || {
            self.database.query(&self.oldest).bind(self.queues.flows.clone()).bind(self.queues.steps.clone())
        };
        match self.database.fetch_all(query).await?.first() {
            Some(row) => Ok(row.try_get(0)?),
            None => Ok(None),
        }
    }

    pub async fn depth(&self) -> Result<Vec<Depth>> {
        let query = || {
            self.database.query(&self.depth).bind(self.queues.flows.clone()).bind(self.queues.steps.clone())
        };
        self.database
            .fetch_all(query)
            .await?
            .iter()
            .map(|row| {
                Ok(Depth {
                    queue: row.try_get(0)?,
                    state: row.try_get(1)?,
                    count: row.try_get(2)?,
                    delayed: row.try_get(3)?,
                    oldest_ms: row.try_get(4)?,
                })
            })
            .collect()
    }
}

impl Push {
    pub fn new(message: Arc<Message>) -> Result<Self> {
        let (key, group) = message.key_and_group()?;
        let data = message.to_data()?;
        let delay = message.delay.unwrap_or_default();
        Ok(Self {
            message,
            delay,
            job_id: new_job_id(),
            key,
            group,
            data,
            claim: false,
            quiet: false,
            durable: true,
        })
    }

    /// Flows before steps and each of them by key: the order in which all statements lock.
    pub fn order(&self) -> (bool, &str) {
        (self.message.kind == Kind::Step, &self.key)
    }
}

/// Creates the two pg-boss queues where they do not exist, and returns their names. Any number of
/// processes may call it.
pub async fn setup(database: &Database, config: &QueueConfig) -> Result<Vec<String>> {
    let queues = Queues::of(config);
    let names = vec![queues.flows.clone(), queues.steps.clone()];
    let query = database
        .query(&database.render(include_str!("sql/create_queues.sql")))
        .bind(queues.flows)
        .bind(queues.steps)
        .bind(Queues::options(Kind::Flow))
        .bind(Queues::options(Kind::Step));
    let mut connection = database.acquire().await?;
    let mut transaction = connection.begin().await?;
    transaction.execute(OWN_NAMES).await?;
    transaction.execute(query.unprepared()).await?;
    transaction.commit().await?;
    connection.give_back();
    check(database, config).await?;
    Ok(names)
}

/// Whether pg-boss's tables are there and have what we need. Newer versions of them are welcome.
pub async fn check(database: &Database, config: &QueueConfig) -> Result<()> {
    let schema = &database.config.queue_schema;
    let columns = database.render(include_str!("sql/columns.sql"));
    let rows = database.fetch_all(|| database.query(&columns).bind(schema.clone())).await?;
    let present = rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<Vec<String>>>()?;
    if present.is_empty() {
        return Err(Error::NotSetUp(not_set_up(&format!("no pg-boss tables in schema \"{schema}\""))));
    }
    let missing: Vec<&str> =
        COLUMNS.iter().filter(|column| !present.iter().any(|name| name == *column)).copied().collect();
    if !missing.is_empty() {
        return Err(Error::NotSetUp(not_set_up(&format!(
            "the pg-boss tables in schema \"{schema}\" are too old: job lacks {}",
            missing.join(", ")
        ))));
    }
    let queues = Queues::of(config);
    let statement = database.render(include_str!("sql/queues.sql"));
    let rows = database
        .fetch_all(|| database.query(&statement).bind(queues.flows.clone()).bind(queues.steps.clone()))
        .await?;
    let found = rows
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<sqlx::Result<Vec<(String, String)>>>()?;
    for (name, policy) in [(&queues.flows, FLOWS_POLICY), (&queues.steps, STEPS_POLICY)] {
        match found.iter().find(|(queue, _)| queue == name) {
            None => {
                return Err(Error::NotSetUp(not_set_up(&format!(
                    "schema \"{schema}\" has no pg-boss queue \"{name}\"; the setup needs the same \
                     WORKFLOW_POSTGRES_JOB_PREFIX and WORKFLOW_QUEUE_NAMESPACE"
                ))));
            }
            Some((_, other)) if other != policy => {
                return Err(Error::Configuration(format!(
                    "The pg-boss queue \"{name}\" in schema \"{schema}\" has policy \"{other}\" instead of \
                     \"{policy}\": another program made it. Choose another WORKFLOW_POSTGRES_JOB_PREFIX and run \
                     `npx workflow-postgres-setup`."
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

const COLUMNS: [&str; 23] = [
    "id",
    "name",
    "priority",
    "data",
    "state",
    "retry_limit",
    "retry_count",
    "expire_seconds",
    "deletion_seconds",
    "singleton_key",
    "group_id",
    "start_after",
    "created_on",
    "started_on",
    "completed_on",
    "keep_until",
    "output",
    "policy",
    "heartbeat_on",
    "heartbeat_seconds",
    "blocked",
    "blocking",
    "dead_letter",
];

fn lease() -> i32 {
    i32::try_from(LEASE.as_secs()).unwrap_or(i32::MAX)
}

fn from_millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// An error text for people to read in a dashboard.
fn storable(error: &str) -> String {
    const LONGEST: usize = 4000;
    error.chars().filter(|character| *character != '\0').take(LONGEST).collect()
}

/// A version 7 UUID. Sorted by time, the jobs that live are neighbours in the primary key; the random
/// ids that pg-boss makes touch a page of it each.
fn new_job_id() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    let time = u64::try_from(now.as_millis()).unwrap_or_default().to_be_bytes();
    bytes[..6].copy_from_slice(&time[2..]);
    bytes[6] = 0x70 | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    let hex = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
