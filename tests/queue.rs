//! The built-in queue driver against a real PostgreSQL with pg-boss's own tables.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use sqlx::{AssertSqlSafe, Executor, Row};
use tokio::sync::Semaphore;
use world_postgres::config::{Config, Environment, Options};
use world_postgres::database::{Database, migrations};
use world_postgres::queue::{Deliver, Delivery, Kind, Level, Log, Message, Outcome, PgBossQueue, pgboss};

const PATIENCE: Duration = Duration::from_secs(30);
const MINUTE: Duration = Duration::from_secs(60);

// What the tests stand on.

/// One schema pair, and as many processes on it as a test asks for.
struct Place {
    config: Config,
    /// For looking, not part of any process.
    database: Arc<Database>,
}

/// A process: its own pool, its own driver.
struct Process {
    database: Arc<Database>,
    queue: Arc<PgBossQueue>,
}

fn test_url() -> String {
    std::env::var("TEST_POSTGRES_URL")
        .expect("TEST_POSTGRES_URL must name a PostgreSQL that these tests may use; scripts/test.mjs sets it")
}

/// pg-boss's own DDL, from the npm package.
fn pgboss_plans() -> &'static str {
    static PLANS: OnceLock<String> = OnceLock::new();
    PLANS.get_or_init(|| {
        let script =
            "import('pg-boss').then(m => process.stdout.write(m.getConstructionPlans('SCHEMA_OF_THE_TEST')))";
        let output = Command::new("node")
            .args(["--input-type=module", "-e", script])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("node must be installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    })
}

impl Place {
    async fn new() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("q_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let options = Options {
            connection_string: Some(test_url()),
            schema: Some(name.clone()),
            queue_schema: Some(format!("{name}_boss")),
            ..options
        };
        let config = Config::resolve(&options, &Environment::new()).unwrap();
        let database = Arc::new(Database::new(config.database.clone()).unwrap());
        let plans = pgboss_plans().replace("SCHEMA_OF_THE_TEST", &config.database.queue_schema);
        let mut connection = database.pool().acquire().await.unwrap();
        connection.execute(AssertSqlSafe(plans)).await.unwrap();
        drop(connection);
        migrations::migrate(&database).await.unwrap();
        pgboss::setup(&database, &config.queue).await.unwrap();
        Self { config, database }
    }

    fn process(&self) -> Process {
        let database = Arc::new(Database::new(self.config.database.clone()).unwrap());
        let queue =
            PgBossQueue::new(Arc::clone(&database), self.config.queue.clone(), Arc::new(Silence::default()));
        Process { database, queue }
    }

    fn sql(&self, sql: &str) -> String {
        sql.replace(":jobs", &format!("\"{}\".job", self.config.database.queue_schema))
            .replace(":flows", "'workflow_flows'")
            .replace(":steps", "'workflow_steps'")
            .replace(":schema", &format!("\"{}\"", self.config.database.schema))
    }

    async fn run(&self, sql: &str) {
        self.database.pool().execute(AssertSqlSafe(self.sql(sql))).await.unwrap();
    }

    async fn number(&self, sql: &str) -> i64 {
        let sql = self.sql(&format!("SELECT ({sql})::bigint"));
        sqlx::query(AssertSqlSafe(sql)).fetch_one(self.database.pool()).await.unwrap().get(0)
    }

    async fn texts(&self, sql: &str) -> Vec<String> {
        let rows = sqlx::query(AssertSqlSafe(self.sql(sql))).fetch_all(self.database.pool()).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    async fn jobs(&self) -> i64 {
        self.number("SELECT count(*) FROM :jobs").await
    }

    /// Waits until the query says so; on a timeout the jobs are shown.
    async fn until(&self, what: &str, sql: &str) {
        let start = Instant::now();
        while self.number(&format!("SELECT ({sql})::integer")).await == 0 {
            if start.elapsed() > PATIENCE {
                let jobs = self.texts("SELECT to_jsonb(j)::text FROM :jobs j").await;
                panic!("{what}: not within {PATIENCE:?}; jobs: {jobs:#?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Process {
    async fn push(&self, message: Message) -> String {
        self.queue.push(message).await.unwrap().unwrap()
    }

    async fn start(&self, target: &Arc<Target>) {
        self.queue.start(Arc::clone(target) as Arc<dyn Deliver>).await.unwrap();
        let start = Instant::now();
        while !self.queue.health().unwrap().target_ready && target.ready.load(Ordering::Relaxed) {
            assert!(start.elapsed() < PATIENCE, "the worker does not open");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// As if the process was killed: its tasks stop, and nothing is given back.
    async fn kill(self) {
        self.database.close().await;
        self.queue.close(Duration::ZERO).await;
    }
}

#[derive(Default)]
struct Silence(Mutex<Vec<String>>);

impl Log for Silence {
    fn log(&self, level: Level, message: &str, fields: &[(&str, &str)]) {
        self.0.lock().unwrap().push(format!("{level:?} {message} {fields:?}"));
    }
}

type Handler = Box<dyn Fn(&Delivery) -> BoxFuture<'static, Outcome> + Send + Sync>;

/// Takes deliveries, and remembers them.
struct Target {
    seen: Mutex<Vec<Delivery>>,
    handler: Handler,
    ready: AtomicBool,
}

impl Target {
    fn new(handler: impl Fn(&Delivery) -> BoxFuture<'static, Outcome> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { seen: Mutex::default(), handler: Box::new(handler), ready: AtomicBool::new(true) })
    }

    fn answering(outcome: Outcome) -> Arc<Self> {
        Self::new(move |_| std::future::ready(outcome.clone()).boxed())
    }

    /// Answers only once a permit is there for it.
    fn gated(gate: &Arc<Semaphore>) -> Arc<Self> {
        let gate = Arc::clone(gate);
        Self::new(move |_| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                Outcome::Done
            }
            .boxed()
        })
    }

    fn seen(&self) -> Vec<Delivery> {
        self.seen.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    fn attempts(&self) -> Vec<u32> {
        self.seen().iter().map(|delivery| delivery.attempt).collect()
    }

    async fn until(&self, count: usize) -> Vec<Delivery> {
        let start = Instant::now();
        while self.count() < count {
            assert!(start.elapsed() < PATIENCE, "{} of {count} deliveries within {PATIENCE:?}", self.count());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.seen()
    }
}

impl Deliver for Target {
    fn deliver(&self, delivery: Delivery) -> BoxFuture<'static, Outcome> {
        let outcome = (self.handler)(&delivery);
        self.seen.lock().unwrap().push(delivery);
        outcome
    }

    fn ready(&self) -> BoxFuture<'static, bool> {
        std::future::ready(self.ready.load(Ordering::Relaxed)).boxed()
    }
}

fn message(kind: Kind, id: &str, body: &str) -> Message {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    Message {
        kind,
        id: id.to_owned(),
        queue_name: format!("__wkf_{}_{id}", kind.noun()),
        idempotency_key: None,
        message_id: format!("msg_{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        body: body.as_bytes().to_vec(),
        headers: Vec::new(),
        delay: None,
    }
}

fn flow(run: &str) -> Message {
    message(Kind::Flow, "workflow//./a//b", &format!("{{\"runId\":\"{run}\"}}"))
}

fn special(run: &str, what: &str) -> Message {
    message(Kind::Flow, "workflow//./a//b", &format!("{{\"runId\":\"{run}\",\"{what}\":{{}}}}"))
}

fn step(run: &str, key: &str) -> Message {
    let body = format!("{{\"workflowRunId\":\"{run}\",\"stepId\":\"{key}\"}}");
    Message { idempotency_key: Some(key.to_owned()), ..message(Kind::Step, "step//./a//c", &body) }
}

fn after(message: Message, delay: Duration) -> Message {
    Message { delay: Some(delay), ..message }
}

fn failed() -> Outcome {
    Outcome::Failed { error: "boom".to_owned() }
}

/// Delayed jobs and retries are due now.
async fn hurry(place: &Place) {
    place.run("UPDATE :jobs SET start_after = now(), created_on = now() WHERE state < 'active' AND start_after > now()").await;
    let channel = &place.database.notifications.channels().queue;
    place.run(&format!("SELECT pg_notify('{channel}', :flows), pg_notify('{channel}', :steps)")).await;
}

// Delivery.

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_delivered_as_they_were_sent_and_then_gone() {
    let place = Place::with(Options { namespace: Some("shop".into()), ..Options::default() }).await;
    let process = place.process();
    let target = Target::answering(Outcome::Done);
    process.start(&target).await;
    let sent =
        Message { headers: vec![("traceparent".into(), "00-ab-cd-01".into())], ..step("wrun_1", "step_1") };
    process.push(flow("wrun_1")).await;
    process.push(sent.clone()).await;
    let mut seen = target.until(2).await;
    seen.sort_by_key(|delivery| delivery.kind == Kind::Step);

    assert_eq!(seen[0].queue_name, "__shop_wkf_workflow_workflow//./a//b");
    assert_eq!(seen[0].body, b"{\"runId\":\"wrun_1\"}");
    assert_eq!(seen[1].queue_name, "__shop_wkf_step_step//./a//c");
    assert_eq!(seen[1].id, "step//./a//c");
    assert_eq!(seen[1].idempotency_key.as_deref(), Some("step_1"));
    assert_eq!(seen[1].message_id, sent.message_id);
    assert_eq!(seen[1].headers, sent.headers);
    assert_eq!((seen[0].attempt, seen[1].attempt), (1, 1));
    place.until("acknowledged jobs are gone", "SELECT count(*) = 0 FROM :jobs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn completed_jobs_stay_where_that_was_asked_for() {
    let place = Place::with(Options { keep_completed: Some(true), ..Options::default() }).await;
    let process = place.process();
    let target = Target::answering(Outcome::Done);
    process.start(&target).await;
    for _ in 0..2 {
        process.push(flow("wrun_1")).await;
        process.push(step("wrun_1", "step_1")).await;
        place.until("all is settled", "SELECT count(*) = 0 FROM :jobs WHERE state <> 'completed'").await;
    }
    assert_eq!(place.number("SELECT count(*) FROM :jobs WHERE completed_on IS NOT NULL").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_executes_nothing() {
    let place = Place::new().await;
    let producer = place.process();
    producer.push(flow("wrun_1")).await;
    producer.push(step("wrun_1", "step_1")).await;
    assert!(producer.queue.health().is_none());
    assert_eq!(place.number("SELECT count(*) FROM :jobs WHERE state = 'created'").await, 2);

    // Another process takes both, though it was not there when they came.
    let worker = place.process();
    let target = Target::answering(Outcome::Done);
    worker.start(&target).await;
    target.until(2).await;
    // And is woken by what comes then.
    producer.push(flow("wrun_2")).await;
    target.until(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_free_slot_takes_a_message_as_it_is_inserted() {
    let place = Place::new().await;
    let process = place.process();
    let target = Target::answering(Outcome::Done);
    process.start(&target).await;
    process.push(flow("warm")).await;
    target.until(1).await;
    place.until("the first is settled", "SELECT count(*) = 0 FROM :jobs").await;
    for n in 0..5 {
        process.push(step("wrun_1", &format!("step_{n}"))).await;
        target.until(n + 2).await;
        place.until("it is settled", "SELECT count(*) = 0 FROM :jobs").await;
    }
    assert!(process.queue.health().unwrap().claimed_at_once >= 5);
}

// Deduplication of steps.

#[tokio::test(flavor = "multi_thread")]
async fn a_step_is_one_job_while_it_waits_sleeps_or_runs() {
    let place = Place::new().await;
    let process = place.process();
    let first = process.push(step("wrun_1", "waits")).await;
    assert_eq!(process.push(step("wrun_1", "waits")).await, first);
    let asleep = process.push(after(step("wrun_1", "sleeps"), MINUTE)).await;
    assert_eq!(process.push(step("wrun_1", "sleeps")).await, asleep);
    let still = place.number(
        "SELECT count(*) FROM :jobs WHERE singleton_key = 'sleeps' AND start_after > now() + interval '50 s'",
    );
    assert_eq!(still.await, 1, "a repeat does not pull a delayed step forward");

    let gate = Arc::new(Semaphore::new(0));
    let target = Target::gated(&gate);
    process.start(&target).await;
    target.until(1).await;
    assert_eq!(process.push(step("wrun_1", "waits")).await, first, "in flight");
    assert_eq!(place.jobs().await, 2);

    // Once it is done, the same step is a new message.
    gate.add_permits(1);
    place.until("it is done", "SELECT count(*) = 0 FROM :jobs WHERE singleton_key = 'waits'").await;
    assert_ne!(process.push(step("wrun_1", "waits")).await, first);
    gate.add_permits(1);
    target.until(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_processes_execute_a_step_once() {
    let place = Place::new().await;
    let gate = Arc::new(Semaphore::new(0));
    let (one, two) = (place.process(), place.process());
    let (target_one, target_two) = (Target::gated(&gate), Target::gated(&gate));
    one.start(&target_one).await;
    two.start(&target_two).await;
    const STEPS: usize = 300;
    for chunk in 0..STEPS / 10 {
        let pushes = (0..10).flat_map(|n| {
            let key = format!("step_{}", chunk * 10 + n);
            [&one, &two, &one, &two].map(|process| {
                let (queue, key) = (Arc::clone(&process.queue), key.clone());
                tokio::spawn(async move {
                    let id = queue.push(step("wrun_1", &key)).await.unwrap().unwrap();
                    (key, id)
                })
            })
        });
        let ids: Vec<(String, String)> = join_all(pushes).await.into_iter().map(Result::unwrap).collect();
        let distinct: HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), 10, "one message per step: {distinct:?}");
        // Half of them may end while the next come.
        gate.add_permits(5);
    }
    gate.add_permits(STEPS);
    place.until("all is settled", "SELECT count(*) = 0 FROM :jobs").await;
    let mut keys: Vec<String> = [target_one.seen(), target_two.seen()]
        .concat()
        .into_iter()
        .map(|delivery| delivery.idempotency_key.unwrap())
        .collect();
    keys.sort();
    let executed = keys.len();
    keys.dedup();
    assert_eq!((executed, keys.len()), (STEPS, STEPS));
}
