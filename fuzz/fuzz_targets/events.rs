//! Any bytes as an event stream, against the specification's algorithm.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| claude_code_balancer_fuzz::check("events", bytes));
