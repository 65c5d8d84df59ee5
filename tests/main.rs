//! Behaviour over real sockets, one file each.
fn main() {}
