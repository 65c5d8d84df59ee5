//! What tests stand on: a client that sees every byte, a strict reader of event streams, certificates.
#![allow(dead_code, unused_imports, unreachable_pub, missing_docs, reason = "each behaviour uses its part of this")]

pub mod accounts;
pub mod balancer;
pub mod binary;
mod buffer;
pub mod canaries;
mod client;
#[cfg(target_os = "linux")]
pub mod disk;
#[cfg(unix)]
pub mod edits;
pub mod egress;
pub mod endpoints;
pub mod frames;
#[cfg(unix)]
pub mod kills;
pub mod ordeal;
pub mod payloads;
#[cfg(unix)]
pub mod race;
pub mod running;
pub mod sse;
pub mod tls;

pub use balancer::Balancer;
pub use buffer::{Buffer, overhear};
pub use client::{Client, Head, Reply};

use std::future::Future;
use std::time::Duration;

/// A test that waits for an event that never comes must fail, not hang.
pub async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(10), event).await {
        Ok(value) => value,
        Err(_) => panic!("did not happen within 10 s: {what}"),
    }
}

/// The last answer on a connection, and nothing behind it.
pub async fn last(client: &mut Client, what: &str) -> Reply {
    let reply = soon(what, client.read_to_end()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(reply.header("connection"), Some("close"), "{what}");
    assert_eq!(soon(what, client.raw_to_end()).await, (bytes::Bytes::new(), None), "{what}");
    reply
}
