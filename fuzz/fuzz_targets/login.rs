//! Any text as a pasted code, and any bytes as an authorization server's reply.
#![no_main]

use claude_code_balancer::oauth::{parse_pasted, reply::Reply};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = parse_pasted(&String::from_utf8_lossy(bytes));
    let _ = Reply::parse(bytes);
});
