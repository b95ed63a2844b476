//! Configuration: option > environment > default, in one place.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use crate::auth::{Tokens, check_tokens};
use crate::error::{Error, Result};

pub const DEFAULT_URL: &str = "postgres://world:world@localhost:5432/world";
pub const DEFAULT_SCHEMA: &str = "workflow_world";
/// Never `pgboss`: the official package drops a schema of that name when it starts.
pub const DEFAULT_QUEUE_SCHEMA: &str = "workflow_pgboss";
pub const DEFAULT_JOB_PREFIX: &str = "workflow_";
pub const DEFAULT_CONCURRENCY: u32 = 10;
/// The default of the limit, in multiples of the concurrency.
const CONCURRENCY_LIMIT_FACTOR: u32 = 10;
pub const DEFAULT_MAX_LOST_LEASES: u32 = 10;
pub const DEFAULT_POOL_SIZE: u32 = 10;
pub const DEFAULT_APP_PORT: u16 = 3000;
pub const DEFAULT_IDLE_TIMEOUT_SECONDS: u32 = 60;

pub const DEFAULT_QSTASH_URL: &str = "https://qstash.upstash.io";
/// What every plan allows.
const DEFAULT_QSTASH_RETRIES: u32 = 3;
/// 2 s, 40 s, 13 min: soon, and in sum longer than the 10 minutes for which QStash remembers a
/// deduplication id, so that a message which it gave up can be sent again.
const DEFAULT_QSTASH_RETRY_DELAY: &str = "min(900000, 2000 * pow(20, retried))";
/// What every plan allows: 7 days.
const DEFAULT_QSTASH_MAX_DELAY_SECONDS: u32 = 7 * 24 * 60 * 60;

/// What the caller of `createWorld()` or of a queue factory passed. Absent means: see the environment.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Options {
    pub connection_string: Option<String>,
    pub listen_connection_string: Option<String>,
    pub security_token: Option<String>,
    pub schema: Option<String>,
    pub queue_schema: Option<String>,
    pub max_pool_size: Option<f64>,
    pub statement_cache: Option<bool>,
    pub job_prefix: Option<String>,
    pub queue_concurrency: Option<f64>,
    pub queue_concurrency_limit: Option<f64>,
    pub keep_completed: Option<bool>,
    pub max_lost_leases: Option<f64>,
    pub base_url: Option<String>,
    pub http_proxy: Option<String>,
    pub port: Option<f64>,
    pub namespace: Option<String>,
    pub listen: Option<bool>,
    pub idle_timeout_seconds: Option<f64>,
    /// Present where the queue is QStash.
    pub qstash: Option<QStashOptions>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QStashOptions {
    pub token: Option<String>,
    pub target_url: Option<String>,
    pub current_signing_key: Option<String>,
    pub next_signing_key: Option<String>,
    pub base_url: Option<String>,
    pub retries: Option<f64>,
    pub retry_delay: Option<String>,
    pub max_delay_seconds: Option<f64>,
}

/// A snapshot of `process.env`, taken on the JavaScript thread.
pub type Environment = HashMap<String, String>;

#[derive(Clone)]
pub struct Config {
    pub database: DatabaseConfig,
    pub queue: QueueConfig,
    pub tokens: Tokens,
    pub target: Target,
    pub qstash: Option<QStashConfig>,
    /// `NODE_ENV` says that this is a machine of a developer or of tests. Without it, it is not.
    pub development: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DatabaseConfig {
    pub url: String,
    /// Where LISTEN goes when `url` is a transaction pooler.
    pub listen_url: Option<String>,
    pub schema: String,
    pub queue_schema: String,
    pub max_pool_size: u32,
    /// Off for poolers that do not know prepared statements.
    pub statement_cache: bool,
    /// Off where nothing may hold a connection: readers of streams poll.
    pub listen: bool,
    /// How long a connection may rest.
    pub idle_timeout_seconds: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueueConfig {
    /// The namespace included.
    pub job_prefix: String,
    /// Deliveries at the same time, for flows and for steps each.
    pub concurrency: u32,
    /// The same while all of those only wait for something, and due messages wait for them.
    pub concurrency_limit: u32,
    pub keep_completed: bool,
    /// How often in a row the process may die that a message is delivered by.
    pub max_lost_leases: u32,
    /// Part of the queue names that deliveries carry: `__<namespace>_wkf_step_…`.
    pub namespace: Option<String>,
}

/// Where deliveries are posted to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub base_url: String,
    /// Through which HTTP proxy.
    pub http_proxy: Option<String>,
}

/// Where messages are published, and who may deliver them.
#[derive(Clone)]
pub struct QStashConfig {
    pub token: String,
    pub base_url: String,
    pub destination: Destination,
    /// The current key, then the next one. Without any, nothing is accepted.
    pub signing_keys: Vec<String>,
    pub retries: u32,
    pub retry_delay: String,
    /// What the plan allows; longer waits are chained.
    pub max_delay: Duration,
}

/// The URL that QStash posts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// An app with the SDK's routes.
    App(String),
    /// An endpoint of the user's own, which is told the queue by its path.
    Endpoint(String),
}

