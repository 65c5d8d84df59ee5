//! Claude Code Provider Balancer.

pub mod config;
pub mod health;
pub mod lab;
pub mod provider;
pub mod route;
pub mod secret;
