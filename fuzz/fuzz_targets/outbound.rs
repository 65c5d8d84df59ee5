//! Any bytes as the head of a client's request, on its way to each kind of provider.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| claude_code_balancer_fuzz::check("outbound", bytes));
