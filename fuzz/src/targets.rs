//! What must hold for bytes from outside, whatever they are. `cargo fuzz` looks for the bytes; `cargo test`
//! tries the seeds (`tests/fuzz_targets.rs` of the core).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::percent_decode;
use serde_json::Value;
use sha2::{Digest, Sha256};
use url::Url;
use world_postgres::auth::{DEFAULT_TOKEN, TOKEN_HEADER, Tokens, check_tokens};
use world_postgres::config::{Config, Environment, Options, redact};
use world_postgres::error::Error;
use world_postgres::ids::{EventIds, check_new_run_id};
use world_postgres::proxy::{self, Answer, check_answer, outcome};
use world_postgres::queue::{Delivery, Kind, Message, Outcome};
use world_postgres::signature::verify;

const LONGEST_ID: usize = 2000;
const NOW_SECONDS: i64 = 1_800_000_000;
const NOW_MS: i64 = NOW_SECONDS * 1000;
const DAY_MS: i128 = 24 * 60 * 60 * 1000;

type Target = fn(&[u8]);

pub const ALL: [(&str, Target); 8] = [
    ("answer", answer),
    ("config", config),
    ("event_id", event_id),
    ("job", job),
    ("message", message),
    ("run_id", run_id),
    ("signature", signature),
    ("token", token),
];

/// The parts of an input that holds several: newlines separate them, the last one takes the rest.
fn parts<const N: usize>(data: &[u8]) -> Option<[&str; N]> {
    let mut parts = std::str::from_utf8(data).ok()?.splitn(N, '\n');
    let found: Vec<_> = parts.by_ref().collect();
    found.try_into().ok()
}

/// What an app answers to a delivery: the status (two bytes), the body.
pub fn answer(data: &[u8]) {
    let Some((status, body)) = data.split_first_chunk::<2>() else { return };
    let status = u16::from_be_bytes(*status);
    let foreign = Answer { status, of_world: false, body };
    let error = check_answer("The app", &foreign).expect_err("only a World settles a delivery");
    assert!(error.chars().count() < 900 && error.contains(&status.to_string()));
    let answer = Answer { of_world: true, ..foreign };
    assert_eq!(check_answer("The app", &answer).is_err(), status == 401);
    match outcome("The app", &answer) {
        Outcome::Done => assert!((200..300).contains(&status)),
        Outcome::Reschedule { .. } => {
            assert!((200..300).contains(&status) || status == 503);
            if let Ok(Value::Object(body)) = serde_json::from_slice(body) {
                assert!(body["timeoutSeconds"].as_f64().is_some_and(|seconds| seconds >= 0.0));
            }
        }
        Outcome::Failed { error } => {
            assert!(error.chars().count() < 600, "a job keeps its last error");
            assert!(error.contains(&status.to_string()));
        }
        Outcome::Unreachable { error } | Outcome::NotTaken { error } => panic!("the app did answer: {error}"),
    }
}

