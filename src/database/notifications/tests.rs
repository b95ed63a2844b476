use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

struct Fixture {
    notifications: Notifications,
    pool: PgPool,
    application: String,
    warnings: Arc<AtomicUsize>,
}

fn options() -> PgConnectOptions {
    let url = std::env::var("TEST_POSTGRES_URL")
        .expect("TEST_POSTGRES_URL must name a PostgreSQL that the tests may use");
    PgConnectOptions::from_str(&url).expect("TEST_POSTGRES_URL must be a PostgreSQL URL")
}

impl Fixture {
    fn new(listen: PgConnectOptions) -> Self {
        let application = format!("test-{:016x}", rand::random::<u64>());
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(options());
        let notifications = Notifications::new(
            Some(listen.application_name(&application)),
            Connections::new(options(), 2, Duration::from_secs(60), true),
            Channels::of(&application, &application),
        );
        let warnings = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&warnings);
        notifications.on_warning(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        Self { notifications, pool, application, warnings }
    }

    fn subscribe(&self, payload: &str) -> Subscription {
        self.notifications.subscribe(&self.notifications.channels().streams, payload)
    }

    async fn notify(&self, payload: &str) {
        sqlx::query("SELECT pg_notify($1, $2)")
            .bind(&self.notifications.channels().streams)
            .bind(payload)
            .execute(&self.pool)
            .await
            .unwrap();
    }

    /// Of the LISTEN connection.
    async fn backends(&self) -> Vec<i32> {
        sqlx::query_scalar("SELECT pid FROM pg_stat_activity WHERE application_name = $1")
            .bind(&self.application)
            .fetch_all(&self.pool)
            .await
            .unwrap()
    }

