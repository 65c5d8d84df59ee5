//! Any pattern on any text, against a simple matcher.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| claude_code_balancer_fuzz::check("glob", bytes));
