//! Claude Code Provider Balancer.

pub mod config;
pub mod health;
pub mod provider;
pub mod route;
pub mod secret;
pub mod upstream;
