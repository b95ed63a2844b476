//! Where deliveries go.

pub mod http;

pub use http::{HttpProxy, Response};
