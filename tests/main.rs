//! Behaviour over real sockets, one file each.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

mod cli;
mod cli_accounts;
mod config;
mod config_random;
mod conformance;
mod connections;
mod crowd;
mod departure;
mod drain;
mod egress;
mod egress_more;
mod egress_refused;
mod exhausted;
mod failover;
mod failover_committed;
mod failover_policy;
mod failover_transport;
mod fidelity;
mod fidelity_paths;
mod framing;
mod fuzzed;
mod gate;
mod hostile;
mod http2;
mod http2_frames;
#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "a library there")]
mod invariants;
mod lab;
mod lab_peers;
mod lab_tunnel;
mod layers;
mod live;
mod oauth_core;
mod oauth_endpoints;
mod oauth_inputs;
mod oauth_kill;
mod oauth_login;
mod oauth_ordeal;
mod oauth_page;
mod oauth_path;
mod oauth_secrecy;
mod oauth_storage;
mod ordering;
mod readme;
mod schema;
mod secrecy;
mod slow;
mod support;
mod surface;
mod tls;
mod unlucky;
mod vault;
mod vault_keyring;
