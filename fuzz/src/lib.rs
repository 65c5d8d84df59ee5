//! What must hold for any input: one check for each fuzz target. A check panics where its invariant is broken; one that
//! needs what a room keeps to itself is that room's own `check_any`.
//!
//! The tests of the balancer include this file too, and replay the corpora with it.

use claude_code_balancer::{chunked, config, route, upstream};

mod events;
mod gate;
mod limits;
mod outbound;
mod pasted;
mod scan;
mod token;
mod url;
mod verdict;

/// Panics where the invariant does not hold.
pub type Check = fn(&[u8]);

/// Each target with its check.
pub const TARGETS: [(&str, Check); 14] = [
    ("config", config::check_any),
    ("events", events::check),
    ("gate", gate::check),
    ("glob", route::glob::check_any),
    ("limits", limits::check),
    ("outbound", outbound::check),
    ("pasted", pasted::check),
    ("scan", scan::check),
    ("token_record", token::check_record),
    ("token_reply", token::check_reply),
    ("upstream_body", chunked::check_any),
    ("upstream_head", upstream::http1::check_any_head),
    ("url", url::check),
    ("verdict", verdict::check),
];

/// Checks an input of that target.
pub fn check(target: &str, bytes: &[u8]) {
    let (_, check) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target of that name");
    check(bytes);
}

/// Ways to cut bytes into pieces: one by one, and two that depend on the bytes, so that an input is nothing but itself.
fn cuts(bytes: &[u8]) -> [Vec<&[u8]>; 3] {
    let seed = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    let with = |mut dice: u64, most: u64| {
        let (mut pieces, mut rest) = (Vec::new(), bytes);
        while !rest.is_empty() {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            let (piece, after) = rest.split_at(usize::try_from(dice % most).unwrap_or(1).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces
    };
    [bytes.chunks(1).collect(), with(seed | 1, 9), with(seed | 1, 90)]
}
