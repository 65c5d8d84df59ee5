//! Claude Code Provider Balancer.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod gate;
pub mod health;
pub mod lab;
pub mod log;
pub mod metrics;
pub mod provider;
pub mod proxy;
pub mod route;
pub mod secret;
pub mod server;
pub mod upstream;
