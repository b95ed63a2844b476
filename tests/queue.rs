//! The built-in queue driver against a real PostgreSQL with pg-boss's own tables.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
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
    database: Arc<Database>,
    /// For looking, not part of any process.
    pool: PgPool,
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
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy(&test_url()).unwrap();
        pool.execute(AssertSqlSafe(plans)).await.unwrap();
        migrations::migrate(&database).await.unwrap();
        pgboss::setup(&database, &config.queue).await.unwrap();
        Self { config, database, pool }
    }

    fn process(&self) -> Process {
        self.process_with_log(Arc::new(Silence::default()))
    }

    fn process_with_log(&self, log: Arc<dyn Log>) -> Process {
        let database = Arc::new(Database::new(self.config.database.clone()).unwrap());
        let queue = PgBossQueue::new(Arc::clone(&database), self.config.queue.clone(), log);
        Process { database, queue }
    }

    fn sql(&self, sql: &str) -> String {
        sql.replace(":jobs", &format!("\"{}\".job", self.config.database.queue_schema))
            .replace(":flows", "'workflow_flows'")
            .replace(":steps", "'workflow_steps'")
            .replace(":schema", &format!("\"{}\"", self.config.database.schema))
    }

    async fn run(&self, sql: &str) {
        self.pool.execute(AssertSqlSafe(self.sql(sql))).await.unwrap();
    }

    async fn number(&self, sql: &str) -> i64 {
        let sql = self.sql(&format!("SELECT ({sql})::bigint"));
        sqlx::query(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap().get(0)
    }

    async fn texts(&self, sql: &str) -> Vec<String> {
        let rows = sqlx::query(AssertSqlSafe(self.sql(sql))).fetch_all(&self.pool).await.unwrap();
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

    fn ready(&self) -> BoxFuture<'static, std::result::Result<(), String>> {
        let ready = self.ready.load(Ordering::Relaxed);
        std::future::ready(ready.then_some(()).ok_or_else(|| "not yet".to_owned())).boxed()
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

async fn pages_read(connection: &mut PgConnection, sql: &str) -> i64 {
    let explain = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}");
    let row = sqlx::query(AssertSqlSafe(explain)).fetch_one(connection).await.unwrap();
    let plan: serde_json::Value = serde_json::from_str(row.try_get_unchecked(0).unwrap()).unwrap();
    let pages = |kind: &str| plan[0]["Plan"][kind].as_i64().unwrap();
    pages("Shared Hit Blocks") + pages("Shared Read Blocks")
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
    for n in 0..20 {
        process.push(step("wrun_1", &format!("step_{n}"))).await;
        target.until(n + 2).await;
        place.until("it is settled", "SELECT count(*) = 0 FROM :jobs").await;
    }
    // Not all: a sweep in between may have looked as if there was a backlog.
    let at_once = process.queue.health().unwrap().claimed_at_once;
    assert!(at_once >= 10, "{at_once} of 20");
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
        // Half of them end while the next come. None of those may: its key would be free for a new message.
        while target_one.count() + target_two.count() < 5 * (chunk + 1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
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

// Coalescing of flows.

#[tokio::test(flavor = "multi_thread")]
async fn wakes_of_a_run_become_one_message_due_at_the_earliest_time() {
    let place = Place::new().await;
    let process = place.process();
    let first = process.push(after(flow("wrun_1"), 2 * MINUTE)).await;
    assert_eq!(process.push(after(flow("wrun_1"), MINUTE)).await, first);
    assert_eq!(process.push(after(flow("wrun_1"), 3 * MINUTE)).await, first);
    let due = "SELECT extract(epoch FROM start_after - now())::integer FROM :jobs";
    assert!((50..=60).contains(&place.number(due).await));
    assert_eq!(process.push(flow("wrun_1")).await, first);
    assert!(place.number(due).await <= 0);
    assert_eq!(process.push(after(flow("wrun_1"), MINUTE)).await, first);
    assert!(place.number(due).await <= 0, "a later wake postpones nothing");
    assert_eq!(place.jobs().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_pulls_a_sleeping_run_forward_to_a_waiting_worker() {
    let place = Place::new().await;
    let (producer, worker) = (place.process(), place.process());
    let target = Target::answering(Outcome::Done);
    worker.start(&target).await;
    producer.push(after(flow("wrun_1"), MINUTE)).await;
    producer.push(flow("wrun_1")).await;
    target.until(1).await;
    place.until("nothing is left", "SELECT count(*) = 0 FROM :jobs").await;
    assert_eq!(target.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_during_a_delivery_is_delivered_after_it() {
    let place = Place::new().await;
    let (one, two) = (place.process(), place.process());
    let gate = Arc::new(Semaphore::new(0));
    let (target_one, target_two) = (Target::gated(&gate), Target::gated(&gate));
    one.start(&target_one).await;
    one.push(flow("wrun_1")).await;
    target_one.until(1).await;
    two.start(&target_two).await;
    let waiting = two.push(flow("wrun_1")).await;
    assert_eq!(one.push(flow("wrun_1")).await, waiting);
    assert_eq!(place.number("SELECT count(*) FROM :jobs WHERE state = 'active'").await, 1);
    assert_eq!(place.jobs().await, 2);
    assert_eq!((target_one.count(), target_two.count()), (1, 0), "one delivery of a run at a time");

    gate.add_permits(2);
    place.until("both were delivered", "SELECT count(*) = 0 FROM :jobs").await;
    assert_eq!(target_one.count() + target_two.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_carry_more_than_a_wake_are_never_dropped() {
    let place = Place::new().await;
    let process = place.process();
    // Over a plain one, under a plain one, and beside another of its kind.
    process.push(after(flow("wrun_1"), MINUTE)).await;
    let input = special("wrun_1", "runInput");
    let divergence = special("wrun_1", "replayDivergence");
    process.push(after(input.clone(), MINUTE)).await;
    process.push(after(flow("wrun_1"), MINUTE)).await;
    process.push(after(divergence.clone(), MINUTE)).await;
    assert_eq!(place.jobs().await, 2);

    let gate = Arc::new(Semaphore::new(0));
    let target = Target::gated(&gate);
    process.start(&target).await;
    hurry(&place).await;
    target.until(1).await;
    assert_eq!(place.number("SELECT count(*) FROM :jobs WHERE state = 'active'").await, 1);
    gate.add_permits(2);
    place.until("both were delivered", "SELECT count(*) = 0 FROM :jobs").await;
    let mut ids: Vec<String> = target.seen().into_iter().map(|delivery| delivery.message_id).collect();
    ids.sort();
    let mut expected = vec![input.message_id, divergence.message_id];
    expected.sort();
    assert_eq!(ids, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_failed_becomes_one_with_the_wake_that_came_meanwhile() {
    let place = Place::new().await;
    let process = place.process();
    let gate = Arc::new(Semaphore::new(0));
    let waits = Arc::clone(&gate);
    let target = Target::new(move |delivery| {
        let (waits, first) = (Arc::clone(&waits), delivery.attempt == 1);
        async move {
            waits.acquire().await.unwrap().forget();
            if first { failed() } else { Outcome::Done }
        }
        .boxed()
    });
    process.start(&target).await;
    let input = special("wrun_1", "runInput");
    process.push(input.clone()).await;
    target.until(1).await;
    process.push(flow("wrun_1")).await;
    gate.add_permits(2);
    // Due at once, as the wake was; with the data of the first, and as its second attempt.
    let seen = target.until(2).await;
    place.until("nothing is left", "SELECT count(*) = 0 FROM :jobs").await;
    assert_eq!(target.count(), 2);
    assert_eq!((seen[1].attempt, &seen[1].message_id), (2, &input.message_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_between_failures_counts_its_attempts_anew() {
    let place = Place::new().await;
    let process = place.process();
    let target = Target::answering(failed());
    process.start(&target).await;
    for n in 1..=5 {
        process.push(flow("wrun_1")).await;
        target.until(n).await;
        place.until("the failure waits", "SELECT count(*) = 1 FROM :jobs WHERE start_after > now()").await;
    }
    let attempts: Vec<u32> = target.until(5).await.iter().map(|delivery| delivery.attempt).collect();
    assert_eq!(attempts[..5], [1; 5]);
}

/// Wakes, failures, reschedules and drains of a few runs, by two processes, all at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_delivered_by_one_at_a_time_and_after_each_wake() {
    const RUNS: usize = 5;
    const WAKES: usize = 400;
    #[derive(Default)]
    struct Run {
        inside: AtomicUsize,
        wanted: AtomicUsize,
        seen: AtomicUsize,
        specials: AtomicUsize,
    }
    let place = Place::new().await;
    let runs: Arc<Vec<Run>> = Arc::new((0..RUNS).map(|_| Run::default()).collect());
    let overlaps = Arc::new(AtomicUsize::new(0));
    let target = {
        let (runs, overlaps) = (Arc::clone(&runs), Arc::clone(&overlaps));
        Target::new(move |delivery| {
            let (runs, overlaps) = (Arc::clone(&runs), Arc::clone(&overlaps));
            let body: serde_json::Value = serde_json::from_slice(&delivery.body).unwrap();
            async move {
                let index: usize = body["runId"].as_str().unwrap()[5..].parse().unwrap();
                let run = &runs[index];
                overlaps.fetch_add(run.inside.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                let wanted = run.wanted.load(Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..4))).await;
                run.inside.fetch_sub(1, Ordering::SeqCst);
                match rand::random_range(0..10) {
                    0 => failed(),
                    1 => Outcome::Reschedule { delay: Duration::ZERO },
                    2 => Outcome::Reschedule { delay: Duration::from_millis(30) },
                    _ => {
                        run.seen.fetch_max(wanted, Ordering::SeqCst);
                        if body.get("replayDivergence").is_some() {
                            run.specials.fetch_add(1, Ordering::SeqCst);
                        }
                        Outcome::Done
                    }
                }
            }
            .boxed()
        })
    };
    let processes = [place.process(), place.process()];
    for process in &processes {
        process.start(&target).await;
    }
    let specials = Arc::new(AtomicUsize::new(0));
    let pushes = (0..WAKES).map(|n| {
        let (queue, runs, specials) =
            (Arc::clone(&processes[n % 2].queue), Arc::clone(&runs), Arc::clone(&specials));
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..1500))).await;
            let index = rand::random_range(0..RUNS);
            let name = format!("wrun_{index}");
            runs[index].wanted.fetch_add(1, Ordering::SeqCst);
            let message = match rand::random_range(0..10) {
                0 => {
                    specials.fetch_add(1, Ordering::SeqCst);
                    special(&name, "replayDivergence")
                }
                1 => after(flow(&name), Duration::from_millis(50)),
                _ => flow(&name),
            };
            queue.push(message).await.unwrap();
        })
    });
    for push in join_all(pushes).await {
        push.unwrap();
    }
    let start = Instant::now();
    while place.jobs().await > 0 {
        assert!(
            start.elapsed() < PATIENCE,
            "{:?}",
            place.texts("SELECT to_jsonb(j)::text FROM :jobs j").await
        );
        hurry(&place).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(overlaps.load(Ordering::SeqCst), 0, "two deliveries of a run at the same time");
    for (index, run) in runs.iter().enumerate() {
        assert_eq!(
            run.seen.load(Ordering::SeqCst),
            run.wanted.load(Ordering::SeqCst),
            "the last wake of run {index} was followed by no delivery"
        );
    }
    let delivered: usize = runs.iter().map(|run| run.specials.load(Ordering::SeqCst)).sum();
    assert_eq!(delivered, specials.load(Ordering::SeqCst), "each special message once");
}

// Attempts.

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_message_is_attempted_49_times_and_kept_with_its_error() {
    let place = Place::new().await;
    let process = place.process();
    let target = Target::answering(failed());
    process.start(&target).await;
    let step_id = process.push(step("wrun_1", "step_1")).await;
    process.push(flow("wrun_1")).await;
    let start = Instant::now();
    while target.count() < 98 {
        assert!(start.elapsed() < PATIENCE, "{} attempts", target.count());
        hurry(&place).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    place.until("both have failed for good", "SELECT count(*) = 2 FROM :jobs WHERE state = 'failed'").await;
    for kind in [Kind::Flow, Kind::Step] {
        let attempts: Vec<u32> = target
            .seen()
            .iter()
            .filter(|delivery| delivery.kind == kind)
            .map(|delivery| delivery.attempt)
            .collect();
        assert_eq!(attempts, (1..=49).collect::<Vec<u32>>());
    }
    let errors = place.texts("SELECT output ->> 'message' FROM :jobs").await;
    assert_eq!(errors, ["boom", "boom"]);

    // What failed for good is revived by a repeat, as a new message.
    assert_ne!(process.push(step("wrun_1", "step_1")).await, step_id);
    let seen = target.until(99).await;
    assert_eq!(seen[98].attempt, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_waits_before_the_next_attempt() {
    let place = Place::new().await;
    let process = place.process();
    let target = Target::answering(failed());
    process.start(&target).await;
    process.push(step("wrun_1", "step_1")).await;
    for attempt in 1..=4 {
        target.until(attempt).await;
        place.until("it failed", "SELECT count(*) = 1 FROM :jobs WHERE state = 'retry'").await;
        let delay = place.number("SELECT extract(epoch FROM start_after - now()) * 1000 FROM :jobs").await;
        let longest = 1000 * 2i64.pow(u32::try_from(attempt).unwrap() - 1);
        assert!(delay <= longest, "{delay} ms after attempt {attempt}");
        assert!(attempt < 3 || delay > longest / 2, "{delay} ms after attempt {attempt}");
        hurry(&place).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reschedule_is_no_failure() {
    let place = Place::new().await;
    let process = place.process();
    // Fails, is put off, fails again: the second failure is a first attempt.
    let outcomes =
        [failed(), failed(), Outcome::Reschedule { delay: Duration::ZERO }, failed(), Outcome::Done];
    let next = AtomicUsize::new(0);
    let target = Target::new(move |_| {
        std::future::ready(outcomes[next.fetch_add(1, Ordering::SeqCst)].clone()).boxed()
    });
    process.start(&target).await;
    process.push(flow("wrun_1")).await;
    while target.count() < 5 {
        hurry(&place).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(target.attempts(), [1, 2, 3, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_is_kept_and_ends_by_itself() {
    let place = Place::new().await;
    let process = place.process();
    let next = AtomicUsize::new(0);
    let target = Target::new(move |_| {
        let first = next.fetch_add(1, Ordering::SeqCst) == 0;
        let delay = Duration::from_millis(300);
        std::future::ready(if first { Outcome::Reschedule { delay } } else { Outcome::Done }).boxed()
    });
    process.start(&target).await;
    let start = Instant::now();
    process.push(after(flow("wrun_1"), Duration::from_millis(200))).await;
    target.until(2).await;
    assert!(start.elapsed() >= Duration::from_millis(500));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_nobody_answers_for_costs_no_attempts() {
    let place = Place::new().await;
    let process = place.process();
    let up = Arc::new(AtomicBool::new(false));
    let answers = Arc::clone(&up);
    let target = Target::new(move |_| {
        let outcome = if answers.load(Ordering::SeqCst) {
            Outcome::Done
        } else {
            Outcome::Unreachable { error: "refused".to_owned() }
        };
        std::future::ready(outcome).boxed()
    });
    process.start(&target).await;
    process.push(flow("wrun_1")).await;
    process.push(step("wrun_1", "step_1")).await;
    target.until(6).await;
    up.store(true, Ordering::SeqCst);
    place.until("both arrive", "SELECT count(*) = 0 FROM :jobs").await;
    assert!(target.attempts().iter().all(|attempt| *attempt == 1), "{:?}", target.attempts());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_claimed_before_the_target_is_ready() {
    let place = Place::new().await;
    let process = place.process();
    let target = Target::answering(Outcome::Done);
    target.ready.store(false, Ordering::Relaxed);
    process.start(&target).await;
    process.push(flow("wrun_1")).await;
    process.push(step("wrun_1", "step_1")).await;
    assert!(!process.queue.health().unwrap().target_ready);
    assert_eq!(place.number("SELECT count(*) FROM :jobs WHERE state = 'created'").await, 2);
    target.ready.store(true, Ordering::Relaxed);
    target.until(2).await;
}

// Leases.

#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_of_a_killed_worker_run_elsewhere_as_the_same_attempt() {
    let place = Place::new().await;
    let (dead, alive) = (place.process(), place.process());
    let never = Target::gated(&Arc::new(Semaphore::new(0)));
    dead.start(&never).await;
    dead.push(flow("wrun_1")).await;
    dead.push(step("wrun_1", "step_1")).await;
    never.until(2).await;
    dead.kill().await;
    assert_eq!(place.number("SELECT count(*) FROM :jobs WHERE state = 'active'").await, 2);

    let target = Target::answering(Outcome::Done);
    let start = Instant::now();
    alive.start(&target).await;
    target.until(2).await;
    assert!(start.elapsed() < Duration::from_secs(15));
    assert_eq!(target.attempts(), [1, 1]);
    assert_eq!(alive.queue.health().unwrap().leases_swept, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_delivery_keeps_its_lease() {
    let place = Place::new().await;
    let (one, two) = (place.process(), place.process());
    let gate = Arc::new(Semaphore::new(0));
    let (target, other) = (Target::gated(&gate), Target::answering(Outcome::Done));
    one.start(&target).await;
    one.push(step("wrun_1", "step_1")).await;
    target.until(1).await;
    two.start(&other).await;
    place
        .until(
            "the lease is renewed for longer than it lasts",
            "SELECT bool_and(heartbeat_on > started_on + heartbeat_seconds * interval '1 second') FROM :jobs",
        )
        .await;
    gate.add_permits(1);
    place.until("it is settled", "SELECT count(*) = 0 FROM :jobs").await;
    assert_eq!(other.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lost_its_job_settles_nothing() {
    let place = Place::with(Options { queue_concurrency: Some(1.0), ..Options::default() }).await;
    let (stale, other) = (place.process(), place.process());
    let (gate, other_gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let target = Target::gated(&gate);
    let other_target = Target::gated(&other_gate);
    stale.start(&target).await;
    stale.push(flow("wrun_1")).await;
    stale.push(step("wrun_1", "step_1")).await;
    target.until(2).await;
    // As if another one had found the leases expired.
    place
        .run("UPDATE :jobs SET state = 'created', started_on = NULL, heartbeat_on = NULL, heartbeat_seconds = NULL")
        .await;
    other.start(&other_target).await;
    other_target.until(2).await;

    gate.add_permits(2);
    let start = Instant::now();
    while stale.queue.health().unwrap().running_steps + stale.queue.health().unwrap().running_flows > 0 {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(stale.queue.health().unwrap().leases_lost, 2);
    assert_eq!(place.number("SELECT count(*) FROM :jobs WHERE state = 'active'").await, 2);
    other_gate.add_permits(2);
    place.until("the other one settles them", "SELECT count(*) = 0 FROM :jobs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_connections_lose_nothing() {
    let place = Place::new().await;
    let process = place.process();
    let target = Target::new(|_| {
        async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Outcome::Done
        }
        .boxed()
    });
    process.start(&target).await;
    const MESSAGES: usize = 200;
    for n in 0..MESSAGES {
        let message =
            if n % 2 == 0 { step("wrun_1", &format!("step_{n}")) } else { flow(&format!("wrun_{n}")) };
        process.push(message).await;
        if n % 20 == 10 {
            let schema = place.sql(":schema");
            place
                .run(&format!(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE pid <> pg_backend_pid() AND position('{schema}.queue_' IN query) > 0
                       AND position('terminate' IN query) = 0"
                ))
                .await;
        }
    }
    place.until("all is settled", "SELECT count(*) = 0 FROM :jobs").await;
    let distinct: HashSet<String> = target.seen().into_iter().map(|delivery| delivery.message_id).collect();
    assert!(distinct.len() >= MESSAGES, "{}", distinct.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_javascript_worker_keeps_its_job_until_that_expires() {
    let place = Place::new().await;
    let process = place.process();
    process.push(step("wrun_1", "step_1")).await;
    process.push(flow("wrun_1")).await;
    let held = "UPDATE :jobs SET state = 'active', started_on = now() - interval '1 hour', heartbeat_on = now() - interval '1 hour'";
    place.run(held).await;
    let sweep = "SELECT count(*) FROM :schema.queue_sweep(:flows, :steps, 'c', true, '{}', 10, NULL, NULL) WHERE out_what = 'released'";
    assert_eq!(place.number(sweep).await, 0);
    place.run("UPDATE :jobs SET expire_seconds = 60").await;
    assert_eq!(place.number(sweep).await, 2);
    assert_eq!(
        place.number("SELECT count(*) FROM :jobs WHERE state = 'created' AND started_on IS NULL").await,
        2
    );

    // Jobs without a key equal no other, even where pg-boss's index takes them for equals.
    place.run("DELETE FROM :jobs").await;
    place
        .run(
            "INSERT INTO :jobs (name, policy, group_id, state, started_on, expire_seconds)
             VALUES (:flows, 'stately', 'a', 'active', now() - interval '1 hour', 60), (:flows, 'stately', 'b', 'created', NULL, 60)",
        )
        .await;
    assert_eq!(place.number(sweep).await, 1);
    assert_eq!(place.number("SELECT count(*) FROM :jobs WHERE state = 'created'").await, 2);
}

// Slots.

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_has_its_own_slots_and_no_more() {
    let place = Place::with(Options { queue_concurrency: Some(2.0), ..Options::default() }).await;
    let process = place.process();
    let gate = Arc::new(Semaphore::new(0));
    let target = Target::gated(&gate);
    process.start(&target).await;
    for n in 0..5 {
        process.push(step("wrun_1", &format!("step_{n}"))).await;
    }
    target.until(2).await;
    // Steps that hang do not keep a replay waiting.
    process.push(flow("wrun_1")).await;
    target.until(3).await;
    let health = process.queue.health().unwrap();
    assert_eq!((health.running_steps, health.running_flows), (2, 1));
    assert_eq!(place.number("SELECT count(*) FROM :jobs WHERE state = 'created'").await, 3);
    let depth = process.queue.depth().await.unwrap();
    let waiting = depth.iter().find(|depth| depth.state == "created").unwrap();
    assert_eq!((waiting.queue.as_str(), waiting.count, waiting.delayed), ("workflow_steps", 3, 0));
    gate.add_permits(6);
    place.until("all is done", "SELECT count(*) = 0 FROM :jobs").await;
    assert_eq!(target.count(), 6);
}

/// Steps that wait for the one named `child`, which comes last.
fn waiting_for_a_child() -> Arc<Target> {
    let born = Arc::new(Semaphore::new(0));
    Target::new(move |delivery| {
        let (born, child) = (Arc::clone(&born), delivery.idempotency_key.as_deref() == Some("child"));
        async move {
            if child {
                born.add_permits(1);
            }
            let _permit = born.acquire().await.unwrap();
            Outcome::Done
        }
        .boxed()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_only_wait_for_what_has_no_slot_become_more_and_fewer_again() {
    let place = Place::with(Options { queue_concurrency: Some(2.0), ..Options::default() }).await;
    let process = place.process();
    process.start(&waiting_for_a_child()).await;
    for key in ["parent_1", "parent_2", "parent_3", "child"] {
        process.push(step("wrun_1", key)).await;
    }
    place.until("all are done", "SELECT count(*) = 0 FROM :jobs").await;
    let start = Instant::now();
    while process.queue.health().unwrap().step_slots > 2 {
        assert!(start.elapsed() < PATIENCE, "{:?}", process.queue.health());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(process.queue.health().unwrap().flow_slots, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_do_not_become_more_than_the_limit() {
    let limited = |limit: f64| Options {
        queue_concurrency: Some(2.0),
        queue_concurrency_limit: Some(limit),
        ..Options::default()
    };
    for limit in [2.0, 3.0] {
        let place = Place::with(limited(limit)).await;
        let process = place.process();
        let target = waiting_for_a_child();
        process.start(&target).await;
        for n in 0..6 {
            process.push(step("wrun_1", &format!("parent_{n}"))).await;
        }
        target.until(limit as usize).await;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(8) {
            assert!(target.count() <= limit as usize, "{} deliveries", target.count());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let too_low = Config::resolve(&limited(1.0), &Environment::new()).err().unwrap().to_string();
    assert!(too_low.contains("queueConcurrencyLimit) must be a whole number from 2"), "{too_low}");
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_do_not_become_more_while_deliveries_end_or_the_process_computes() {
    let place = Place::with(Options { queue_concurrency: Some(2.0), ..Options::default() }).await;
    let process = place.process();
    let target = waiting_for_a_child();
    process.start(&target).await;
    for n in 0..6 {
        process.push(step("wrun_1", &format!("parent_{n}"))).await;
    }
    target.until(2).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(8) {
        process.queue.event_loop().tick(start.elapsed());
        assert_eq!(process.queue.health().unwrap().step_slots, 2);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_panics_is_a_failed_attempt() {
    let place = Place::new().await;
    let process = place.process();
    let target = Target::new(|delivery| {
        assert!(delivery.attempt > 1, "a bug of whoever delivers");
        std::future::ready(Outcome::Done).boxed()
    });
    process.start(&target).await;
    process.push(step("wrun_1", "step_1")).await;
    place.until("it has failed", "SELECT count(*) = 1 FROM :jobs WHERE state = 'retry'").await;
    hurry(&place).await;
    place.until("it is done", "SELECT count(*) = 0 FROM :jobs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_of_any_length_stops_no_worker() {
    let place = Place::new().await;
    let process = place.process();
    let target = Target::new(|delivery| {
        let delay = if delivery.id == "s" { Duration::MAX } else { Duration::ZERO };
        let outcome = if delay.is_zero() { Outcome::Done } else { Outcome::Reschedule { delay } };
        std::future::ready(outcome).boxed()
    });
    process.start(&target).await;
    process.push(Message { id: "s".to_owned(), ..step("wrun_1", "waits") }).await;
    place
        .until(
            "the long wait is stored",
            "SELECT count(*) = 1 FROM :jobs WHERE state = 'created' AND start_after > now() + interval '9 years'",
        )
        .await;
    process.push(step("wrun_1", "other")).await;
    place.until("the other one is done", "SELECT count(*) = 1 FROM :jobs").await;
    assert_eq!(process.queue.health().unwrap().problems, Vec::<String>::new());
}

/// A log that panics at some lines.
struct Panicking(&'static str);

impl Log for Panicking {
    fn log(&self, _level: Level, message: &str, _fields: &[(&str, &str)]) {
        assert!(!message.starts_with(self.0), "a defect of the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_at_the_end_of_a_delivery_leaves_no_job_behind() {
    let place = Place::new().await;
    let process = place.process_with_log(Arc::new(Panicking("A delivery failed")));
    let target = Target::new(|delivery| {
        let outcome = if delivery.attempt == 1 { failed() } else { Outcome::Done };
        std::future::ready(outcome).boxed()
    });
    process.start(&target).await;
    process.push(step("wrun_1", "step_1")).await;
    place.until("it has failed", "SELECT count(*) = 1 FROM :jobs WHERE state = 'retry'").await;
    hurry(&place).await;
    place.until("it is done", "SELECT count(*) = 0 FROM :jobs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_panic_the_turns_go_on_with_all_their_slots() {
    let place = Place::with(Options { queue_concurrency: Some(2.0), ..Options::default() }).await;
    let process = place.process_with_log(Arc::new(Panicking("The lease of a delivery was lost")));
    let gate = Arc::new(Semaphore::new(0));
    let target = Target::gated(&gate);
    process.start(&target).await;
    process.push(step("wrun_1", "step_1")).await;
    process.push(step("wrun_1", "step_2")).await;
    target.until(2).await;
    place
        .run("UPDATE :jobs SET state = 'completed', completed_on = now() WHERE singleton_key = 'step_1'")
        .await;
    // The turn that settles it finds it lost.
    gate.add_permits(2);
    place.until("both have ended", "SELECT count(*) = 0 FROM :jobs WHERE state < 'completed'").await;
    for n in 3..6 {
        process.push(step("wrun_1", &format!("step_{n}"))).await;
    }
    target.until(4).await;
    let health = process.queue.health().unwrap();
    assert_eq!((health.running_steps, health.problems), (2, Vec::new()));
    gate.add_permits(3);
    place.until("all is done", "SELECT count(*) = 0 FROM :jobs WHERE state < 'completed'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_begin_although_the_first_look_at_their_target_panics() {
    struct Shy(AtomicUsize);
    impl Deliver for Shy {
        fn deliver(&self, _delivery: Delivery) -> BoxFuture<'static, Outcome> {
            std::future::ready(Outcome::Done).boxed()
        }
        fn ready(&self) -> BoxFuture<'static, Result<(), String>> {
            let first = self.0.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                assert!(!first, "a defect of the target");
                Ok(())
            }
            .boxed()
        }
    }
    let place = Place::new().await;
    let process = place.process();
    process.queue.start(Arc::new(Shy(AtomicUsize::new(0)))).await.unwrap();
    process.push(step("wrun_1", "step_1")).await;
    place.until("it is done", "SELECT count(*) = 0 FROM :jobs").await;
}

// Services.

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_renewed_while_the_search_for_stranded_runs_waits() {
    let place = Place::new().await;
    let process = place.process();
    let gate = Arc::new(Semaphore::new(0));
    let target = Target::gated(&gate);
    process.start(&target).await;
    process.push(step("wrun_1", "step_1")).await;
    target.until(1).await;
    let mut blocker = place.pool.begin().await.unwrap();
    let lock = place.sql("LOCK TABLE :schema.workflow_runs");
    blocker.execute(AssertSqlSafe(lock)).await.unwrap();
    // The first search begins within 6 s, and waits for up to 10 s.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(16) {
        let age =
            place.number("SELECT extract(epoch FROM now() - max(heartbeat_on)) * 1000 FROM :jobs").await;
        assert!(age < 6000, "the lease was not renewed for {age} ms");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    blocker.rollback().await.unwrap();
    gate.add_permits(1);
    place.until("the step has ended", "SELECT count(*) = 0 FROM :jobs").await;
    assert_eq!(target.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_renew_its_leases_says_so() {
    let place = Place::new().await;
    let process = place.process();
    let gate = Arc::new(Semaphore::new(0));
    let target = Target::gated(&gate);
    process.start(&target).await;
    process.push(step("wrun_1", "step_1")).await;
    target.until(1).await;
    let problems = || process.queue.health().unwrap().problems.join("; ");
    assert_eq!(problems(), "");
    let mut blocker = place.pool.begin().await.unwrap();
    let lock = place.sql("LOCK TABLE :jobs");
    blocker.execute(AssertSqlSafe(lock)).await.unwrap();
    let start = Instant::now();
    while !problems().contains("leases of running deliveries were not renewed") {
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", process.queue.health());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    blocker.rollback().await.unwrap();
    while !problems().is_empty() {
        assert!(start.elapsed() < PATIENCE, "{:?}", process.queue.health());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    gate.add_permits(1);
}

// Closing.

#[tokio::test(flavor = "multi_thread")]
async fn closing_waits_for_what_runs_and_leaves_the_rest_to_others() {
    let place = Place::with(Options { queue_concurrency: Some(2.0), ..Options::default() }).await;
    let (one, two) = (place.process(), place.process());
    let gate = Arc::new(Semaphore::new(0));
    let (target, other) = (Target::gated(&gate), Target::answering(Outcome::Done));
    one.start(&target).await;
    for n in 0..5 {
        one.push(step("wrun_1", &format!("step_{n}"))).await;
    }
    target.until(2).await;
    let closing = tokio::spawn({
        let queue = Arc::clone(&one.queue);
        async move { queue.close(MINUTE).await }
    });
    two.start(&other).await;
    other.until(3).await;
    assert!(!closing.is_finished());
    place.until("only what runs is left", "SELECT count(*) = 2 FROM :jobs").await;
    gate.add_permits(2);
    closing.await.unwrap();
    assert_eq!((target.count(), other.count(), place.jobs().await), (2, 3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_in_time_is_handed_over_at_once() {
    let place = Place::new().await;
    let (one, two) = (place.process(), place.process());
    let (never, other) = (Target::gated(&Arc::new(Semaphore::new(0))), Target::answering(Outcome::Done));
    one.start(&never).await;
    two.start(&other).await;
    // A flow with a wake beside it, and a step.
    one.push(flow("wrun_1")).await;
    one.push(step("wrun_1", "step_1")).await;
    let start = Instant::now();
    while never.count() + other.count() < 2 {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    one.push(flow("wrun_1")).await;
    one.queue.close(Duration::from_millis(50)).await;
    assert_eq!(
        place
            .number(
                "SELECT count(*) FROM :jobs WHERE state = 'active' AND heartbeat_on < now() - interval '7 s'"
            )
            .await,
        0
    );
    place.until("the other one runs them", "SELECT count(*) = 0 FROM :jobs").await;
    assert!(start.elapsed() < Duration::from_secs(5), "handed over, not expired");
    assert!(other.attempts().iter().all(|attempt| *attempt == 1));
}

// pg-boss.

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_javascript_sends_is_executed() {
    let place = Place::new().await;
    let process = place.process();
    let target = Target::answering(Outcome::Done);
    process.start(&target).await;
    let data = |id: &str| {
        format!(
            "{{\"id\":\"step//./a//c\",\"queueName\":\"__wkf_step_x\",\"data\":\"eyJ4IjoxfQ==\",\"messageId\":\"{id}\",\"attempt\":1}}"
        )
    };
    // What pg-boss's send() does: columns of its own choice, created_on now even where it starts later.
    let insert = |queue: &str, id: &str, key: &str, start: &str| {
        format!(
            "INSERT INTO :jobs (name, data, singleton_key, start_after, policy, retry_limit, priority)
             SELECT {queue}, '{}', {key}, now() + interval '{start}', policy, retry_limit, 7
             FROM \"{}\".queue WHERE name = {queue}",
            data(id),
            place.config.database.queue_schema,
        )
    };
    place.run(&insert(":steps", "msg_js_1", "'step_js'", "0")).await;
    place.run(&insert(":steps", "msg_js_2", "NULL", "0.5 seconds")).await;
    place.run(&insert(":flows", "msg_js_3", "NULL", "0")).await;
    // Waits for another job of a pg-boss flow.
    place.run("INSERT INTO :jobs (name, singleton_key, policy, blocked) VALUES (:steps, 'b', 'exclusive', true)").await;
    let channel = &place.database.notifications.channels().queue;
    place.run(&format!("SELECT pg_notify('{channel}', :steps), pg_notify('{channel}', :flows)")).await;
    let seen = target.until(3).await;
    assert!(seen.iter().all(|delivery| delivery.body == b"{\"x\":1}" && delivery.attempt == 1));
    place
        .until("all are gone but the blocked one", "SELECT count(*) = 1 AND bool_and(blocked) FROM :jobs")
        .await;
}

/// pg-boss itself, in a process of its own.
fn run_pgboss(place: &Place, script: &str) -> String {
    let script = format!(
        "import {{ PgBoss }} from 'pg-boss';
         const boss = new PgBoss({{ connectionString: process.env.URL, schema: process.env.SCHEMA, migrate: false,
           supervise: false, schedule: false }});
         boss.on('error', (error) => {{ throw error; }});
         await boss.start();
         {script}
         await boss.stop({{ graceful: false }});"
    );
    let output = Command::new("node")
        .args(["--input-type=module", "-e", &script])
        .env("URL", test_url())
        .env("SCHEMA", &place.config.database.queue_schema)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pg_boss_sends_to_us_and_works_off_what_we_send() {
    let place = Place::new().await;
    let process = place.process();
    let gate = Arc::new(Semaphore::new(0));
    let target = Target::gated(&gate);
    process.push(flow("wrun_1")).await;
    process.push(flow("wrun_1")).await;
    process.push(step("wrun_1", "step_1")).await;
    let worked = run_pgboss(
        &place,
        "for (const queue of ['workflow_flows', 'workflow_steps']) {
           const [job, ...more] = await boss.fetch(queue, { batchSize: 5 });
           console.log(more.length, Buffer.from(job.data.data, 'base64').toString());
           await boss.complete(queue, job.id);
         }",
    );
    assert_eq!(worked, "0 {\"runId\":\"wrun_1\"}\n0 {\"workflowRunId\":\"wrun_1\",\"stepId\":\"step_1\"}\n");

    process.start(&target).await;
    run_pgboss(
        &place,
        "const data = { id: 'step//./a//c', queueName: '__wkf_step_x', data: btoa('{}'), messageId: 'msg_js', attempt: 1 };
         await boss.send('workflow_steps', data, { singletonKey: 'step_2' });
         await boss.send('workflow_steps', data, { singletonKey: 'step_2' });
         await boss.send('workflow_steps', data, { singletonKey: 'step_3', startAfter: 1 });",
    );
    // Not earlier: a key whose job has ended is taken anew.
    gate.add_permits(2);
    let seen = target.until(2).await;
    assert!(seen.iter().all(|delivery| delivery.message_id == "msg_js"));
    place.until("ours are settled", "SELECT count(*) = 0 FROM :jobs WHERE state <> 'completed'").await;
    assert_eq!(target.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_whose_answer_was_lost_can_be_repeated() {
    let place = Place::new().await;
    let push = |claims: bool, tries: i32| {
        place.sql(&format!(
            "SELECT * FROM :schema.queue_push(:flows, :steps, 'c', 8, 5000, ARRAY[:flows, :steps],
               ARRAY['01a1f991-1185-70fa-bcc0-5f8aa2dfc5ab', '01a1f991-1185-70fa-bcc0-5f8aa2dfc5ac']::uuid[],
               ARRAY['wrun_1', 'step_1'], ARRAY['wrun_1', 'wrun_1'], ARRAY['msg_1', 'msg_2'],
               ARRAY['{{\"data\":\"e30=\",\"messageId\":\"msg_1\"}}', '{{\"data\":\"e30=\",\"messageId\":\"msg_2\"}}'],
               ARRAY[0, 0], ARRAY[{claims}, {claims}], ARRAY[false, false], true, 1, {tries})"
        ))
    };
    let mut claims = Vec::new();
    for tries in 0..3 {
        let rows = sqlx::query(AssertSqlSafe(push(true, tries))).fetch_all(&place.pool).await.unwrap();
        let ids: Vec<String> = rows.iter().map(|row| row.get("out_message_id")).collect();
        assert_eq!(ids, ["msg_1", "msg_2"]);
        claims.push(rows.iter().map(|row| row.get("out_claim")).collect::<Vec<Option<i64>>>());
    }
    assert!(claims[0].iter().all(Option::is_some));
    assert!(claims.iter().all(|again| *again == claims[0]), "the claims are told again: {claims:?}");
    assert_eq!(place.jobs().await, 2);

    // Another worker has them by now.
    place.run("UPDATE :jobs SET started_on = clock_timestamp(), heartbeat_on = clock_timestamp()").await;
    let rows = sqlx::query(AssertSqlSafe(push(true, 3))).fetch_all(&place.pool).await.unwrap();
    assert!(rows.iter().all(|row| row.get::<Option<i64>, _>("out_claim").is_none()));
    assert_eq!(place.jobs().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_no_message_fails_and_harms_nobody() {
    let place = Place::new().await;
    let process = place.process();
    let target = Target::answering(Outcome::Done);
    process.start(&target).await;
    for (key, data) in [("a", "null"), ("b", "{\"data\":\"%%\",\"id\":\"x\"}")] {
        place
            .run(&format!(
                "INSERT INTO :jobs (name, data, singleton_key, policy) VALUES (:flows, '{data}', '{key}', 'stately')"
            ))
            .await;
    }
    process.push(flow("wrun_1")).await;
    target.until(1).await;
    hurry(&place).await;
    place
        .until("both say why", "SELECT count(*) = 2 FROM :jobs WHERE output ->> 'message' LIKE '%data%'")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_claims_nor_settlements_read_past_sleeping_jobs() {
    let place = Place::new().await;
    let process = place.process();
    // One connection: the plans of another would be made anew, and read PostgreSQL's catalogs.
    let connection = tokio::sync::Mutex::new(place.pool.acquire().await.unwrap());
    let pages = async || {
        let sql = place.sql(
            "SELECT * FROM :schema.queue_settle(:flows, :steps, 'c', 8, false,
               ARRAY[:flows, :steps, :steps], ARRAY[gen_random_uuid(), gen_random_uuid(), gen_random_uuid()],
               ARRAY[1, 1, 1], ARRAY['complete', 'complete', 'fail'], ARRAY[0, 0, 0], ARRAY[NULL, NULL, 'x'], 10, 10, NULL, NULL, false)",
        );
        pages_read(&mut *connection.lock().await, &sql).await
    };
    process.push(after(step("wrun_1", "step_0"), MINUTE)).await;
    pages().await;
    let before = pages().await;
    place
        .run(
            "INSERT INTO :jobs (name, singleton_key, group_id, policy, start_after, created_on)
             SELECT q.name, 'sleeper_' || n, 'wrun_' || n, q.policy, now() + interval '1 hour', now() + interval '1 hour'
             FROM (VALUES (:steps, 'exclusive'), (:flows, 'stately')) q (name, policy), generate_series(1, 10000) n",
        )
        .await;
    // Statistics that came in between make new plans, for which catalogs are read.
    let after = pages().await.min(pages().await);
    assert!(after < before + 100, "{before} pages before, {after} with 20 000 sleepers");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_an_old_transaction_is_open_a_claim_does_not_read_what_was_claimed_since() {
    const CLAIMED: i64 = 20_000;
    let place = Place::new().await;
    place.process().push(after(step("wrun_1", "step_0"), MINUTE)).await;
    let mut report = place.pool.begin().await.unwrap();
    report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    report.execute("SELECT FROM pg_class LIMIT 1").await.unwrap();
    place
        .run(&format!(
            "INSERT INTO :jobs (name, singleton_key, group_id, policy, start_after, created_on)
             SELECT :steps, 'step_' || n, 'wrun_1', 'exclusive', now() - interval '1 minute', now() - interval '1 minute'
             FROM generate_series(1, {CLAIMED}) n"
        ))
        .await;
    place.run("DELETE FROM :jobs WHERE start_after < now()").await;

    // One connection: the plans of another would be made anew, and read PostgreSQL's catalogs.
    let mut connection = place.pool.acquire().await.unwrap();
    let settle = |since: Option<i64>| {
        place.sql(&format!(
            "SELECT * FROM :schema.queue_settle(:flows, :steps, 'c', 8, false, '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}',
               NULL, 10, NULL, {}, false)",
            since.map_or("NULL".to_owned(), |since| since.to_string())
        ))
    };
    let rows = sqlx::query(AssertSqlSafe(settle(None))).fetch_all(&mut *connection).await.unwrap();
    let since = rows.iter().find(|row| row.get::<&str, _>("out_what") == "since").unwrap().get("out_claim");
    let all = pages_read(&mut connection, &settle(None)).await;
    let recent = pages_read(&mut connection, &settle(Some(since))).await;
    assert!(
        recent < 100 && all > recent + 400,
        "{all} pages from the beginning, {recent} from where nothing older waits"
    );
    report.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_does_not_read_the_backlog_of_a_table_that_was_never_analyzed() {
    let place = Place::new().await;
    let queue_schema = &place.config.database.queue_schema;
    place.run(&format!("ALTER TABLE \"{queue_schema}\".job_common SET (autovacuum_enabled = false)")).await;
    // One connection: the plans of another would be made anew, and read PostgreSQL's catalogs.
    let mut connection = place.pool.acquire().await.unwrap();
    let mut backlog = [0, 0];
    for (i, due) in [10, 20_000].into_iter().enumerate() {
        place
            .run(&format!(
                "INSERT INTO :jobs (name, data, singleton_key, group_id, policy, start_after, created_on)
                 SELECT q.name, '{{}}', 'due_{i}_' || n, 'wrun_{i}_' || n, q.policy, now(), now()
                 FROM (VALUES (:steps, 'exclusive'), (:flows, 'stately')) q (name, policy), generate_series(1, {due}) n"
            ))
            .await;
        for round in 0..2 {
            place
                .run(
                    "INSERT INTO :jobs (id, name, state, started_on, singleton_key, group_id, policy)
                     VALUES ('01a1f991-1185-70fa-bcc0-5f8aa2dfc5ab', :flows, 'active', 'epoch', 'mine', 'mine', 'stately'),
                            ('01a1f991-1185-70fa-bcc0-5f8aa2dfc5ac', :steps, 'active', 'epoch', 'mine', 'mine', 'exclusive')",
                )
                .await;
            let sql = place.sql(
                "SELECT * FROM :schema.queue_settle(:flows, :steps, 'c', 8, false, ARRAY[:flows, :steps],
                   ARRAY['01a1f991-1185-70fa-bcc0-5f8aa2dfc5ab', '01a1f991-1185-70fa-bcc0-5f8aa2dfc5ac']::uuid[],
                   ARRAY[0, 0], ARRAY['complete', 'complete'], ARRAY[0, 0], ARRAY[NULL, NULL], NULL, NULL, NULL, NULL, false)",
            );
            let pages = pages_read(&mut connection, &sql).await;
            if round == 1 {
                backlog[i] = pages;
            }
        }
    }
    assert!(backlog[1] < backlog[0] + 100, "{backlog:?} pages beside 10 and 20,000 due jobs of each kind");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_an_old_transaction_is_open_a_sweep_does_not_read_what_was_claimed_since() {
    const CLAIMED: i64 = 20_000;
    let place = Place::new().await;
    let mut report = place.pool.begin().await.unwrap();
    report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    report.execute("SELECT FROM pg_class LIMIT 1").await.unwrap();
    place
        .run(&format!(
            "INSERT INTO :jobs (name, singleton_key, group_id, policy, start_after, created_on)
             SELECT :steps, 'step_' || n, 'wrun_1', 'exclusive', now() - interval '1 minute', now() - interval '1 minute'
             FROM generate_series(1, {CLAIMED}) n"
        ))
        .await;
    place.run("DELETE FROM :jobs").await;
    let mut connection = place.pool.acquire().await.unwrap();
    let sweep = |since: &str| {
        place.sql(&format!(
            "SELECT * FROM :schema.queue_sweep(:flows, :steps, 'c', true, '{{}}', 10, {since}, {since})"
        ))
    };
    let recent = "(extract(epoch FROM now()) * 1000000 - 1000000)::bigint";
    pages_read(&mut connection, &sweep(recent)).await;
    let recent = pages_read(&mut connection, &sweep(recent)).await;
    let all = pages_read(&mut connection, &sweep("NULL")).await;
    assert!(recent < 100 && all > recent + 400, "{all} pages from the beginning, {recent} from a moment ago");
    report.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_appears_older_than_where_the_turns_look_from_is_found() {
    let place = Place::new().await;
    let process = place.process();
    let target = Target::answering(Outcome::Done);
    process.start(&target).await;
    process.push(step("wrun_1", "step_1")).await;
    target.until(1).await;
    for (n, kind) in [(2, "flows"), (3, "steps")] {
        place
            .run(&format!(
                "INSERT INTO :jobs (name, data, singleton_key, policy, start_after, created_on)
                 SELECT q.name, '{{\"id\":\"x\",\"data\":\"e30=\"}}', 'old_{kind}', q.policy,
                   now() - interval '1 hour', now() - interval '1 hour'
                 FROM \"{}\".queue q WHERE q.name = :{kind}",
                place.config.database.queue_schema
            ))
            .await;
        target.until(n).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_our_queues_is_named() {
    let place = Place::new().await;
    let check = async |change: &dyn Fn(&mut Config)| {
        let mut config = place.config.clone();
        change(&mut config);
        let database = Database::new(config.database.clone()).unwrap();
        pgboss::check(&database, &config.queue).await.unwrap_err().to_string()
    };
    assert!(pgboss::check(&place.database, &place.config.queue).await.is_ok());
    let missing = check(&|config| config.database.queue_schema = "nowhere".into()).await;
    assert!(missing.contains("npx workflow-postgres-setup") && missing.contains("nowhere"), "{missing}");
    let missing = check(&|config| config.queue.job_prefix = "other_".into()).await;
    assert!(missing.contains("npx workflow-postgres-setup") && missing.contains("other_flows"), "{missing}");
    place
        .run(&format!(
            "SELECT \"{0}\".create_queue('mine_flows', '{{\"policy\":\"standard\"}}'), \"{0}\".create_queue('mine_steps', '{{\"policy\":\"standard\"}}')",
            place.config.database.queue_schema
        ))
        .await;
    let foreign = check(&|config| config.queue.job_prefix = "mine_".into()).await;
    assert!(foreign.contains("mine_flows") && foreign.contains("standard"), "{foreign}");
    // A newer pg-boss is welcome, and so is a repeated setup.
    place.run(&format!("UPDATE \"{}\".version SET version = 99", place.config.database.queue_schema)).await;
    let setups = join_all((0..8).map(|_| pgboss::setup(&place.database, &place.config.queue))).await;
    assert!(setups.into_iter().all(|setup| setup.unwrap() == ["workflow_flows", "workflow_steps"]));
}

// Rescue.

#[tokio::test(flavor = "multi_thread")]
async fn a_stranded_run_is_woken_once_per_position_of_its_log() {
    let place = Place::new().await;
    let run = async |id: &str, prefix: &str, age: &str| {
        place
            .run(&format!(
                "INSERT INTO :schema.workflow_runs (run_id, workflow_name, deployment_id, job_prefix, created_at, updated_at)
                   VALUES ('{id}', 'workflow//./a//b', 'd', '{prefix}', now(), now());
                 INSERT INTO :schema.workflow_events (run_id, slot, type, created_at)
                   VALUES ('{id}', 1, 'run_created', now() - interval '{age}');"
            ))
            .await;
    };
    run("wrun_stranded", "workflow_", "1 minute").await;
    run("wrun_young", "workflow_", "1 second").await;
    run("wrun_foreign", "other_", "1 minute").await;
    run("wrun_asleep", "workflow_", "1 minute").await;
    run("wrun_steps", "workflow_", "1 minute").await;
    place
        .run(
            "INSERT INTO :schema.workflow_steps (run_id, step_id, step_name, input_slot, created_at, updated_at)
             VALUES ('wrun_steps', 'step_1', 's', 1, now(), now())",
        )
        .await;
    let process = place.process();
    process.push(after(flow("wrun_asleep"), MINUTE)).await;
    process.push(after(step("wrun_steps", "step_1"), MINUTE)).await;
    let target = Target::answering(Outcome::Done);
    process.start(&target).await;
    let seen = target.until(1).await;
    assert_eq!(seen[0].body, b"{\"runId\":\"wrun_stranded\"}");
    assert_eq!(seen[0].id, "workflow//./a//b");
    place
        .until(
            "it is remembered",
            "SELECT count(*) = 1 FROM :schema.workflow_runs WHERE rescued_slot = 1 AND run_id = 'wrun_stranded'",
        )
        .await;
    let stranded = "SELECT count(*) FROM :schema.queue_stranded(:flows, :steps, 'workflow_', 30000, false, 100, 100, 0, 0, 0)
         WHERE out_workflow IS NOT NULL";
    place.run("UPDATE :schema.workflow_rescues SET due_at = now()").await;
    process.queue.close(MINUTE).await;
    assert_eq!(place.number(stranded).await, 0, "once per position");
    place
        .run(
            "INSERT INTO :schema.workflow_events (run_id, slot, type, created_at)
             VALUES ('wrun_stranded', 2, 'run_started', now() - interval '1 minute')",
        )
        .await;
    assert_eq!(place.number(stranded).await, 1);
    assert_eq!(target.count(), 1);
}

/// 100,000 runs that wait for hooks, and were woken once at their position.
async fn park_runs(place: &Place) {
    place
        .run(
            "INSERT INTO :schema.workflow_runs
               (run_id, workflow_name, deployment_id, status, job_prefix, rescued_slot, created_at, updated_at, started_at)
               SELECT format('wrun_%s', to_char(n, 'FM000000')), 'workflow//./a//b', 'd', 'running', 'workflow_', 1, now(), now(), now()
               FROM generate_series(1, 100000) n;
             INSERT INTO :schema.workflow_events (run_id, slot, type, created_at)
               SELECT format('wrun_%s', to_char(n, 'FM000000')), 1, 'run_created', now() - interval '1 hour'
               FROM generate_series(1, 100000) n;",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranded_run_among_100_000_parked_ones_is_found_within_a_minute() {
    let place = Place::new().await;
    park_runs(&place).await;
    place.run("UPDATE :schema.workflow_runs SET rescued_slot = NULL WHERE run_id = 'wrun_077777'").await;
    // Another process is searching, and keeps its lock for a while.
    place.run("INSERT INTO :schema.workflow_rescues VALUES ('workflow_', 'wrun_010000', now())").await;
    let mut other = place.pool.begin().await.unwrap();
    let lock = place.sql("SELECT FROM :schema.workflow_rescues FOR UPDATE");
    other.execute(AssertSqlSafe(lock)).await.unwrap();
    let process = place.process();
    let target = Target::answering(Outcome::Done);
    let start = Instant::now();
    process.start(&target).await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(target.count(), 0);
    other.rollback().await.unwrap();
    while target.count() == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "not found within a minute");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(target.seen()[0].body, b"{\"runId\":\"wrun_077777\"}");
    let calls = "SELECT place > 'wrun_010000' OR place = '' FROM :schema.workflow_rescues";
    assert_eq!(place.number(&format!("SELECT ({calls})::integer")).await, 1);
    println!("found after {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_over_parked_runs_goes_on_where_the_last_process_stopped_and_costs_little() {
    let place = Place::new().await;
    park_runs(&place).await;
    let call = async |mine: bool| {
        let sql = place.sql(&format!(
            "SELECT out_run_id, out_slot FROM :schema.queue_stranded(:flows, :steps, 'workflow_', 30000, {mine}, 500, 50, 500, 30000, 5000)"
        ));
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&place.pool).await.unwrap();
        (row.get::<Option<String>, _>(0), row.get::<i32, _>(1))
    };
    let (first, pause) = call(false).await;
    assert!(first.as_deref() > Some("wrun_000500") && pause == 500, "{first:?}, {pause} ms");
    let (busy, pause) = call(false).await;
    assert!(
        busy.is_none() && (1..=5000).contains(&pause),
        "another process leaves the pass to the first: {pause} ms"
    );
    // That one is gone.
    place.run("UPDATE :schema.workflow_rescues SET due_at = now()").await;
    let (second, _) = call(false).await;
    assert!(second > first, "{second:?}");
    let (start, mut calls) = (Instant::now(), 0);
    while let (Some(_), _) = call(true).await {
        calls += 1;
        assert!(calls < 1000);
    }
    println!("the rest of the pass: {:?} in {calls} calls", start.elapsed());
    assert_eq!(call(true).await.0, None, "the next pass begins 30 s later");
    place.run("UPDATE :schema.workflow_rescues SET place = 'wrun_050000', due_at = now()").await;
    let sql = place.sql("SELECT * FROM :schema.queue_stranded(:flows, :steps, 'workflow_', 30000, false, 500, 0, 500, 30000, 5000)");
    let pages = pages_read(&mut place.pool.acquire().await.unwrap(), &sql).await;
    println!("{pages} pages for 500 runs");
    assert!(pages < 10_000, "{pages} pages");
}

// Messages that are given up.

/// Fails until it is dead.
async fn die(place: &Place, target: &Target, attempts: usize) {
    let start = Instant::now();
    while target.count() < attempts {
        assert!(start.elapsed() < PATIENCE, "{} attempts", target.count());
        hurry(place).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    place.until("it was given up", "SELECT count(*) = 0 FROM :jobs WHERE state < 'completed'").await;
}

/// As pg-boss's own `retry()` does.
const RETRY: &str = "UPDATE :jobs SET state = 'retry', retry_limit = retry_limit + 1, completed_on = NULL WHERE state = 'failed'";

/// A run that was woken once for nothing; with a time of its end, if it has ended.
async fn insert_run(place: &Place, run: &str, ended: &str) {
    place
        .run(&format!(
            "INSERT INTO :schema.workflow_runs (run_id, workflow_name, deployment_id, job_prefix, status, rescued_slot, created_at, updated_at, completed_at)
             VALUES ('{run}', 'w', 'd', 'workflow_', CASE WHEN {ended}::timestamptz IS NULL THEN 'pending' ELSE 'completed' END, 1, now(), now(), {ended})"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_messages_are_told_of_and_begin_anew_when_pgboss_revives_them() {
    let place = Place::new().await;
    let log = Arc::new(Silence::default());
    let process = place.process_with_log(log.clone());
    let fails = Arc::new(AtomicBool::new(true));
    let failing = Arc::clone(&fails);
    let target = Target::new(move |_| {
        let outcome = if failing.load(Ordering::SeqCst) { failed() } else { Outcome::Done };
        std::future::ready(outcome).boxed()
    });
    process.start(&target).await;
    // Two messages of one run, and two of one step.
    for round in 1..=2 {
        process.push(flow("wrun_1")).await;
        process.push(step("wrun_1", "step_1")).await;
        die(&place, &target, 98 * round).await;
    }
    assert_eq!(process.queue.health().unwrap().given_up, 4);
    let told: Vec<String> =
        log.0.lock().unwrap().iter().filter(|line| line.starts_with("Error")).cloned().collect();
    assert_eq!(told.len(), 4, "{told:#?}");
    for part in ["given up", "(\"run\", \"wrun_1\")", "(\"attempts\", \"49\")", "(\"error\", \"boom\")"] {
        assert!(told.iter().all(|line| line.contains(part)), "{part}: {told:#?}");
    }
    assert!(told.iter().any(|line| line.contains("(\"workflow\", \"workflow//./a//b\")")), "{told:#?}");
    assert!(told.iter().any(|line| line.contains("(\"step\", \"step//./a//c\")")), "{told:#?}");

    fails.store(false, Ordering::SeqCst);
    place.run(RETRY).await;
    let channel = &place.database.notifications.channels().queue;
    place.run(&format!("SELECT pg_notify('{channel}', :flows), pg_notify('{channel}', :steps)")).await;
    place.until("all are delivered", "SELECT count(*) = 0 FROM :jobs").await;
    assert_eq!(target.attempts()[196..], [1, 1, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_message_is_kept_until_its_run_has_ended_and_wakes_it_once() {
    let place = Place::new().await;
    insert_run(&place, "wrun_open", "NULL").await;
    insert_run(&place, "wrun_over", "now()").await;
    let process = place.process();
    let target = Target::answering(failed());
    process.start(&target).await;
    process.push(step("wrun_open", "step_1")).await;
    process.push(step("wrun_over", "step_2")).await;
    die(&place, &target, 98).await;
    assert_eq!(place.number("SELECT max(deletion_seconds) FROM :jobs").await, 0, "pg-boss would delete it");
    place.run("UPDATE :jobs SET completed_on = now() - interval '30 days'").await;
    let purge = place
        .sql(include_str!("../src/queue/sql/purge.sql"))
        .replace(":\"queue_schema\"", &format!("\"{}\"", place.config.database.queue_schema))
        .replace(":\"schema\"", &format!("\"{}\"", place.config.database.schema));
    let purge = || async {
        sqlx::query(AssertSqlSafe(purge.clone()))
            .bind("workflow_flows")
            .bind("workflow_steps")
            .bind(600_000_i64)
            .execute(&place.pool)
            .await
            .unwrap();
    };
    purge().await;
    assert_eq!(place.texts("SELECT group_id FROM :jobs").await, ["wrun_open"]);
    let forgotten =
        "SELECT count(*) FROM :schema.workflow_runs WHERE rescued_slot IS NULL AND run_id = 'wrun_open'";
    assert_eq!(place.number(forgotten).await, 1, "the search for stranded runs finds it again");
    place.run("UPDATE :schema.workflow_runs SET rescued_slot = 1").await;
    purge().await;
    assert_eq!(place.number(forgotten).await, 0, "once for each death");
    place.run("UPDATE :schema.workflow_runs SET status = 'completed', completed_at = now()").await;
    purge().await;
    assert_eq!(place.jobs().await, 0);
}

/// The leases of a killed process expire now, and the job's pause is over.
async fn expire(place: &Place) {
    place.run("UPDATE :jobs SET heartbeat_on = now() - interval '1 minute' WHERE state = 'active'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_process_dies_each_time_is_put_off_then_delivered_alone_then_given_up() {
    let place = Place::with(Options { max_lost_leases: Some(4.0), ..Options::default() }).await;
    insert_run(&place, "wrun_bad", "NULL").await;
    let log = Arc::new(Silence::default());
    for kind in [Kind::Flow, Kind::Step] {
        let bad = if kind == Kind::Flow { flow("wrun_bad") } else { step("wrun_bad", "step_bad") };
        let producer = place.process();
        producer.push(bad).await;
        for death in 1..=4 {
            let process = place.process_with_log(log.clone());
            let never = Target::gated(&Arc::new(Semaphore::new(0)));
            process.start(&never).await;
            hurry(&place).await;
            never.until(1).await;
            assert_eq!(never.attempts(), [1]);
            process.kill().await;
            expire(&place).await;
            let sweeper = place.process_with_log(log.clone());
            let closed = Target::answering(Outcome::Done);
            closed.ready.store(false, Ordering::Relaxed);
            sweeper.start(&closed).await;
            place
                .until("it is not active any more", "SELECT count(*) = 0 FROM :jobs WHERE state = 'active'")
                .await;
            let pause = "SELECT COALESCE(max(extract(epoch FROM start_after - now()) * 1000), 0) FROM :jobs WHERE state = 'created'";
            let pause = place.number(pause).await;
            let longest = if death == 1 || death == 4 { 0 } else { 1000 << (death - 1) };
            assert!(
                pause.max(0) <= longest && pause.max(0) >= longest - 1500,
                "{pause} ms after {death} deaths"
            );
            sweeper.kill().await;
        }
        place
            .until(
                "it was given up",
                "SELECT count(*) = 1 FROM :jobs WHERE state = 'failed' AND (output ->> 'lost')::int = 4",
            )
            .await;
        let told = log
            .0
            .lock()
            .unwrap()
            .iter()
            .filter(|line| line.starts_with("Error"))
            .cloned()
            .collect::<Vec<_>>();
        assert!(told.iter().all(|line| line.contains("given up") && line.contains("wrun_bad")), "{told:#?}");
        assert!(!told.is_empty());

        // Revived by people, it begins anew.
        place.run(RETRY).await;
        let process = place.process();
        let target = Target::answering(Outcome::Done);
        process.start(&target).await;
        assert_eq!(target.until(1).await[0].attempt, 1);
        place.until("it is gone", "SELECT count(*) = 0 FROM :jobs").await;
        process.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_two_processes_died_with_is_delivered_beside_nothing_else() {
    let place = Place::new().await;
    let process = place.process();
    let running = Arc::new(Mutex::new(HashSet::<String>::new()));
    let beside = Arc::new(Mutex::new(Vec::<String>::new()));
    let target = {
        let (running, beside) = (Arc::clone(&running), Arc::clone(&beside));
        Target::new(move |delivery| {
            let (running, beside) = (Arc::clone(&running), Arc::clone(&beside));
            let key = delivery.idempotency_key.clone().unwrap_or_default();
            async move {
                running.lock().unwrap().insert(key.clone());
                for _ in 0..10 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let running = running.lock().unwrap();
                    if running.contains("step_bad") {
                        beside.lock().unwrap().extend(running.iter().cloned());
                    }
                }
                running.lock().unwrap().remove(&key);
                Outcome::Done
            }
            .boxed()
        })
    };
    process.push(step("wrun_bad", "step_bad")).await;
    place.run("UPDATE :jobs SET output = '{\"lost\": 2}', priority = -1000").await;
    for i in 0..30 {
        process.push(step("wrun_1", &format!("step_{i}"))).await;
    }
    process.start(&target).await;
    place.until("all are delivered", "SELECT count(*) = 0 FROM :jobs").await;
    let beside: HashSet<String> = beside.lock().unwrap().drain(..).collect();
    assert_eq!(beside, HashSet::from(["step_bad".to_owned()]));
    assert_eq!(target.count(), 31);
}

// Rows that PostgreSQL refuses to write.

async fn refuse(place: &Place, event: &str, row: &str, run: &str) {
    place
        .run(&format!(
            "CREATE OR REPLACE FUNCTION :schema.refuse() RETURNS trigger LANGUAGE plpgsql AS
               $$BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = '23514'; END$$;
             CREATE TRIGGER refuse BEFORE {event} ON :jobs FOR EACH ROW
               WHEN ({row}.group_id = '{run}') EXECUTE FUNCTION :schema.refuse()"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_that_postgresql_refuses_holds_up_no_other() {
    let place = Place::with(Options { queue_concurrency: Some(1.0), ..Options::default() }).await;
    let log = Arc::new(Silence::default());
    let process = place.process_with_log(log.clone());
    let target = Target::answering(Outcome::Done);
    refuse(&place, "DELETE", "OLD", "wrun_bad").await;
    process.start(&target).await;
    process.push(flow("wrun_bad")).await;
    target.until(1).await;
    for i in 0..10 {
        process.push(flow(&format!("wrun_{i}"))).await;
        process.push(step("wrun_1", &format!("step_{i}"))).await;
    }
    place.until("only the refused one is left", "SELECT count(*) = 1 FROM :jobs").await;
    let health = process.queue.health().unwrap();
    assert_eq!(health.refused, 1);
    assert!(health.problems.iter().any(|problem| problem.contains("refuses to settle 1")), "{health:?}");
    let told =
        log.0.lock().unwrap().iter().filter(|line| line.starts_with("Error")).cloned().collect::<Vec<_>>();
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(told[0].contains("wrun_bad") && told[0].contains("not this one"), "{told:#?}");
    place.run("DROP TRIGGER refuse ON :jobs").await;
    place.until("it is settled after all", "SELECT count(*) = 0 FROM :jobs").await;
    assert_eq!(target.count(), 21, "nothing was delivered twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_postgresql_refuses_fails_alone_and_a_claim_too() {
    let place = Place::new().await;
    let log = Arc::new(Silence::default());
    let process = place.process_with_log(log.clone());
    let target = Target::answering(Outcome::Done);
    refuse(&place, "INSERT", "NEW", "wrun_bad").await;
    let sent = join_all((0..20).map(|i| {
        let run = if i == 7 { "wrun_bad".to_owned() } else { format!("wrun_{i}") };
        process.queue.push(flow(&run))
    }))
    .await;
    let failed: Vec<usize> = (0..20).filter(|i| sent[*i].is_err()).collect();
    assert_eq!(failed, [7], "only the refused one fails");
    place.run("DROP TRIGGER refuse ON :jobs").await;

    refuse(&place, "UPDATE", "NEW", "wrun_3").await;
    process.start(&target).await;
    place.until("only the refused one is left", "SELECT count(*) = 1 FROM :jobs").await;
    assert_eq!(target.count(), 18);
    assert!(log.0.lock().unwrap().iter().any(|line| line.contains("not this one")));
    place.run("DROP TRIGGER refuse ON :jobs").await;
    place.until("it is delivered after all", "SELECT count(*) = 0 FROM :jobs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_postgresql_refuses_to_renew_costs_no_other() {
    let place = Place::new().await;
    let process = place.process();
    let gate = Arc::new(Semaphore::new(0));
    let target = Target::gated(&gate);
    process.start(&target).await;
    for i in 0..5 {
        process.push(step("wrun_1", &format!("step_{i}"))).await;
    }
    process.push(step("wrun_bad", "step_bad")).await;
    target.until(6).await;
    refuse(&place, "UPDATE", "NEW", "wrun_bad").await;
    place
        .until(
            "the others are renewed",
            "SELECT count(*) = 5 FROM :jobs WHERE heartbeat_on > started_on + interval '1 second'",
        )
        .await;
    place.run("DROP TRIGGER refuse ON :jobs").await;
    gate.add_permits(6);
}
