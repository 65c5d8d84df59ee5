//! Any bytes as the reply of an authorization server.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| claude_code_balancer_fuzz::check("token_reply", bytes));
