//! The balancer's own paths: what it is, how it is, what it was configured to. One table of paths and methods.

mod entry;
pub mod explain;
mod oauth;
mod providers;
mod reply;

pub use providers::problem;
pub use reply::protect;

use std::sync::Arc;

use http::request::Parts;
use http::{Method, Response, StatusCode};
use serde_json::json;

use crate::config::{Live, LogLevel, NEEDS_RESTART, Outcome, Problem, Reading, Report, Severity, Snapshot};
use crate::health::{Health, Now};
use crate::inflow::Body;
use crate::log::Log;
use crate::metrics::{self, Metrics};
use crate::oauth::Accounts;
use crate::proxy::reject::Error;
use crate::proxy::relay::Outbound;
use crate::upstream::Upstream;

/// The name under which the service introduces itself.
const SERVICE: &str = "Claude Code Provider Balancer";

/// What these paths show and change.
pub struct Admin {
    /// The configuration in force.
    pub live: Arc<Live>,
    /// Records of providers and accounts.
    pub health: Arc<Health>,
    /// Connections to providers.
    pub upstream: Arc<Upstream>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Accounts.
    pub accounts: Arc<Accounts>,
    /// `http://host:port` of this balancer, for instructions.
    pub endpoint: String,
    /// Follows `log_level`.
    pub log: Option<Arc<Log>>,
}

/// What a path is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Index,
    Hello,
    Health,
    Providers,
    Reload,
    Metrics,
    GenerateUrl,
    ExchangeCode,
    Accounts,
    Refresh,
    Remove,
    RemoveAll,
}

/// The page of a path and its methods, for `Allow`; HEAD goes wherever GET does.
fn page(path: &str) -> Option<(Page, &'static [Method], &'static str)> {
    const GET: &[Method] = &[Method::GET, Method::HEAD];
    const POST: &[Method] = &[Method::POST];
    const DELETE: &[Method] = &[Method::DELETE];
    let account =
        |prefix: &str| path.strip_prefix(prefix).is_some_and(|email| !email.is_empty() && !email.contains('/'));
    Some(match path {
        "/" => (Page::Index, GET, "GET, HEAD"),
        "/api/hello" => (Page::Hello, &[Method::HEAD], "HEAD"),
        "/health" => (Page::Health, GET, "GET, HEAD"),
        "/providers" => (Page::Providers, GET, "GET, HEAD"),
        "/providers/reload" => (Page::Reload, POST, "POST"),
        "/metrics" => (Page::Metrics, GET, "GET, HEAD"),
        oauth::GENERATE_URL => (Page::GenerateUrl, GET, "GET, HEAD"),
        oauth::EXCHANGE_CODE => (Page::ExchangeCode, POST, "POST"),
        "/oauth/status" => (Page::Accounts, GET, "GET, HEAD"),
        oauth::TOKENS => (Page::RemoveAll, DELETE, "DELETE"),
        _ if account(oauth::REFRESH) => (Page::Refresh, POST, "POST"),
        _ if account(oauth::TOKENS_OF) => (Page::Remove, DELETE, "DELETE"),
        _ => return None,
    })
}

/// The error for a path that nobody knows.
pub fn nothing_at(path: &str) -> Error {
    Error::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", crate::log::printable(path)))
}

/// The methods of a path of ours, for `Allow`.
pub fn methods(path: &str) -> Option<&'static str> {
    page(path).map(|(_, _, allow)| allow)
}

/// Who says so in another way than `dry_run=1` means it all the same.
fn is_dry_run(pair: &str) -> bool {
    let (name, value) = pair.split_once('=').unwrap_or((pair, "1"));
    name == "dry_run" && !["0", "false", "no"].contains(&value)
}

impl Admin {
    /// Answers a request that the gate let in.
    pub async fn handle(self: &Arc<Self>, snapshot: &Snapshot, head: &Parts, body: &mut Body) -> Response<Outbound> {
        let path = head.uri.path();
        let Some((page, methods, allow)) = page(path) else {
            return reply::protect(nothing_at(path).response(None));
        };
        if !methods.contains(&head.method) {
            return reply::protect(Error::method(allow).response(None));
        }
        match page {
            Page::Hello => reply::empty(),
            Page::Index => {
                let available = self.healthy(snapshot);
                let status = if available > 0 { "healthy" } else { "unhealthy" };
                reply::json(&json!({
                    "service": SERVICE,
                    "version": env!("CARGO_PKG_VERSION"),
                    "status": status,
                    "providers_available": available,
                }))
            }
            Page::Health => self.health_page(snapshot),
            Page::Providers => reply::json(&self.providers(snapshot)),
            Page::Reload => {
                let dry = head.uri.query().is_some_and(|query| query.split('&').any(is_dry_run));
                self.reload_page(dry).await
            }
            Page::Metrics => reply::text(StatusCode::OK, metrics::CONTENT_TYPE, self.metrics.render()),
            Page::GenerateUrl => self.generate_url(snapshot, head),
            Page::ExchangeCode => self.exchange_code(body).await,
            Page::Accounts => reply::json(&self.accounts_page(snapshot)),
            Page::Refresh => self.refresh(snapshot, path).await,
            Page::Remove => self.remove(path).await,
            Page::RemoveAll => self.remove_all().await,
        }
    }

