//! Behaviour over real sockets, one file each.

mod lab;
mod lab_tunnel;
mod support;
