//! The core of `@workflow/world-postgres`: a PostgreSQL World for the `workflow` SDK.
//!
//! Dependencies point downwards: `node` → {`queue`, `storage`, `streams`, `proxy`} → `database` →
//! {`config`, `error`, `tasks`}. Only `node` knows napi; without that feature the core is an ordinary library.

#![deny(unsafe_code)]
#![warn(clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod auth;
pub mod config;
pub mod database;
pub mod error;
pub mod ids;
#[cfg(all(feature = "node", not(test)))]
mod node;
pub mod proxy;
pub mod queue;
pub mod signature;
pub mod storage;
pub mod streams;
pub mod tasks;
pub mod tls;
