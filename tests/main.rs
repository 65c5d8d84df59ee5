//! Behaviour over real sockets, one file each.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking; clippy does not see that the functions beside the tests belong to them"
)]

mod config;