impl Config {
    pub fn resolve(options: &Options, environment: &Environment) -> Result<Self> {
        let env = |name: &str| environment.get(name).map(String::as_str).filter(|value| !value.is_empty());

        let url = options
            .connection_string
            .as_deref()
            .or_else(|| env("WORKFLOW_POSTGRES_URL"))
            .or_else(|| env("DATABASE_URL"))
            .unwrap_or(DEFAULT_URL);
        check_database_url("WORKFLOW_POSTGRES_URL (or connectionString)", url)?;
        let listen_url =
            options.listen_connection_string.as_deref().or_else(|| env("WORKFLOW_POSTGRES_LISTEN_URL"));
        if let Some(listen_url) = listen_url {
            check_database_url("WORKFLOW_POSTGRES_LISTEN_URL (or listenConnectionString)", listen_url)?;
        }

        let tokens = Tokens::parse(
            options.security_token.as_deref().or_else(|| env("WORKFLOW_POSTGRES_SECURITY_TOKEN")),
        )?;
        let namespace = options.namespace.as_deref().or_else(|| env("WORKFLOW_QUEUE_NAMESPACE"));
        if let Some(namespace) = namespace
            && !(namespace.starts_with(|c: char| c.is_ascii_lowercase())
                && namespace.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()))
        {
            return Err(Error::Configuration(format!(
                "WORKFLOW_QUEUE_NAMESPACE (or namespace) must be lowercase letters and digits, starting with a letter, not {namespace:?}"
            )));
        }

        let concurrency = number(
            "WORKFLOW_POSTGRES_WORKER_CONCURRENCY (or queueConcurrency)",
            options.queue_concurrency,
            env("WORKFLOW_POSTGRES_WORKER_CONCURRENCY"),
            DEFAULT_CONCURRENCY,
            1..=1000,
        )?;
        Ok(Self {
            database: DatabaseConfig {
                url: url.to_owned(),
                listen_url: listen_url.map(str::to_owned),
                schema: identifier(
                    "WORKFLOW_POSTGRES_SCHEMA (or schema)",
                    options
                        .schema
                        .as_deref()
                        .or_else(|| env("WORKFLOW_POSTGRES_SCHEMA"))
                        .unwrap_or(DEFAULT_SCHEMA),
                )?,
                queue_schema: identifier(
                    "WORKFLOW_POSTGRES_QUEUE_SCHEMA (or queueSchema)",
                    options
                        .queue_schema
                        .as_deref()
                        .or_else(|| env("WORKFLOW_POSTGRES_QUEUE_SCHEMA"))
                        .unwrap_or(DEFAULT_QUEUE_SCHEMA),
                )?,
                max_pool_size: number(
                    "WORKFLOW_POSTGRES_MAX_POOL_SIZE (or maxPoolSize)",
                    options.max_pool_size,
                    env("WORKFLOW_POSTGRES_MAX_POOL_SIZE"),
                    DEFAULT_POOL_SIZE,
                    1..=1000,
                )?,
                statement_cache: match (options.statement_cache, env("WORKFLOW_POSTGRES_STATEMENT_CACHE")) {
                    (Some(on), _) => on,
                    (None, None | Some("true" | "1")) => true,
                    (None, Some("false" | "0")) => false,
                    (None, Some(other)) => {
                        return Err(Error::Configuration(format!(
                            "WORKFLOW_POSTGRES_STATEMENT_CACHE must be \"true\" or \"false\", not {other:?}"
                        )));
                    }
                },
                listen: options.listen.unwrap_or(true),
                idle_timeout_seconds: number(
                    "idleTimeoutSeconds",
                    options.idle_timeout_seconds,
                    None,
                    DEFAULT_IDLE_TIMEOUT_SECONDS,
                    1..=86_400,
                )?,
            },
            queue: QueueConfig {
                job_prefix: job_prefix(
                    options
                        .job_prefix
                        .as_deref()
                        .or_else(|| env("WORKFLOW_POSTGRES_JOB_PREFIX"))
                        .unwrap_or(DEFAULT_JOB_PREFIX),
                    namespace,
                )?,
                concurrency,
                concurrency_limit: number(
                    "WORKFLOW_POSTGRES_WORKER_CONCURRENCY_LIMIT (or queueConcurrencyLimit)",
                    options.queue_concurrency_limit,
                    env("WORKFLOW_POSTGRES_WORKER_CONCURRENCY_LIMIT"),
                    concurrency * CONCURRENCY_LIMIT_FACTOR,
                    concurrency..=10_000,
                )?,
                keep_completed: options.keep_completed.unwrap_or(false),
                max_lost_leases: number(
                    "WORKFLOW_POSTGRES_MAX_LOST_LEASES (or maxLostLeases)",
                    options.max_lost_leases,
                    env("WORKFLOW_POSTGRES_MAX_LOST_LEASES"),
                    DEFAULT_MAX_LOST_LEASES,
                    1..=1000,
                )?,
                namespace: namespace.map(str::to_owned),
            },
            tokens,
            target: target(options, &env)?,
            qstash: options.qstash.as_ref().map(|options| qstash(options, &env)).transpose()?,
            development: matches!(env("NODE_ENV"), Some("development" | "test")),
        })
    }

    /// Whether a setting asks for TLS with a server that must prove who it is.
    pub fn uses_tls(&self) -> bool {
        let Self { database, target, qstash, .. } = self;
        let database_urls = [Some(&database.url), database.listen_url.as_ref()];
        let http_urls = [
            Some(&target.base_url),
            target.http_proxy.as_ref(),
            qstash.as_ref().map(|qstash| &qstash.base_url),
        ];
        http_urls.into_iter().flatten().any(|url| url.starts_with("https:"))
            || database_urls.into_iter().flatten().any(|url| verifies_server(url))
    }

    /// What must hold before anything is executed.
    pub fn check_start(&self) -> Result<()> {
        check_tokens(&self.tokens, self.development)
    }
}

