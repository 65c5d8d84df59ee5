//! Behaviour over real sockets, one file each.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

mod config;
mod lab;
mod lab_peers;
mod lab_tunnel;
mod readme;
mod support;