    /// Reads the configuration again and puts what is valid into force. Whoever calls may block: files are read.
    ///
    /// # Errors
    /// Every problem of the file; what was in force stays.
    pub fn reload(&self) -> Result<Outcome, Report> {
        self.apply(self.live.read())
    }

    /// [`Admin::reload`] with what has been read of the file.
    ///
    /// # Errors
    /// Every problem of the file; what was in force stays.
    pub fn apply(&self, reading: Reading) -> Result<Outcome, Report> {
        let outcome = self.live.apply(reading).inspect_err(|report| {
            self.metrics.config_rejections.inc();
            tracing::warn!("the configuration was not accepted; what was in force stays");
            report.problems.iter().for_each(|problem| warn(problem, &report.file));
        })?;
        let snapshot = self.live.load();
        self.health.retain(snapshot.settings.health.clone(), &snapshot.providers);
        self.upstream.retain(&snapshot.providers);
        self.accounts.configure(&snapshot.settings);
        self.metrics.config_generation.set(i64::try_from(outcome.generation).unwrap_or(i64::MAX));
        if let Some(log) = &self.log {
            log.set_level(level(snapshot.settings.log_level));
        }
        let changes = spoken(&outcome.difference);
        tracing::info!(generation = outcome.generation, "configuration reloaded: {changes}");
        for change in outcome.difference.iter().filter(|change| change.ends_with(NEEDS_RESTART)) {
            tracing::warn!("not in force yet: {change}");
        }
        outcome.warnings.iter().for_each(|warning| warn(warning, &file_name(&snapshot)));
        Ok(outcome)
    }

    async fn reload_page(self: &Arc<Self>, dry: bool) -> Response<Outbound> {
        let admin = self.clone();
        let reading = tokio::task::spawn_blocking(move || if dry { admin.live.dry_run() } else { admin.reload() });
        let Ok(result) = reading.await else {
            let message = "the configuration could not be read";
            return reply::protect(Error::new(StatusCode::INTERNAL_SERVER_ERROR, message).response(None));
        };
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(report) => {
                let errors = report.problems.iter().filter(|problem| problem.severity == Severity::Error).count();
                let message = format!("Failed to reload configuration: {errors} problem(s)");
                let value = json!({
                    "status": "error",
                    "file": report.file,
                    "problems": providers::problems(&report),
                });
                return reply::error(Error::new(StatusCode::BAD_REQUEST, message), value);
            }
        };
        let snapshot = self.live.load();
        let warnings: Vec<_> = outcome.warnings.iter().map(providers::problem).collect();
        let message = if dry { "Nothing was changed" } else { "Provider configuration reloaded successfully" };
        reply::json(&json!({
            "status": "success",
            "message": message,
            "dry_run": dry,
            "generation": outcome.generation,
            "changes": outcome.difference,
            "warnings": warnings,
            "providers_count": snapshot.providers.len(),
            "healthy_providers": self.healthy(&snapshot),
        }))
    }

    fn health_page(&self, snapshot: &Snapshot) -> Response<Outbound> {
        let now = Now::read();
        if snapshot.providers.iter().any(|provider| self.entry(provider, now).can_serve) {
            return reply::json(&json!({ "status": "healthy" }));
        }
        let unhealthy = json!({ "status": "unhealthy" });
        reply::error(Error::new(StatusCode::SERVICE_UNAVAILABLE, "No healthy providers available"), unhealthy)
    }
}

/// The changes of an edit in one line; of many only the first, and how many there are.
fn spoken(changes: &[String]) -> String {
    const LIMIT: usize = 20;
    match changes.len() {
        0 => "nothing changed".into(),
        count if count > LIMIT => {
            let first: Vec<_> = changes.iter().take(LIMIT).map(String::as_str).collect();
            format!("{}; and {} more", first.join("; "), count - LIMIT)
        }
        _ => changes.join("; "),
    }
}

/// The level of the log in the words of `tracing`.
pub fn level(level: LogLevel) -> tracing::Level {
    match level {
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Warning => tracing::Level::WARN,
        LogLevel::Error | LogLevel::Critical => tracing::Level::ERROR,
    }
}

/// Puts a problem of a file into the log, where an event is one line: the cure follows on it.
pub fn warn(problem: &Problem, file: &str) {
    let text = problem.render(file);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    tracing::warn!("{}", lines.join("; "));
}

/// How a configuration is named in messages.
pub fn file_name(snapshot: &Snapshot) -> String {
    snapshot.file.as_ref().map_or_else(|| "built-in default".into(), |file| file.display().to_string())
}
