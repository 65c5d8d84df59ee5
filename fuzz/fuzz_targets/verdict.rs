//! Any answer of a provider: status, fields and an error body.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| claude_code_balancer_fuzz::check("verdict", bytes));
