//! Deliveries over HTTP, as the app on the other side sees them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use world_postgres::auth::Tokens;
use world_postgres::config::Target;
use world_postgres::proxy::HttpProxy;
use world_postgres::queue::ticket::Ticket;
use world_postgres::queue::{Deliver, Delivery, Kind, Outcome};

#[derive(Clone, Debug)]
struct Request {
    line: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
    /// Counts the connections of the server.
    connection: usize,
}

/// Answers each request with the next of its answers, the last one for ever. After one that is empty or
/// too short it hangs up.
struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn answering(answers: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let answers: Vec<String> = answers.iter().map(|answer| (*answer).to_owned()).collect();
        let task = tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                // They end with the server.
                let mut connections = tokio::task::JoinSet::new();
                for connection in 0.. {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (seen, answers) = (Arc::clone(&seen), answers.clone());
                    connections.spawn(async move {
                        let mut stream = BufReader::new(stream);
                        while let Some(request) = read(&mut stream, connection).await {
                            let answer = {
                                let mut seen = seen.lock().unwrap();
                                seen.push(request);
                                answers[(seen.len() - 1).min(answers.len() - 1)].clone()
                            };
                            stream.write_all(answer.as_bytes()).await.unwrap();
                            if answer.is_empty() || answer.contains("content-length: 50") {
                                return;
                            }
                        }
                    });
                }
            }
        });
        Self { port, seen, task }
    }

    fn proxy(&self) -> HttpProxy {
        proxy(&format!("http://localhost:{}/base", self.port))
    }

    fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