fn target<'a>(options: &Options, env: &impl Fn(&str) -> Option<&'a str>) -> Result<Target> {
    let name = "WORKFLOW_POSTGRES_APP_URL (or baseUrl)";
    let explicit = options.base_url.as_deref().filter(|url| !url.is_empty());
    let base_url = match (explicit, options.port) {
        (Some(url), _) => url.to_owned(),
        (None, Some(port)) => local_url(port_number("port", port)?),
        (None, None) => match env("WORKFLOW_POSTGRES_APP_URL") {
            Some(url) => url.to_owned(),
            None => {
                let port = number(
                    "WORKFLOW_POSTGRES_APP_PORT",
                    None,
                    env("WORKFLOW_POSTGRES_APP_PORT").or_else(|| env("PORT")),
                    u32::from(DEFAULT_APP_PORT),
                    1..=65535,
                )?;
                local_url(port)
            }
        },
    };
    let http_proxy = options
        .http_proxy
        .as_deref()
        .filter(|url| !url.is_empty())
        .or_else(|| env("WORKFLOW_POSTGRES_HTTP_PROXY"))
        .map(|url| http_url("WORKFLOW_POSTGRES_HTTP_PROXY (or httpProxy)", url))
        .transpose()?;
    Ok(Target { base_url: http_url(name, &base_url)?, http_proxy })
}

fn qstash<'e>(options: &QStashOptions, env: &impl Fn(&str) -> Option<&'e str>) -> Result<QStashConfig> {
    let setting = |option: &Option<String>, name| {
        option.as_deref().filter(|value| !value.is_empty()).or_else(|| env(name)).map(str::to_owned)
    };
    let required = |option, variable, name| {
        setting(option, variable).ok_or_else(|| {
            Error::Configuration(format!("{variable} (or {name}) is not set: without it there is no queue"))
        })
    };
    let token = required(&options.token, "QSTASH_TOKEN", "qstash.token")?;
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::Configuration(
            "QSTASH_TOKEN (or qstash.token) may hold visible ASCII characters only".to_owned(),
        ));
    }
    let target = required(&options.target_url, "QSTASH_TARGET_URL", "qstash.targetUrl")?;
    let target = http_url("QSTASH_TARGET_URL (or qstash.targetUrl)", &target)?;
    let base_url = setting(&options.base_url, "QSTASH_URL").unwrap_or_else(|| DEFAULT_QSTASH_URL.to_owned());
    let base_url = http_url("QSTASH_URL (or qstash.baseUrl)", &base_url)?;
    let signing_keys = [
        setting(&options.current_signing_key, "QSTASH_CURRENT_SIGNING_KEY"),
        setting(&options.next_signing_key, "QSTASH_NEXT_SIGNING_KEY"),
    ];
    let destination = match target.rsplit('/').next() {
        Some("queue") => Destination::Endpoint(target),
        _ => Destination::App(target),
    };
    let max_delay_seconds = number(
        "qstash.maxDelaySeconds",
        options.max_delay_seconds,
        None,
        DEFAULT_QSTASH_MAX_DELAY_SECONDS,
        1..=u32::MAX,
    )?;
    Ok(QStashConfig {
        token,
        base_url,
        destination,
        signing_keys: signing_keys.into_iter().flatten().collect(),
        retries: number("qstash.retries", options.retries, None, DEFAULT_QSTASH_RETRIES, 0..=100)?,
        retry_delay: options.retry_delay.clone().unwrap_or_else(|| DEFAULT_QSTASH_RETRY_DELAY.to_owned()),
        max_delay: Duration::from_secs(max_delay_seconds.into()),
    })
}

