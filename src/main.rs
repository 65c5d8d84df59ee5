//! claude-code-balancer
fn main() {}