async fn read(stream: &mut BufReader<tokio::net::TcpStream>, connection: usize) -> Option<Request> {
    let mut line = String::new();
    if stream.read_line(&mut line).await.ok()? == 0 {
        return None;
    }
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await.ok()?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { line: line.trim_end().to_owned(), headers, body, connection })
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// The same from a World's handler.
fn of_world(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nx-workflow-world: postgres\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn proxy(base_url: &str) -> HttpProxy {
    let target = Target { base_url: base_url.to_owned(), http_proxy: None };
    HttpProxy::new(&target, &Tokens::parse(Some("new-token,old-token")).unwrap()).unwrap()
}

fn delivery(kind: Kind) -> Delivery {
    Delivery {
        kind,
        id: "step//./ä b%/c".to_owned(),
        queue_name: "__wkf_step_step//./ä b%/c".to_owned(),
        idempotency_key: None,
        message_id: "msg_1".to_owned(),
        attempt: 7,
        body: "{\"x\":\"ä\"}".as_bytes().to_vec(),
        headers: vec![
            ("traceparent".into(), "00-ab-cd-01".into()),
            ("X-Workflow-Secret".into(), "forged".into()),
            ("content-length".into(), "1".into()),
            ("x-bad".into(), "line\nbreak".into()),
        ],
        ticket: Ticket::default(),
    }
}

async fn outcome(answers: &[&str]) -> (Outcome, Vec<Request>) {
    let server = Server::answering(answers).await;
    let outcome = server.proxy().deliver(delivery(Kind::Step)).await;
    (outcome, server.seen())
}

#[tokio::test]
async fn a_delivery_is_one_request_with_the_sdk_s_headers_and_the_first_token() {
    let ok = of_world("200 OK", "{\"ok\":true}");
    let (outcome, seen) = outcome(&[&ok]).await;
    assert_eq!(outcome, Outcome::Done);
    let [request] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!(request.line, "POST /base/.well-known/workflow/v1/step HTTP/1.1");
    assert_eq!(request.body, "{\"x\":\"ä\"}".as_bytes());
    let header = |name: &str| request.headers.get(name).map(String::as_str);
    assert_eq!(header("content-type"), Some("application/json"));
    assert_eq!(header("x-vqs-queue-name"), Some("__wkf_step_step//./%C3%A4%20b%25/c"));
    assert_eq!(header("x-vqs-message-id"), Some("msg_1"));
    assert_eq!(header("x-vqs-message-attempt"), Some("7"));
    assert_eq!(header("x-workflow-secret"), Some("new-token"));
    assert_eq!(header("traceparent"), Some("00-ab-cd-01"));
    assert_eq!(header("x-bad"), None);
}

#[tokio::test]
async fn flows_and_steps_have_routes_of_their_own_and_share_connections() {
    let ok = of_world("200 OK", "{\"ok\":true}");
    let server = Server::answering(&[&ok]).await;
    let proxy = server.proxy();
    for kind in [Kind::Flow, Kind::Step, Kind::Flow] {
        assert_eq!(proxy.deliver(delivery(kind)).await, Outcome::Done);
    }
    let seen = server.seen();
    assert!(seen[0].line.contains("/v1/flow ") && seen[1].line.contains("/v1/step "), "{seen:?}");
    assert!(seen.iter().all(|request| request.connection == seen[0].connection), "{seen:?}");
}

#[tokio::test]
async fn an_answer_with_a_time_reschedules() {
    for (status, body, seconds) in [
        ("200 OK", "{\"timeoutSeconds\":0}", Some(0.0)),
        ("200 OK", "{\"timeoutSeconds\":1.5,\"x\":1}", Some(1.5)),
        ("503 Unavailable", "{\"timeoutSeconds\":3}", Some(3.0)),
        ("200 OK", "{\"timeoutSeconds\":-1}", None),
        ("200 OK", "{\"timeoutSeconds\":null}", None),
        ("201 Created", "{}", None),
    ] {
        let (outcome, _) = outcome(&[&of_world(status, body)]).await;
        let expected = seconds
            .map_or(Outcome::Done, |seconds| Outcome::Reschedule { delay: Duration::from_secs_f64(seconds) });
        assert_eq!(outcome, expected, "{status} {body}");
    }
}

#[tokio::test]
async fn what_else_a_world_answers_is_a_failure_that_says_what_happened() {
    let long = "x".repeat(10_000);
    for (status, body, said) in [
        ("500 Internal Server Error", "\"Error: boom\"", "boom"),
        ("400 Bad Request", "{\"error\":\"Unhandled queue\"}", "Unhandled queue"),
        ("200 OK", "not json", "not json"),
        ("503 Service Unavailable", "{}", "503"),
        ("500 Internal Server Error", long.as_str(), "xxx"),
    ] {
        match outcome(&[&of_world(status, body)]).await.0 {
            Outcome::Failed { error } => assert!(error.contains(said) && error.len() < 700, "{error}"),
            other => panic!("{status}: {other:?}"),
        }
    }
    // The app died with the request in its hands: that was an attempt.
    assert!(matches!(outcome(&[""]).await.0, Outcome::Failed { .. }));
    let half = "HTTP/1.1 200 OK\r\nx-workflow-world: postgres\r\ncontent-length: 50\r\n\r\n{}";
    assert!(matches!(outcome(&[half]).await.0, Outcome::Failed { .. }));
}

/// Answers that no World of ours gave, or one with another token, and the setting that each of them names.
fn of_others() -> [(String, &'static str); 10] {
    [
        (answer("200 OK", "<html>Who are you?</html>"), "WORKFLOW_POSTGRES_APP_URL"),
        (answer("200 OK", "{\"ok\":true}"), "x-workflow-world"),
        (answer("204 No Content", ""), "x-workflow-world"),
        (answer("307 Temporary Redirect", ""), "WORKFLOW_POSTGRES_APP_URL"),
        (answer("401 Unauthorized", "{}"), "x-workflow-world"),
        (answer("404 Not Found", ""), "WORKFLOW_POSTGRES_APP_URL"),
        (answer("405 Method Not Allowed", ""), "WORKFLOW_POSTGRES_APP_URL"),
        (answer("502 Bad Gateway", "no upstream"), "no upstream"),
        (answer("530 Origin Error", "1033"), "530"),
        (of_world("401 Unauthorized", "{}"), "WORKFLOW_POSTGRES_SECURITY_TOKEN"),
    ]
}

#[tokio::test]
async fn an_answer_of_anybody_else_takes_no_attempt_and_names_the_setting() {
    for (foreign, said) in of_others() {
        let (outcome, seen) = outcome(&[&foreign]).await;
        assert!(
            matches!(&outcome, Outcome::Unreachable { error } if error.contains(said)),
            "{foreign}: {outcome:?}"
        );
        // The delivery, and a probe of each route.
        assert_eq!(seen.len(), 3, "{seen:?}");
    }
}

#[tokio::test]
async fn a_target_that_takes_others_is_not_closed_for_one_message_that_it_did_not_take() {
    let ok = of_world("200 OK", "{\"ok\":true}");
    for (foreign, said) in of_others() {
        let (outcome, _) = outcome(&[&foreign, &ok]).await;
        assert!(
            matches!(&outcome, Outcome::NotTaken { error } if error.contains(said)),
            "{foreign}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_target_that_is_not_there_takes_no_attempt() {
    let server = Server::answering(&[&of_world("200 OK", "{}")]).await;
    let proxy = server.proxy();
    assert_eq!(proxy.ready().await, Ok(()));
    server.task.abort();
    while proxy.ready().await.is_ok() {
        tokio::task::yield_now().await;
    }
    let outcome = proxy.deliver(delivery(Kind::Flow)).await;
    assert!(matches!(outcome, Outcome::Unreachable { .. }), "{outcome:?}");
    let unknown = self::proxy("http://no-such-host.invalid:1");
    assert!(unknown.ready().await.is_err());
    assert!(matches!(unknown.deliver(delivery(Kind::Flow)).await, Outcome::Unreachable { .. }));
}

#[tokio::test]
async fn a_probe_asks_both_routes_and_shows_the_token_but_brings_no_message() {
    let server = Server::answering(&[&of_world("200 OK", "{}")]).await;
    assert_eq!(server.proxy().ready().await, Ok(()));
    let mut seen = server.seen();
    seen.sort_by(|a, b| a.line.cmp(&b.line));
    for (request, route) in seen.iter().zip(["flow", "step"]) {
        assert_eq!(request.line, format!("POST /base/.well-known/workflow/v1/{route} HTTP/1.1"));
        assert_eq!(request.headers.get("x-workflow-secret").map(String::as_str), Some("new-token"));
        assert!(request.headers.contains_key("x-workflow-probe") && request.body.is_empty());
    }
    assert_eq!(seen.len(), 2);
    for (foreign, said) in of_others() {
        let error = Server::answering(&[&foreign]).await.proxy().ready().await.unwrap_err();
        assert!(error.contains(said), "{foreign}: {error}");
    }
}

#[tokio::test]
async fn a_target_that_breaks_off_has_had_an_attempt_and_gets_no_other_before_it_answers() {
    let ok = of_world("200 OK", "{}");
    // The delivery, a probe of two routes, and the probe before the second delivery.
    let server = Server::answering(&["", "", "", "", "", &ok]).await;
    let proxy = server.proxy();
    let first = proxy.deliver(delivery(Kind::Step)).await;
    assert!(matches!(first, Outcome::Failed { .. }), "{first:?}");
    let second = proxy.deliver(delivery(Kind::Step)).await;
    assert!(matches!(second, Outcome::Unreachable { .. }), "{second:?}");
    assert_eq!(proxy.deliver(delivery(Kind::Step)).await, Outcome::Done);
}

#[tokio::test]
async fn the_raw_answer_is_passed_on() {
    let server =
        Server::answering(&["HTTP/1.1 418 I'm a teapot\r\nx-kind: pot\r\ncontent-length: 3\r\n\r\ntea"])
            .await;
    let response = server.proxy().proxy(&delivery(Kind::Flow)).await.unwrap();
    assert_eq!((response.status, response.body.as_slice()), (418, b"tea".as_slice()));
    assert!(response.headers.contains(&("x-kind".to_owned(), "pot".to_owned())));
    let error = proxy("http://127.0.0.1:1").proxy(&delivery(Kind::Flow)).await.unwrap_err();
    assert!(!error.to_string().contains("PostgreSQL"), "{error}");
}