/// Without the slashes at its end.
fn http_url(name: &str, url: &str) -> Result<String> {
    let parsed =
        Url::parse(url).map_err(|error| Error::Configuration(format!("{name} is not a URL: {error}")))?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
        return Err(Error::Configuration(format!(
            "{name} must be an http:// or https:// URL with a host, such as http://localhost:3000"
        )));
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(Error::Configuration(format!("{name} may have neither parameters nor a fragment")));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

fn local_url(port: u32) -> String {
    format!("http://localhost:{port}")
}

fn port_number(name: &str, port: f64) -> Result<u32> {
    number(name, Some(port), None, 0, 1..=65535)
}

fn number(
    name: &str,
    option: Option<f64>,
    env: Option<&str>,
    default: u32,
    range: std::ops::RangeInclusive<u32>,
) -> Result<u32> {
    let given = match (option, env) {
        (Some(number), _) => number.to_string(),
        (None, Some(text)) => text.trim().to_owned(),
        (None, None) => return Ok(default),
    };
    given.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        Error::Configuration(format!(
            "{name} must be a whole number from {} to {}, not {given:?}",
            range.start(),
            range.end()
        ))
    })
}

/// A name that is safe as a quoted identifier everywhere, and that needs no quotes in psql.
fn identifier(name: &str, value: &str) -> Result<String> {
    let valid = value.len() <= 48
        && value.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && value.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        && !value.starts_with("pg_");
    if !valid {
        return Err(Error::Configuration(format!(
            "{name} must be 1 to 48 lowercase letters, digits and underscores, not starting with a digit or \"pg_\", not {value:?}"
        )));
    }
    if matches!(value, "pgboss" | "public" | "workflow" | "information_schema") {
        return Err(Error::Configuration(format!(
            "{name} cannot be {value:?}: other programs keep their tables there (the official package even drops a schema named pgboss)"
        )));
    }
    Ok(value.to_owned())
}

/// A namespace has queues of its own: its messages are named for the handlers of one build.
fn job_prefix(value: &str, namespace: Option<&str>) -> Result<String> {
    let valid = value.len() <= 64
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/'));
    if !valid {
        return Err(Error::Configuration(format!(
            "WORKFLOW_POSTGRES_JOB_PREFIX (or jobPrefix) must be at most 64 letters, digits and the characters _ - . /, not {value:?}"
        )));
    }
    Ok(match namespace {
        Some(namespace) => format!("{value}{namespace}_"),
        None => value.to_owned(),
    })
}

/// Never echoes the URL: it holds a password.
fn check_database_url(name: &str, url: &str) -> Result<()> {
    let valid = Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "postgres" | "postgresql"));
    if valid {
        return Ok(());
    }
    Err(Error::Configuration(format!(
        "{name} is not a PostgreSQL URL such as postgres://user:password@host:5432/database (percent-encode special characters in the password)"
    )))
}

/// Whether a database URL, or the environment that PostgreSQL's clients know, asks to verify the server.
fn verifies_server(url: &str) -> bool {
    PgConnectOptions::from_str(url)
        .is_ok_and(|options| matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull))
}

/// An HTTP URL for messages: without what may let somebody in.
pub fn without_secrets(url: &str) -> String {
    // A reference such as that of a redirect has no host, and may have parameters.
    let Ok(mut parsed) = Url::parse(url) else {
        return url.split(['?', '#']).next().unwrap_or_default().to_owned();
    };
    parsed.set_query(None);
    parsed.set_fragment(None);
    // These fail for URLs without a host, which have neither.
    let _ = parsed.set_username("");
    let _ = parsed.set_password(None);
    parsed.as_str().trim_end_matches('/').to_owned()
}

