//! Any bytes as the body of a request, against a parser that builds a tree.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| claude_code_balancer_fuzz::check("scan", bytes));
