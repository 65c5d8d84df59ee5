//! `GET /providers`: every entry with its routes and its health. No credential, and no part of one.

use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::Admin;
use crate::config::{Problem, Report, Severity, Snapshot};
use crate::health::Now;
use crate::provider::{Egress, Provider};
use crate::route::{ModelChoice, Strategy};

impl Admin {
    pub(super) fn providers(&self, snapshot: &Snapshot) -> Value {
        let providers: Vec<_> = snapshot.providers.iter().map(|provider| self.provider(snapshot, provider)).collect();
        let rejected = self.live.rejected().map(|rejected| {
            json!({ "at": seconds(Some(rejected.at)), "file": rejected.report.file, "problems": problems(&rejected.report) })
        });
        json!({
            "total_providers": snapshot.providers.len(),
            "healthy_providers": self.healthy(snapshot),
            "selection_strategy": match snapshot.settings.strategy {
                Strategy::Priority => "priority",
                Strategy::RoundRobin => "round_robin",
                Strategy::Random => "random",
            },
            "total_model_routes": snapshot.routes.routes().len(),
            "providers": providers,
            "config": {
                "file": snapshot.file.as_ref().map(|file| file.display().to_string()),
                "generation": snapshot.generation,
                "loaded_at": seconds(Some(snapshot.loaded_at)),
                "rejected": rejected,
            },
        })
    }

    fn provider(&self, snapshot: &Snapshot, provider: &Arc<Provider>) -> Value {
        let entry = self.entry(provider, Now::read());
        let health = &entry.health;
        let models: Vec<_> = snapshot
            .routes
            .routes()
            .iter()
            .flat_map(|route| route.targets.iter().map(move |target| (route, target)))
            .filter(|(_, target)| Arc::ptr_eq(&target.provider, provider) && target.enabled)
            .map(|(route, target)| {
                let model = match &target.model {
                    ModelChoice::Passthrough => "passthrough",
                    ModelChoice::Named(name) => name,
                };
                json!({ "pattern": &*route.pattern, "model": model, "priority": target.priority })
            })
            .collect();
        json!({
            "name": &*provider.key.name,
            "type": provider.kind.to_string(),
            "base_url": provider.base.to_string(),
            "account_email": provider.key.account.as_ref().map(ToString::to_string),
            "enabled": provider.enabled,
            "healthy": entry.healthy,
            "status": match (provider.enabled, entry.healthy) {
                (false, _) => "disabled",
                (true, true) => "healthy",
                (true, false) => "unhealthy",
            },
            "login_required": entry.login_required,
            "account_state": entry.account,
            "failure_count": health.failures,
            "last_failure_time": health.last_failure.map_or(json!(0), |at| seconds(Some(at))),
            "last_error": health.last_error,
            "cooldown_until": seconds(health.cooldown_until),
            "rate_limited_until": seconds(health.limited_until),
            "proxy": match &provider.egress {
                Egress::Direct => Value::Null,
                proxy @ Egress::Proxy(_) => proxy.to_string().into(),
            },
            "models": models,
        })
    }

    /// How many entries are enabled and healthy.
    pub(super) fn healthy(&self, snapshot: &Snapshot) -> usize {
        let now = Now::read();
        snapshot.providers.iter().filter(|provider| self.entry(provider, now).healthy).count()
    }
}

/// The problems of a file.
pub(super) fn problems(report: &Report) -> Vec<Value> {
    report.problems.iter().map(problem).collect()
}

/// A problem of a file, for programs.
pub fn problem(problem: &Problem) -> Value {
    json!({
        "severity": match problem.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        },
        "line": problem.place.map(|place| place.line),
        "column": problem.place.map(|place| place.column),
        "path": problem.path,
        "message": problem.message,
        "cure": problem.cure,
    })
}

/// Unix seconds, to the millisecond.
pub(super) fn seconds(at: Option<SystemTime>) -> Value {
    let since = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(Value::Null, |since| {
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit into 53 bits")]
        (millis as f64 / 1000.0).into()
    })
}
