//! Any bytes as the head of a client's request, at the gate.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| claude_code_balancer_fuzz::check("gate", bytes));
