//! Claude Code Provider Balancer.

pub mod config;
pub mod health;
pub mod provider;
pub mod proxy;
pub mod route;
pub mod secret;
