use std::str::FromStr;

use futures_util::future::join_all;
use sqlx::{Executor, Row};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn connections(most: u32) -> (Arc<Connections>, String) {
    let url = std::env::var("TEST_POSTGRES_URL")
        .expect("TEST_POSTGRES_URL must name a PostgreSQL that the tests may use");
    let application = format!("test-{:016x}", rand::random::<u64>());
    let options = PgConnectOptions::from_str(&url).unwrap().application_name(&application);
    (Connections::new(options, most, Duration::from_secs(60), true), application)
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

async fn backend(connection: &mut Connection) -> i32 {
    (**connection).fetch_one("SELECT pg_backend_pid()").await.unwrap().get(0)
}

/// The server processes of `application`, as another one sees them.
async fn backends(application: &str) -> Vec<i32> {
    let (others, _) = connections(1);
    let mut connection = others.get(soon()).await.unwrap();
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = $1";
    sqlx::query_scalar(sql).bind(application.to_owned()).fetch_all(&mut *connection).await.unwrap()
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_connection_that_was_used_last_is_used_first() {
    let (connections, _) = connections(5);
    let mut held = join_all((0..3).map(|_| connections.get(soon()))).await;
    let mut last = held.pop().unwrap().unwrap();
    held.into_iter().for_each(|connection| connection.unwrap().give_back());
    let pid = backend(&mut last).await;
    last.give_back();
    for _ in 0..3 {
        let mut connection = connections.get(soon()).await.unwrap();
        assert_eq!(backend(&mut connection).await, pid);
        connection.give_back();
    }
}

#[tokio::test]
async fn what_a_burst_has_opened_is_closed_again() {
    let (connections, application) = connections(6);
    let held = join_all((0..6).map(|_| connections.get(soon()))).await;
    assert_eq!(backends(&application).await.len(), 6);
    held.into_iter().for_each(|connection| connection.unwrap().give_back());
    until("two are left", async || backends(&application).await.len() == RESTING).await;
}

#[tokio::test]
async fn whoever_stops_waiting_leaves_no_transaction_open() {
    let (connections, application) = connections(1);
    let mut connection = connections.get(soon()).await.unwrap();
    let pid = backend(&mut connection).await;
    (*connection).execute("BEGIN").await.unwrap();
    drop(connection);
    until("its server process has ended", async || !backends(&application).await.contains(&pid)).await;
    let mut next = connections.get(soon()).await.unwrap();
    assert_ne!(backend(&mut next).await, pid);
}

#[tokio::test]
async fn when_all_are_taken_the_next_one_waits_for_one_that_is_given_back() {
    let (connections, _) = connections(1);
    let mut first = connections.get(soon()).await.unwrap();
    let pid = backend(&mut first).await;
    let waiting = tokio::spawn({
        let connections = Arc::clone(&connections);
        async move { backend(&mut connections.get(soon()).await.unwrap()).await }
    });
    tokio::task::yield_now().await;
    first.give_back();
    assert_eq!(waiting.await.unwrap(), pid);
}

#[tokio::test]
async fn closing_closes_all_and_lets_nobody_in() {
    let (connections, application) = connections(3);
    let held = join_all((0..3).map(|_| connections.get(soon()))).await;
    held.into_iter().for_each(|connection| connection.unwrap().give_back());
    connections.close().await;
    assert!(matches!(connections.get(soon()).await, Err(Error::Closed)));
    until("none is left", async || backends(&application).await.is_empty()).await;
}
