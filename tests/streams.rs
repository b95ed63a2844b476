//! Streams against a real PostgreSQL, named by TEST_POSTGRES_URL. Each test has a schema of its own.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use world_postgres::config::DatabaseConfig;
use world_postgres::database::{Database, migrations};
use world_postgres::error::Error;
use world_postgres::streams::{Chunk, StreamInfo, StreamReader, Streams};

const PATIENCE: Duration = Duration::from_secs(30);
const RUN: &str = "wrun_01";

struct Fixture {
    config: DatabaseConfig,
    database: Arc<Database>,
    streams: Streams,
    admin: PgConnection,
}

impl Fixture {
    async fn new() -> Self {
        Self::at(test_url()).await
    }

    async fn at(url: String) -> Self {
        let schema = format!("test_streams_{:016x}", rand::random::<u64>());
        let config = DatabaseConfig {
            url: url.clone(),
            listen_url: None,
            queue_schema: format!("{schema}_queue"),
            schema,
            max_pool_size: 4,
            statement_cache: true,
            listen: true,
            idle_timeout_seconds: 60,
        };
        let admin = PgConnection::connect(&url).await.expect("TEST_POSTGRES_URL must be reachable");
        let (database, streams) = open(&config);
        migrations::migrate(&database).await.unwrap();
        Self { config, database, streams, admin }
    }

    async fn end(mut self) {
        self.database.close().await;
        let drop = format!("DROP SCHEMA \"{}\" CASCADE", self.config.schema);
        self.admin.execute(AssertSqlSafe(drop)).await.unwrap();
    }

    async fn terminate(&mut self, last_statement: &str) {
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE pid <> pg_backend_pid() AND query LIKE '%' || $1 || '%'",
        )
        .bind(last_statement)
        .execute(&mut self.admin)
        .await
        .unwrap();
    }

    /// How often each statement ran: append, info, list, read.
    async fn statements(&mut self) -> [i64; 4] {
        let mut counts = [0; 4];
        for (count, pattern) in counts.iter_mut().zip([
            "SELECT \"%stream_append(%",
            "SELECT next_index, closed FROM %",
            "SELECT name FROM %workflow_streams%",
            "%bytes_before%",
        ]) {
            *count = sqlx::query_scalar(
                "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements
                 WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
                   AND toplevel AND query LIKE $1",
            )
            .bind(pattern)
            .fetch_one(&mut self.admin)
            .await
            .unwrap();
        }
        counts
    }
}

fn test_url() -> String {
    std::env::var("TEST_POSTGRES_URL")
        .expect("TEST_POSTGRES_URL must name a PostgreSQL that the tests may use")
}