/// The options of `createWorld()` as JSON, and a line of environment.
pub fn config(data: &[u8]) {
    let Some([name, value, options]) = parts(data) else { return };
    let Ok(options) = serde_json::from_str::<Options>(options) else { return };
    let environment = Environment::from([(name.to_owned(), value.to_owned())]);
    let config = match Config::resolve(&options, &environment) {
        Ok(config) => config,
        Err(Error::Configuration(_)) => return,
        Err(other) => panic!("a wrong setting is {other:?}"),
    };
    for schema in [&config.database.schema, &config.database.queue_schema] {
        assert!((1..=48).contains(&schema.len()), "{schema:?}");
        assert!(schema.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{schema:?}");
    }
    assert!(!config.queue.job_prefix.contains(['\'', '"', '\\', '\0']));
    assert!((1..=1000).contains(&config.database.max_pool_size));
    assert!((1..=1000).contains(&config.queue.concurrency));
    let target = Url::parse(&config.target.base_url).expect("checked");
    assert!(matches!(target.scheme(), "http" | "https"));

    let redacted = Url::parse(&redact(&config.database.url)).expect("still a URL");
    assert!(redacted.password().is_none_or(|password| password == "***"), "{redacted}");
    assert!(redacted.query_pairs().all(|(name, _)| name != "password"), "{redacted}");
}

/// A run, and what is said to be an event of it, or a cursor.
pub fn event_id(data: &[u8]) {
    let Some([run_id, event_id]) = parts(data) else { return };
    let ids = EventIds::of(run_id);
    if let Some(slot) = ids.decode(event_id) {
        assert!(slot > 0);
        assert!(EventIds::of(&format!("{run_id}.")).decode(event_id).is_none(), "of two runs");
    }
    let number = |from: usize| {
        let byte = |at: usize| i64::from(*event_id.as_bytes().get(at).unwrap_or(&0));
        (0..4).fold(0, |number, at| number << 8 | byte(from + at))
    };
    let slot = i32::try_from(number(0) & 0x7fff_ffff).expect("31 bits").max(1);
    let encoded = ids.encode(slot, number(4) << 15);
    assert_eq!(ids.decode(&encoded), Some(slot));
    if slot < i32::MAX {
        assert!(encoded < ids.encode(slot + 1, number(4) << 15));
    }
}

/// The data of a job, which any pg-boss client may have written.
pub fn job(data: &[u8]) {
    let Ok(data) = std::str::from_utf8(data) else { return };
    for kind in [Kind::Flow, Kind::Step] {
        let Ok(delivery) = Delivery::from_data(kind, None, 1, "job", data) else { continue };
        check_headers(&delivery);
        let message = Message {
            kind,
            id: delivery.id.clone(),
            queue_name: delivery.queue_name.clone(),
            idempotency_key: delivery.idempotency_key.clone(),
            message_id: delivery.message_id.clone(),
            body: delivery.body.clone(),
            headers: delivery.headers.clone(),
            delay: None,
        };
        let again = match message.to_data() {
            Ok(data) => Delivery::from_data(kind, None, 1, "job", &data).expect("our own"),
            Err(error) => {
                assert!(data.contains("\\u0000"), "{error}");
                continue;
            }
        };
        assert_eq!(format!("{again:?}"), format!("{delivery:?}"));
    }
}

fn check_headers(delivery: &Delivery) {
    let headers = delivery.headers();
    let decoded = |name: &str| percent_decode(headers[name].as_bytes()).collect::<Vec<_>>();
    assert_eq!(decoded("x-vqs-queue-name"), delivery.queue_name.as_bytes());
    assert_eq!(decoded("x-vqs-message-id"), delivery.message_id.as_bytes());
    assert_eq!(headers["x-vqs-message-attempt"], delivery.attempt.to_string());
    assert!(!headers.contains_key(TOKEN_HEADER), "whoever enqueues does not let himself in");
    assert!(!headers.contains_key("x-workflow-foreign-queue"));
    for name in ["content-length", "transfer-encoding", "host"] {
        assert!(!headers.contains_key(name), "{name}");
    }
    for (name, _) in &headers {
        assert_eq!(headers.get_all(name).iter().count(), 1, "{name}");
    }
}

/// The body of a message: whom is it about?
pub fn message(data: &[u8]) {
    let of = |kind, idempotency_key: Option<&str>| Message {
        kind,
        id: "a".to_owned(),
        queue_name: "__wkf_workflow_a".to_owned(),
        idempotency_key: idempotency_key.map(str::to_owned),
        message_id: "msg_1".to_owned(),
        body: data.to_owned(),
        headers: Vec::new(),
        delay: None,
    };
    let body = serde_json::from_slice::<Value>(data).ok();
    let said = |name: &str| body.as_ref().and_then(|body| body.get(name)?.as_str().map(str::to_owned));
    match of(Kind::Flow, None).key_and_group() {
        Ok((key, group)) => {
            assert_eq!(key, group);
            assert!((1..=LONGEST_ID).contains(&key.len()) && !key.contains('\0'));
            let ids = [said("runId"), said("workflowRunId"), Some("msg_1".to_owned())];
            // A name that is given twice, or deep nesting, is read differently by the two.
            assert!(body.is_none() || ids.contains(&Some(key.clone())) || is_odd(data), "{key:?}");
        }
        Err(Error::Invalid(_)) => {}
        Err(other) => panic!("{other:?}"),
    }
    if let Ok((key, _)) = of(Kind::Step, Some("step_1")).key_and_group() {
        assert_eq!(key, "step_1");
    }
    let stored = of(Kind::Step, None).to_data().expect("any bytes can be a body");
    let delivery = Delivery::from_data(Kind::Step, None, 1, "job", &stored).expect("our own");
    assert_eq!(delivery.body, data);
}

fn is_odd(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    // `runId` can be spelt with escapes.
    text.matches("unId").count() > 1 || text.contains('\\') || text.trim_start().starts_with('[')
}

/// The id that a client chose for a new run.
pub fn run_id(data: &[u8]) {
    let Ok(run_id) = std::str::from_utf8(data) else { return };
    if check_new_run_id(run_id, NOW_MS).is_err() {
        return;
    }
    let ulid = run_id.strip_prefix("wrun_").unwrap_or(run_id);
    assert_eq!(ulid.len(), 26, "{run_id:?}");
    let digit = |byte: u8| "0123456789ABCDEFGHJKMNPQRSTVWXYZ".find(byte.to_ascii_uppercase() as char);
    let time = ulid.bytes().take(10).fold(0, |time: i128, byte| {
        time * 32 + i128::try_from(digit(byte).expect("Crockford's alphabet")).expect("below 32")
    });
    assert!((time - i128::from(NOW_MS)).abs() <= DAY_MS, "{run_id:?} is of {time}");
}

const URL: &str = "https://app.example/.well-known/workflow/v1/step";
const BODY: &[u8] = b"{\"runId\":\"wrun_1\"}";

/// A token as it is; the claims of a token that was signed; and the same after a change of it.
pub fn signature(data: &[u8]) {
    let keys = ["current".to_owned(), "next".to_owned()];
    if let Ok(token) = std::str::from_utf8(data) {
        assert!(verify(&keys, token, |url| url == URL, NOW_SECONDS).is_err(), "forged: {token}");
    }
    let Some((change, claims)) = data.split_first_chunk::<3>() else { return };
    let header = URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
    let token =
        sign(&keys[usize::from(change[2] % 2)], &format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims)));
    // What is not looked at may hold half a character, which this reader refuses.
    if let (Ok(signed), Ok(claims)) =
        (verify(&keys, &token, |url| url == URL, NOW_SECONDS), serde_json::from_slice::<Value>(claims))
    {
        assert_eq!((&claims["iss"], &claims["sub"]), (&"Upstash".into(), &URL.into()));
        assert!(claims["exp"].as_i64().expect("a number") > NOW_SECONDS - 10);
        assert!(claims["nbf"].as_i64().is_none_or(|nbf| nbf <= NOW_SECONDS + 10));
        let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(BODY));
        let same = claims["body"].as_str().expect("a text").trim_end_matches('=') == hash;
        assert_eq!(signed.accept(BODY).is_ok(), same);
    }
    assert!(verify(&[], &token, |url| url == URL, NOW_SECONDS).is_err(), "without a key");
    assert!(verify(&["other".to_owned()], &token, |url| url == URL, NOW_SECONDS).is_err(), "another's key");

    let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % token.len();
    let mut changed = token.into_bytes();
    changed[at] = if changed[at] == change[2] { change[2] ^ 1 } else { change[2] };
    if let Ok(changed) = String::from_utf8(changed) {
        assert!(
            verify(&keys, &changed, |url| url == URL, NOW_SECONDS).is_err(),
            "tampered at {at}: {changed}"
        );
    }
}

fn sign(key: &str, signed: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("any length will do");
    let signature = mac.chain_update(signed.as_bytes()).finalize().into_bytes();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The setting of the security tokens, and what a stranger offers.
pub fn token(data: &[u8]) {
    let Some([setting, offered]) = parts(data) else { return };
    let Ok(tokens) = Tokens::parse(Some(setting)) else { return };
    let mut listed: Vec<&str> = setting.split(',').map(str::trim).filter(|token| !token.is_empty()).collect();
    if listed.is_empty() {
        listed.push(DEFAULT_TOKEN);
    }
    assert_eq!(tokens.first(), listed[0]);
    assert_eq!(tokens.accept(offered), listed.contains(&offered));
    assert!(listed.iter().all(|token| tokens.accept(token)));
    assert!(!tokens.accept("") && !tokens.accept(&format!("{} ", listed[0])));
    if listed.contains(&DEFAULT_TOKEN) {
        assert!(check_tokens(&tokens, false).is_err());
    }
    assert!(check_tokens(&tokens, true).is_ok());
    assert_eq!(proxy::token(&tokens).expect("a header").as_bytes(), listed[0].as_bytes());
}
