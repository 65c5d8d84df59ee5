//! Any bytes as the head of an answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| claude_code_balancer_fuzz::check("upstream_head", bytes));