fn open(config: &DatabaseConfig) -> (Arc<Database>, Streams) {
    let database = Arc::new(Database::new(config.clone()).unwrap());
    (Arc::clone(&database), Streams::new(database))
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !condition().await {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn numbered(numbers: std::ops::Range<usize>) -> Vec<Vec<u8>> {
    numbers.map(|number| number.to_string().into_bytes()).collect()
}

fn text(chunk: &Chunk) -> String {
    String::from_utf8(chunk.data.clone()).unwrap()
}

/// To the end of the stream.
async fn read_all(reader: &StreamReader) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    while let Some(batch) = within("the end of the stream", reader.next()).await.unwrap() {
        assert!(!batch.is_empty());
        chunks.extend(batch);
    }
    chunks
}

async fn read_texts(reader: &StreamReader) -> Vec<String> {
    read_all(reader).await.iter().map(text).collect()
}

async fn next_texts(reader: &StreamReader) -> Vec<String> {
    let batch = within("the next chunks", reader.next()).await.unwrap().expect("not yet the end");
    batch.iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_write_is_one_chunk_in_the_order_of_its_writer() {
    let fixture = Fixture::new().await;
    let (other_database, other) = open(&fixture.config);
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let streams = if writer % 2 == 0 { fixture.streams.clone() } else { other.clone() };
        writers.spawn(async move {
            let mut number = 0;
            while number < 60 {
                // Single writes and multi-writes.
                let count = 1 + number % 3;
                let chunks = (number..number + count).map(|n| format!("{writer}:{n}").into_bytes()).collect();
                streams.append("s", RUN, chunks).await.unwrap();
                number += count;
            }
            number
        });
    }
    let written: usize = writers.join_all().await.into_iter().sum();
    fixture.streams.close("s", RUN).await.unwrap();

    let chunks = read_all(&other.reader("s", None)).await;
    assert_eq!(chunks.len(), written);
    assert!(chunks.iter().map(|chunk| chunk.index).eq(0..written as i64));
    for writer in 0..4 {
        let numbers: Vec<usize> = chunks
            .iter()
            .filter_map(|chunk| text(chunk).strip_prefix(&format!("{writer}:")).map(|n| n.parse().unwrap()))
            .collect();
        assert!(numbers.iter().copied().eq(0..numbers.len()), "writer {writer}: {numbers:?}");
    }
    other_database.close().await;
    fixture.end().await;
}

#[tokio::test]
async fn writes_that_are_not_awaited_keep_their_order() {
    let fixture = Fixture::new().await;
    let streams = &fixture.streams;
    let mut writes: Vec<_> = Vec::new();
    for chunk in numbered(0..500) {
        writes.push(streams.append("s", RUN, vec![chunk]));
    }
    let appended = futures_util::future::join_all(writes);
    let (outcomes, closed) = tokio::join!(appended, streams.close("s", RUN));
    outcomes.into_iter().for_each(|outcome| outcome.unwrap());
    closed.unwrap();
    assert_eq!(
        read_texts(&streams.reader("s", None)).await,
        (0..500).map(|n| n.to_string()).collect::<Vec<_>>()
    );
    fixture.end().await;
}

#[tokio::test]
async fn a_write_outlives_the_caller_that_made_it() {
    let fixture = Fixture::new().await;
    let write = fixture.streams.append("s", RUN, texts(&["a"]));
    assert!(futures_util::FutureExt::now_or_never(write).is_none());
    fixture.streams.append("s", RUN, texts(&["b"])).await.unwrap();
    assert_eq!(next_texts(&fixture.streams.reader("s", None)).await, ["a", "b"]);
    fixture.end().await;
}

#[tokio::test]
async fn the_first_close_wins_and_later_writes_are_ignored() {
    let fixture = Fixture::new().await;
    let streams = &fixture.streams;
    streams.append("s", RUN, texts(&["a", "b"])).await.unwrap();
    assert_eq!(streams.info("s").await.unwrap(), StreamInfo { tail_index: 1, done: false });
    streams.close("s", RUN).await.unwrap();
    streams.append("s", RUN, texts(&["c"])).await.unwrap();
    streams.close("s", RUN).await.unwrap();
    assert_eq!(streams.info("s").await.unwrap(), StreamInfo { tail_index: 1, done: true });
    assert_eq!(read_texts(&streams.reader("s", None)).await, ["a", "b"]);
    fixture.end().await;
}

#[tokio::test]
async fn closing_an_unknown_stream_makes_a_closed_one() {
    let fixture = Fixture::new().await;
    let streams = &fixture.streams;
    streams.close("s", RUN).await.unwrap();
    streams.append("s", RUN, texts(&["a"])).await.unwrap();
    assert_eq!(streams.info("s").await.unwrap(), StreamInfo { tail_index: -1, done: true });
    assert!(read_all(&streams.reader("s", None)).await.is_empty());
    fixture.end().await;
}

#[tokio::test]
async fn an_unknown_stream_is_empty_and_open() {
    let fixture = Fixture::new().await;
    let streams = &fixture.streams;
    assert_eq!(streams.info("s").await.unwrap(), StreamInfo { tail_index: -1, done: false });
    let page = streams.chunks("s", None, None).await.unwrap();
    assert!(page.chunks.is_empty() && page.cursor.is_none() && !page.done);
    streams.append("s", RUN, Vec::new()).await.unwrap();
    assert!(streams.list(RUN).await.unwrap().is_empty(), "a write of nothing makes no stream");

    // A reader may come before the stream.
    let reader = streams.reader("s", Some(-3));
    let (read, ()) = tokio::join!(next_texts(&reader), async {
        until("it reads", async || fixture.database.notifications.subscriptions() == 1).await;
        streams.append("s", RUN, texts(&["a"])).await.unwrap();
    });
    assert_eq!(read, ["a"]);
    fixture.end().await;
}

#[tokio::test]
async fn a_start_index_counts_from_the_beginning_or_from_the_end() {
    let fixture = Fixture::new().await;
    let streams = &fixture.streams;
    streams.append("s", RUN, texts(&["c0", "c1", "c2", "c3", "c4"])).await.unwrap();
    for (start, expected) in [
        (None, &["c0", "c1", "c2", "c3", "c4"][..]),
        (Some(0), &["c0", "c1", "c2", "c3", "c4"]),
        (Some(3), &["c3", "c4"]),
        (Some(-2), &["c3", "c4"]),
        (Some(-99), &["c0", "c1", "c2", "c3", "c4"]),
        (Some(i64::MIN), &["c0", "c1", "c2", "c3", "c4"]),
    ] {
        assert_eq!(next_texts(&streams.reader("s", start)).await, expected, "start {start:?}");
    }

    let beyond = streams.reader("s", Some(6));
    let (read, ()) = tokio::join!(next_texts(&beyond), async {
        until("it reads", async || fixture.database.notifications.subscriptions() == 1).await;
        streams.append("s", RUN, texts(&["c5"])).await.unwrap();
        streams.append("s", RUN, texts(&["c6"])).await.unwrap();
    });
    assert_eq!(read, ["c6"]);

    streams.close("s", RUN).await.unwrap();
    for start in [7, 50, i64::MAX] {
        assert!(read_all(&streams.reader("s", Some(start))).await.is_empty(), "start {start}");
    }
    fixture.end().await;
}

#[tokio::test]
async fn a_negative_start_is_resolved_once() {
    let fixture = Fixture::new().await;
    let streams = &fixture.streams;
    streams.append("s", RUN, texts(&["a", "b", "c"])).await.unwrap();
    let reader = streams.reader("s", Some(-1));
    assert_eq!(next_texts(&reader).await, ["c"]);
    streams.append("s", RUN, texts(&["d", "e"])).await.unwrap();
    assert_eq!(next_texts(&reader).await, ["d", "e"]);
    fixture.end().await;
}

#[tokio::test]
async fn chunks_keep_their_bytes_and_empty_ones_count() {
    let fixture = Fixture::new().await;
    let streams = &fixture.streams;
    let large: Vec<u8> = (0..700_000_u32).map(|at| (at % 251) as u8).collect();
    let chunks = vec![Vec::new(), vec![0, 255, 0], large, Vec::new()];
    streams.append("s", RUN, chunks.clone()).await.unwrap();
    streams.close("s", RUN).await.unwrap();
    let read = read_all(&streams.reader("s", None)).await;
    assert_eq!(read.into_iter().map(|chunk| chunk.data).collect::<Vec<_>>(), chunks);
    assert_eq!(streams.info("s").await.unwrap().tail_index, 3);
    fixture.end().await;
}

#[tokio::test]
async fn pages_follow_a_cursor() {
    let fixture = Fixture::new().await;
    let streams = &fixture.streams;
    streams.append("s", RUN, numbered(0..250)).await.unwrap();

    let first = streams.chunks("s", None, None).await.unwrap();
    assert_eq!((first.chunks.len(), first.done), (100, false));
    let second = streams.chunks("s", Some(149), first.cursor.as_deref()).await.unwrap();
    assert!(second.chunks.iter().map(|chunk| chunk.index).eq(100..249));
    let third = streams.chunks("s", Some(1), second.cursor.as_deref()).await.unwrap();
    assert_eq!(third.chunks, [Chunk { index: 249, data: b"249".to_vec() }]);
    assert_eq!(third.cursor, None);

    streams.close("s", RUN).await.unwrap();
    let all = streams.chunks("s", Some(99_999), None).await.unwrap();
    assert_eq!((all.chunks.len(), all.cursor, all.done), (250, None, true));
    assert_eq!(streams.chunks("s", Some(0), None).await.unwrap().chunks.len(), 1);
    for invalid in ["", "no", "-1", "99999999999", "eyJjIjoxfQ=="] {
        let page = streams.chunks("s", Some(2), Some(invalid)).await.unwrap();
        assert_eq!(page.chunks[0].index, 0, "cursor {invalid:?}");
    }
    fixture.end().await;
}

#[tokio::test]
async fn a_page_of_large_chunks_is_shorter_but_never_empty() {
    let fixture = Fixture::new().await;
    let streams = &fixture.streams;
    streams.append("s", RUN, vec![vec![7; 3 << 20]; 5]).await.unwrap();
    let mut cursor = None;
    let mut pages = Vec::new();
    loop {
        let page = streams.chunks("s", None, cursor.as_deref()).await.unwrap();
        pages.push(page.chunks.len());
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(pages, [3, 2]);
    fixture.end().await;
}

#[tokio::test]
async fn the_streams_of_a_run_are_listed() {
    let fixture = Fixture::new().await;
    let streams = &fixture.streams;
    streams.append("second to none", RUN, texts(&["a"])).await.unwrap();
    streams.close("closed", RUN).await.unwrap();
    streams.append("other", "wrun_02", texts(&["a"])).await.unwrap();
    streams.append("second to none", RUN, texts(&["b"])).await.unwrap();
    assert_eq!(streams.list(RUN).await.unwrap(), ["second to none", "closed"]);
    assert_eq!(streams.list("wrun_02").await.unwrap(), ["other"]);
    assert!(streams.list("wrun_03").await.unwrap().is_empty());
    fixture.end().await;
}

#[tokio::test]
async fn names_that_cannot_be_stored_are_invalid_input() {
    let fixture = Fixture::new().await;
    let streams = &fixture.streams;
    for name in ["nul\0".to_owned(), "x".repeat(9000)] {
        assert!(matches!(streams.append(&name, RUN, texts(&["a"])).await, Err(Error::Invalid(_))));
        assert!(matches!(streams.close(&name, RUN).await, Err(Error::Invalid(_))));
        assert!(matches!(streams.info(&name).await, Err(Error::Invalid(_))));
        assert!(matches!(streams.chunks(&name, None, None).await, Err(Error::Invalid(_))));
        assert!(matches!(streams.reader(&name, None).next().await, Err(Error::Invalid(_))));
        assert!(matches!(streams.append("s", &name, texts(&["a"])).await, Err(Error::Invalid(_))));
    }
    // Incompressible, of the greatest length.
    let name: String = (0..2000).map(|_| char::from(rand::random_range(b'0'..=b'z'))).collect();
    streams.append(&name, RUN, texts(&["a"])).await.unwrap();
    assert_eq!(next_texts(&streams.reader(&name, None)).await, ["a"]);
    fixture.end().await;
}

#[tokio::test]
async fn a_long_stream_is_read_in_bounded_batches() {
    let fixture = Fixture::new().await;
    let streams = fixture.streams.clone();
    for start in (0..10_000).step_by(1000) {
        streams.append("small", RUN, numbered(start..start + 1000)).await.unwrap();
    }
    streams.close("small", RUN).await.unwrap();
    let reader = streams.reader("small", None);
    let (mut next, mut batches) = (0, 0);
    while let Some(batch) = within("the next batch", reader.next()).await.unwrap() {
        assert!(batch.len() <= 256);
        batches += 1;
        for chunk in batch {
            assert_eq!((chunk.index, text(&chunk)), (next, next.to_string()));
            next += 1;
        }
    }
    assert_eq!(next, 10_000);
    assert_eq!(batches, 10_000_usize.div_ceil(256));

    streams.append("large", RUN, vec![vec![7; 100_000]; 10]).await.unwrap();
    streams.close("large", RUN).await.unwrap();
    let reader = streams.reader("large", None);
    let mut sizes = Vec::new();
    while let Some(batch) = within("the next batch", reader.next()).await.unwrap() {
        sizes.push(batch.len());
    }
    assert_eq!(sizes, [3, 3, 3, 1]);
    fixture.end().await;
}

/// In a database of its own: pg_stat_statements takes tables of one name in two schemas for one.
#[tokio::test]
async fn each_call_and_each_batch_is_one_statement() {
    let mut server = PgConnection::connect(&test_url()).await.expect("TEST_POSTGRES_URL must be reachable");
    let preloaded: String = sqlx::query_scalar("SELECT current_setting('shared_preload_libraries')")
        .fetch_one(&mut server)
        .await
        .unwrap();
    if !preloaded.contains("pg_stat_statements") {
        eprintln!("This server does not count statements: pg_stat_statements is not loaded");
        return;
    }
    let name = format!("test_streams_{:016x}", rand::random::<u64>());
    server.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
    let mut url = url::Url::parse(&test_url()).unwrap();
    url.set_path(&name);

    let mut fixture = Fixture::at(url.to_string()).await;
    fixture.admin.execute("CREATE EXTENSION pg_stat_statements").await.unwrap();
    let (other_database, other) = open(&fixture.config);
    let streams = fixture.streams.clone();

    streams.append("s", RUN, numbered(0..700)).await.unwrap();
    assert_eq!(fixture.statements().await, [1, 0, 0, 0]);
    streams.info("s").await.unwrap();
    streams.list(RUN).await.unwrap();
    streams.chunks("s", None, None).await.unwrap();
    assert_eq!(fixture.statements().await, [1, 1, 1, 1]);

    let waking = fixture.database.notifications.subscribe("warm", "up");
    until("it listens", async || fixture.database.notifications.is_listening()).await;
    drop(waking);
    let reader = streams.reader("s", None);
    for size in [256, 256, 188] {
        assert_eq!(next_texts(&reader).await.len(), size);
    }
    assert_eq!(fixture.statements().await, [1, 1, 1, 4], "one read for each batch");
    for number in 0..20 {
        let (read, written) =
            tokio::join!(next_texts(&reader), other.append("s", RUN, vec![vec![b'a' + number]]));
        written.unwrap();
        assert_eq!(read.len(), 1);
    }
    assert_eq!(fixture.statements().await, [21, 1, 1, 24], "one read for each wake-up");
    let (end, closed) = tokio::join!(within("the end", reader.next()), other.close("s", RUN));
    closed.unwrap();
    assert!(end.unwrap().is_none());
    assert!(reader.next().await.unwrap().is_none());
    assert_eq!(fixture.statements().await, [22, 1, 1, 25]);

    let writes = (0..2500).map(|_| streams.append("joined", RUN, texts(&["a"])));
    futures_util::future::join_all(writes).await.into_iter().for_each(|outcome| outcome.unwrap());
    let [appends, ..] = fixture.statements().await;
    assert!((25..=28).contains(&appends), "{appends}: those that wait share statements, within bounds");
    assert_eq!(streams.info("joined").await.unwrap().tail_index, 2499);

    other_database.close().await;
    fixture.end().await;
    server.execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await.unwrap();
}

#[tokio::test]
async fn a_live_reader_sees_what_another_process_writes() {
    let fixture = Fixture::new().await;
    let (other_database, other) = open(&fixture.config);
    let reader = fixture.streams.reader("s", None);
    other.append("s", RUN, texts(&["first"])).await.unwrap();
    assert_eq!(next_texts(&reader).await, ["first"]);
    until("it listens", async || fixture.database.notifications.is_listening()).await;
    for number in 0..20 {
        let (read, written) =
            tokio::join!(next_texts(&reader), other.append("s", RUN, vec![number.to_string().into_bytes()]));
        written.unwrap();
        assert_eq!(read, [number.to_string()]);
    }
    let (end, closed) = tokio::join!(within("the end", reader.next()), other.close("s", RUN));
    closed.unwrap();
    assert!(end.unwrap().is_none());
    other_database.close().await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_is_never_reported_before_the_last_chunk() {
    let fixture = Fixture::new().await;
    let (other_database, other) = open(&fixture.config);
    for round in 0..60 {
        let name = format!("s{round}");
        let (writing, writer) = (name.clone(), other.clone());
        let writing = tokio::spawn(async move {
            for number in 0..5 {
                writer.append(&writing, RUN, vec![vec![number]]).await.unwrap();
            }
            writer.close(&writing, RUN).await.unwrap();
        });
        let mut readers = JoinSet::new();
        for _ in 0..3 {
            let reader = fixture.streams.reader(&name, None);
            readers.spawn(async move { read_all(&reader).await });
        }
        for chunks in readers.join_all().await {
            assert!(chunks.iter().map(|chunk| chunk.data[0]).eq(0..5), "{name}: {chunks:?}");
        }
        writing.await.unwrap();
    }
    assert_eq!(fixture.database.notifications.subscriptions(), 0);
    other_database.close().await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_connections_lose_no_chunk() {
    let mut fixture = Fixture::new().await;
    let (writer_database, writer) = open(&fixture.config);
    let reader = fixture.streams.reader("s", None);
    let reading = tokio::spawn(async move { read_all(&reader).await });
    until("it reads", async || fixture.database.notifications.subscriptions() == 1).await;
    let listen = format!("LISTEN \"{}\"", fixture.database.notifications.channels().streams);
    let read = format!("FROM \"{}\".workflow_streams", fixture.config.schema);
    for round in 0..30 {
        writer.append("s", RUN, vec![round.to_string().into_bytes()]).await.unwrap();
        match round % 10 {
            3 => fixture.terminate(&listen).await,
            6 => fixture.terminate(&read).await,
            _ => {}
        }
    }
    writer.close("s", RUN).await.unwrap();
    let chunks = reading.await.unwrap();
    assert!(chunks.iter().map(text).eq((0..30).map(|round| round.to_string())), "{chunks:?}");
    writer_database.close().await;
    fixture.end().await;
}

#[tokio::test]
async fn without_notifications_a_reader_polls() {
    let fixture = Fixture::new().await;
    // Port 1: nobody listens there.
    let config = DatabaseConfig {
        listen_url: Some("postgres://nobody@127.0.0.1:1/nothing".to_owned()),
        ..fixture.config.clone()
    };
    let (deaf_database, deaf) = open(&config);
    let reader = deaf.reader("s", None);
    for number in 0..3 {
        let (read, written) = tokio::join!(
            next_texts(&reader),
            fixture.streams.append("s", RUN, vec![number.to_string().into_bytes()])
        );
        written.unwrap();
        assert_eq!(read, [number.to_string()]);
    }
    fixture.streams.close("s", RUN).await.unwrap();
    assert!(within("the end", reader.next()).await.unwrap().is_none());
    assert!(!deaf_database.notifications.is_listening());
    deaf_database.close().await;
    fixture.end().await;
}

#[tokio::test]
async fn cancelling_ends_a_pending_read_and_releases_the_subscription() {
    let fixture = Fixture::new().await;
    let notifications = &fixture.database.notifications;
    let readers: Vec<_> = (0..20).map(|_| Arc::new(fixture.streams.reader("s", None))).collect();
    assert_eq!(notifications.subscriptions(), 0, "a reader that was never read costs nothing");
    let mut pending = JoinSet::new();
    for reader in &readers {
        let reader = Arc::clone(reader);
        pending.spawn(async move { reader.next().await });
    }
    until("all wait", async || notifications.subscriptions() == 20).await;
    readers.iter().for_each(|reader| reader.cancel());
    for outcome in within("all end", pending.join_all()).await {
        assert!(outcome.unwrap().is_none());
    }
    assert_eq!(notifications.subscriptions(), 0);

    fixture.streams.append("s", RUN, texts(&["a"])).await.unwrap();
    assert!(readers[0].next().await.unwrap().is_none(), "cancelled is cancelled");
    let unread = fixture.streams.reader("s", None);
    unread.cancel();
    assert!(unread.next().await.unwrap().is_none());

    let dropped = fixture.streams.reader("s", None);
    assert_eq!(next_texts(&dropped).await, ["a"]);
    assert_eq!(notifications.subscriptions(), 1);
    drop(dropped);
    assert_eq!(notifications.subscriptions(), 0);
    fixture.end().await;
}

#[tokio::test]
async fn closing_the_database_ends_its_readers_with_an_error() {
    let fixture = Fixture::new().await;
    let (database, streams) = open(&fixture.config);
    let reader = streams.reader("s", None);
    let reading = tokio::spawn(async move { reader.next().await });
    until("it listens", async || database.notifications.is_listening()).await;
    database.close().await;
    assert!(matches!(within("it ends", reading).await.unwrap(), Err(Error::Closed)));
    assert!(matches!(streams.append("s", RUN, texts(&["a"])).await, Err(Error::Closed)));
    fixture.end().await;
}
