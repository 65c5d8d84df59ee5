//! Any bytes as a chunked body, against a simple decoder.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| claude_code_balancer_fuzz::check("upstream_body", bytes));