/// A connection string without its password, for messages.
pub fn redact(url: &str) -> String {
    match Url::parse(url) {
        Ok(mut url) => {
            if url.password().is_some() {
                // Cannot fail: only URLs without a host refuse a password, and those have none.
                let _ = url.set_password(Some("***"));
            }
            if url.query().is_some_and(|query| query.contains("password")) {
                url.set_query(None);
            }
            url.to_string()
        }
        Err(_) => "(not a URL)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(options: Options, env: &[(&str, &str)]) -> Result<Config> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config::resolve(&options, &env)
    }

    fn message(result: Result<Config>) -> String {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn an_option_beats_the_environment_and_that_the_default() {
        let env = [("WORKFLOW_POSTGRES_URL", "postgres://env/db"), ("DATABASE_URL", "postgres://other/db")];
        let option = Options { connection_string: Some("postgres://option/db".into()), ..Options::default() };
        assert_eq!(resolve(option, &env).unwrap().database.url, "postgres://option/db");
        assert_eq!(resolve(Options::default(), &env).unwrap().database.url, "postgres://env/db");
        assert_eq!(resolve(Options::default(), &env[1..]).unwrap().database.url, "postgres://other/db");
        let default = resolve(Options::default(), &[]).unwrap();
        assert_eq!(default.database.url, DEFAULT_URL);
        assert_eq!(default.queue.job_prefix, "workflow_");
        assert_eq!(default.queue.concurrency, 10);
        assert_eq!(default.target.base_url, "http://localhost:3000");
    }

    #[test]
    fn the_target_is_the_url_or_a_local_port() {
        let of = |options, env: &[(&str, &str)]| resolve(options, env).unwrap().target.base_url;
        assert_eq!(
            of(Options::default(), &[("WORKFLOW_POSTGRES_APP_URL", "https://app/base/")]),
            "https://app/base"
        );
        assert_eq!(
            of(Options::default(), &[("WORKFLOW_POSTGRES_APP_PORT", "4000")]),
            "http://localhost:4000"
        );
        assert_eq!(of(Options::default(), &[("PORT", "5000")]), "http://localhost:5000");
        let port = Options { port: Some(6000.0), ..Options::default() };
        assert_eq!(of(port, &[("WORKFLOW_POSTGRES_APP_URL", "https://app")]), "http://localhost:6000");
    }

    #[test]
    fn a_wrong_setting_is_named_and_nothing_secret_is_echoed() {
        assert!(
            message(resolve(Options::default(), &[("WORKFLOW_POSTGRES_WORKER_CONCURRENCY", "many")]))
                .contains("WORKFLOW_POSTGRES_WORKER_CONCURRENCY")
        );
        let wrong =
            message(resolve(Options::default(), &[("WORKFLOW_POSTGRES_URL", "mysql://u:hunter2@h/db")]));
        assert!(wrong.contains("WORKFLOW_POSTGRES_URL") && !wrong.contains("hunter2"));
    }

    #[test]
    fn hostile_schema_names_and_prefixes_are_refused() {
        for schema in [
            "",
            "a\"; DROP SCHEMA public",
            "Upper",
            "1abc",
            "pg_x",
            "pgboss",
            "public",
            "workflow",
            "a b",
            &"a".repeat(49),
        ] {
            let options = Options { schema: Some(schema.to_owned()), ..Options::default() };
            assert!(resolve(options, &[]).is_err(), "{schema:?}");
        }
        for prefix in ["a'b", "a b", "a\0", "ä", &"a".repeat(65)] {
            let options = Options { job_prefix: Some(prefix.to_owned()), ..Options::default() };
            assert!(resolve(options, &[]).is_err(), "{prefix:?}");
        }
    }

    #[test]
    fn a_url_in_a_message_holds_nothing_that_lets_in() {
        assert_eq!(without_secrets("http://u:hunter2@h:1/base/?key=hunter2#x"), "http://h:1/base");
        assert_eq!(without_secrets("https://hunter2@h/"), "https://h");
        assert_eq!(without_secrets("/login?next=hunter2"), "/login");
    }

    #[test]
    fn a_redacted_url_holds_no_password() {
        assert_eq!(redact("postgres://u:p%40ss@h:1/db"), "postgres://u:***@h:1/db");
        assert!(!redact("postgres://u@h/db?password=hunter2").contains("hunter2"));
    }
}