    async fn listening(&self) {
        let mut listening = self.notifications.shared.listening.subscribe();
        within("it listens", listening.wait_for(|listening| *listening)).await.unwrap();
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !condition().await {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

fn woken(subscription: &Subscription) -> bool {
    futures_util::FutureExt::now_or_never(subscription.notified()).is_some()
}

#[tokio::test]
async fn wakes_the_subscribers_of_the_topic_and_no_others() {
    let fixture = Fixture::new(options());
    let (first, second, other) = (fixture.subscribe("a"), fixture.subscribe("a"), fixture.subscribe("b"));
    fixture.listening().await;
    for subscription in [&first, &second, &other] {
        within("connecting wakes everybody", subscription.notified()).await;
    }
    fixture.notify("a").await;
    within("first", first.notified()).await;
    within("second", second.notified()).await;
    assert!(!woken(&other));
    fixture.notifications.close().await;
}

#[tokio::test]
async fn a_terminated_connection_comes_back_and_wakes_everybody() {
    let fixture = Fixture::new(options());
    let subscription = fixture.subscribe("a");
    fixture.listening().await;
    within("connecting wakes", subscription.notified()).await;
    let before = fixture.backends().await;
    sqlx::query("SELECT pg_terminate_backend($1)").bind(before[0]).execute(&fixture.pool).await.unwrap();
    within("reconnecting wakes", subscription.notified()).await;
    assert_ne!(fixture.backends().await, before);
    fixture.notify("a").await;
    within("it listens again", subscription.notified()).await;
    assert_eq!(fixture.warnings.load(Ordering::SeqCst), 0);
    fixture.notifications.close().await;
}

#[tokio::test]
async fn a_connection_that_died_silently_is_noticed() {
    let proxy = Proxy::start();
    let fixture = Fixture::new(proxy.options());
    let subscription = fixture.subscribe("a");
    fixture.listening().await;
    within("connecting wakes", subscription.notified()).await;
    proxy.cut_silently();
    within("the replacement wakes", subscription.notified()).await;
    fixture.notify("a").await;
    within("it listens again", subscription.notified()).await;
    fixture.notifications.close().await;
}

#[tokio::test]
async fn behind_a_transaction_pooler_it_is_not_listening_and_says_so() {
    let proxy = Proxy::start();
    proxy.deaf.store(true, Ordering::SeqCst);
    let fixture = Fixture::new(proxy.options());
    let subscription = fixture.subscribe("a");
    until("it warns", async || fixture.warnings.load(Ordering::SeqCst) == 1).await;
    assert!(!fixture.notifications.is_listening());
    within("it polls", subscription.notified_or(Duration::from_millis(1))).await;
    assert_eq!(fixture.warnings.load(Ordering::SeqCst), 1);
    fixture.notifications.close().await;
}

#[tokio::test]
async fn without_a_server_it_polls_and_says_so_once() {
    // Nobody listens there: the port was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let fixture = Fixture::new(options().host("127.0.0.1").port(port));
    let subscription = fixture.subscribe("a");
    within("it polls", subscription.notified_or(Duration::from_millis(1))).await;
    until("it warns", async || fixture.warnings.load(Ordering::SeqCst) == 1).await;
    sleep(CONNECT_TIMEOUT * 2).await;
    assert_eq!(fixture.warnings.load(Ordering::SeqCst), 1);
    fixture.notifications.close().await;
}

#[tokio::test]
async fn losing_the_connection_turns_waiting_into_polling() {
    let proxy = Proxy::start();
    let fixture = Fixture::new(proxy.options());
    let subscription = fixture.subscribe("a");
    fixture.listening().await;
    within("connecting wakes", subscription.notified()).await;
    let waiting = subscription.notified_or(Duration::from_millis(1));
    proxy.refusing.store(true, Ordering::SeqCst);
    proxy.cut();
    within("it polls", waiting).await;
    assert!(!fixture.notifications.is_listening());
    fixture.notifications.close().await;
}

#[tokio::test]
async fn without_subscriptions_the_connection_is_given_back_until_the_next_one() {
    let fixture = Fixture::new(options());
    drop(fixture.subscribe("a"));
    let subscription = fixture.subscribe("a");
    fixture.listening().await;
    drop(subscription);
    assert!(fixture.notifications.shared.topics().is_empty());
    until("no connection", async || fixture.backends().await.is_empty()).await;
    assert!(!fixture.notifications.is_listening());
    let _subscription = fixture.subscribe("a");
    fixture.listening().await;
    fixture.notifications.close().await;
}

#[tokio::test]
async fn closing_wakes_everybody_and_leaves_no_connection() {
    let fixture = Fixture::new(options());
    let subscription = fixture.subscribe("a");
    fixture.listening().await;
    within("connecting wakes", subscription.notified()).await;
    fixture.notifications.close().await;
    assert!(woken(&subscription));
    assert!(!fixture.notifications.is_listening());
    until("no connection", async || fixture.backends().await.is_empty()).await;
    let late = fixture.subscribe("b");
    assert!(fixture.notifications.task.lock().unwrap().is_none());
    within("it polls", late.notified_or(Duration::from_millis(1))).await;
}

#[tokio::test]
async fn dropping_leaves_no_connection() {
    let fixture = Fixture::new(options());
    let subscription = fixture.subscribe("a");
    fixture.listening().await;
    let Fixture { notifications, pool, application, .. } = fixture;
    drop(notifications);
    until("no connection", async || {
        sqlx::query_scalar("SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = $1")
            .bind(&application)
            .fetch_one(&pool)
            .await
            .unwrap()
    })
    .await;
    drop(subscription);
}

/// Between the LISTEN connection and PostgreSQL: what networks and poolers do to it.
struct Proxy {
    port: u16,
    /// Swallows notifications.
    deaf: Arc<AtomicBool>,
    refusing: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<Link>>>,
}

struct Link {
    sockets: [TcpStream; 2],
    silent: Arc<AtomicBool>,
}

impl Proxy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            port: listener.local_addr().unwrap().port(),
            deaf: Arc::default(),
            refusing: Arc::default(),
            open: Arc::default(),
        };
        let (deaf, refusing, open) =
            (Arc::clone(&proxy.deaf), Arc::clone(&proxy.refusing), Arc::clone(&proxy.open));
        let (host, port) = (options().get_host().to_owned(), options().get_port());
        thread::spawn(move || {
            for client in listener.incoming() {
                if refusing.load(Ordering::SeqCst) {
                    continue;
                }
                let (client, server) = (client.unwrap(), TcpStream::connect((host.as_str(), port)).unwrap());
                let silent = Arc::new(AtomicBool::new(false));
                open.lock().unwrap().push(Link {
                    sockets: [client.try_clone().unwrap(), server.try_clone().unwrap()],
                    silent: Arc::clone(&silent),
                });
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let muted = Arc::clone(&silent);
                thread::spawn(move || forward(from, to, &muted));
                let deaf = Arc::clone(&deaf);
                thread::spawn(move || forward_messages(server, client, &silent, &deaf));
            }
        });
        proxy
    }

    fn options(&self) -> PgConnectOptions {
        options().host("127.0.0.1").port(self.port).ssl_mode(sqlx::postgres::PgSslMode::Disable)
    }

    /// The sockets stay open, but nothing passes any more.
    fn cut_silently(&self) {
        for link in self.open.lock().unwrap().iter() {
            link.silent.store(true, Ordering::SeqCst);
        }
    }

    fn cut(&self) {
        for link in self.open.lock().unwrap().drain(..) {
            for socket in link.sockets {
                // It may be gone already.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, silent: &AtomicBool) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if !silent.load(Ordering::SeqCst) && to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

fn forward_messages(mut from: TcpStream, mut to: TcpStream, silent: &AtomicBool, deaf: &AtomicBool) {
    let mut message = vec![0; 5];
    while from.read_exact(&mut message[..5]).is_ok() {
        let length = u32::from_be_bytes(message[1..5].try_into().unwrap()) as usize + 1;
        message.resize(length, 0);
        if from.read_exact(&mut message[5..]).is_err() {
            break;
        }
        let swallowed = silent.load(Ordering::SeqCst) || (deaf.load(Ordering::SeqCst) && message[0] == b'A');
        if !swallowed && to.write_all(&message).is_err() {
            break;
        }
        message.resize(5, 0);
    }
    let _ = to.shutdown(Shutdown::Both);
}
