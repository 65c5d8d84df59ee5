//! Any bytes as a stored token.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| claude_code_balancer_fuzz::check("token_record", bytes));
