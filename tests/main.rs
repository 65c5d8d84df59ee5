//! Behaviour over real sockets, one file each.

mod config;
