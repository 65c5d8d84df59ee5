//! What an edit changed, in the user's words. Never a credential: of those it is only said that they changed.

use std::collections::HashMap;
use std::sync::Arc;

use crate::provider::{Provider, ProviderKey};
use crate::route::{ModelChoice, Route, Strategy, Target};

use super::fields::said;
use super::problem::quote;
use super::snapshot::{Language, LogLevel, Settings, Snapshot};

/// Ends the line of a change that is not in force before the next start.
pub const NEEDS_RESTART: &str = " (needs a restart)";

/// One line for each difference between two configurations.
pub fn difference(old: &Snapshot, new: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    providers(old, new, &mut lines);
    routes(old, new, &mut lines);
    settings(&old.settings, &new.settings, &mut lines);
    lines
}

fn named(key: &ProviderKey) -> String {
    match &key.account {
        Some(account) => format!("provider {} ({account})", quote(&key.name)),
        None => format!("provider {}", quote(&key.name)),
    }
}

fn providers(old: &Snapshot, new: &Snapshot, lines: &mut Vec<String>) {
    let index = |snapshot: &Snapshot| -> HashMap<ProviderKey, usize> {
        snapshot.providers.iter().enumerate().map(|(at, provider)| (provider.key.clone(), at)).collect()
    };
    let (before, after) = (index(old), index(new));
    lines.extend(
        old.providers.iter().filter(|p| !after.contains_key(&p.key)).map(|p| format!("{} removed", named(&p.key))),
    );
    for provider in &new.providers {
        let Some(other) = before.get(&provider.key).and_then(|at| old.providers.get(*at)) else {
            lines.push(format!("{} added", named(&provider.key)));
            continue;
        };
        let changes = changes(other, provider);
        if !changes.is_empty() {
            lines.push(format!("{}: {}", named(&provider.key), changes.join(", ")));
        }
    }
    let kept = |snapshot: &Snapshot, there: &HashMap<ProviderKey, usize>| -> Vec<ProviderKey> {
        snapshot.providers.iter().filter(|p| there.contains_key(&p.key)).map(|p| p.key.clone()).collect()
    };
    if kept(old, &after) != kept(new, &before) {
        lines.push("providers: order changed".into());
    }
}

fn changes(old: &Provider, new: &Provider) -> Vec<String> {
    let mut changes = Vec::new();
    let mut compare = |what: &str, old: String, new: String| {
        if old != new {
            changes.push(format!("{what}: {old} -> {new}"));
        }
    };
    compare("type", old.kind.to_string(), new.kind.to_string());
    compare("base_url", old.base.to_string(), new.base.to_string());
    compare("proxy", old.egress.to_string(), new.egress.to_string());
    compare("enabled", old.enabled.to_string(), new.enabled.to_string());
    compare("http2", old.http2.to_string(), new.http2.to_string());
    if old.auth != new.auth {
        changes.push("credential changed".into());
    }
    if old.egress != new.egress && old.egress.to_string() == new.egress.to_string() {
        changes.push("credential of the proxy changed".into());
    }
    changes
}

fn routes(old: &Snapshot, new: &Snapshot, lines: &mut Vec<String>) {
    let index = |snapshot: &Snapshot| -> HashMap<Arc<str>, usize> {
        snapshot.routes.routes().iter().enumerate().map(|(at, route)| (route.pattern.clone(), at)).collect()
    };
    let (before, after) = (index(old), index(new));
    for route in old.routes.routes() {
        if !after.contains_key(&route.pattern) {
            lines.push(format!("route {} removed", quote(&route.pattern)));
        }
    }
    for route in new.routes.routes() {
        let pattern = quote(&route.pattern);
        let Some(other) = before.get(&route.pattern).and_then(|at| old.routes.routes().get(*at)) else {
            lines.push(format!("route {pattern} added"));
            continue;
        };
        let (was, is) = (targets(other), targets(route));
        if was == is {
            continue;
        }
        let names = |list: &[(String, i64)]| {
            let mut names: Vec<_> = list.iter().map(|(name, _)| name.clone()).collect();
            names.sort();
            names
        };
        let (was, is) = (names(&was), names(&is));
        let gone = was.iter().filter(|name| is.binary_search(name).is_err());
        let come = is.iter().filter(|name| was.binary_search(name).is_err());
        let mut words = Vec::new();
        words.extend(gone.map(|name| format!("{name} removed")));
        words.extend(come.map(|name| format!("{name} added")));
        if words.is_empty() {
            words.push("order changed".into());
        }
        lines.push(format!("route {pattern}: {}", words.join(", ")));
    }
    let kept = |snapshot: &Snapshot, there: &HashMap<Arc<str>, usize>| -> Vec<Arc<str>> {
        let routes = snapshot.routes.routes().iter();
        routes.filter(|route| there.contains_key(&route.pattern)).map(|route| route.pattern.clone()).collect()
    };
    if kept(old, &after) != kept(new, &before) {
        lines.push("routes: order changed".into());
    }
}

fn targets(route: &Route) -> Vec<(String, i64)> {
    route.targets.iter().map(|target| (described(target), target.priority)).collect()
}

fn described(target: &Target) -> String {
    let model = match &target.model {
        ModelChoice::Passthrough => String::new(),
        ModelChoice::Named(name) => format!(" as {}", quote(name)),
    };
    let off = if target.enabled { "" } else { " (off)" };
    format!("{}{model}{off}", named(&target.provider.key).replacen("provider ", "", 1))
}

fn settings(old: &Settings, new: &Settings, lines: &mut Vec<String>) {
    const RESTART: [&str; 5] = ["host", "port", "log_file_path", "oauth.service_name", "oauth.storage"];
    for ((key, before), (_, after)) in rows(old).into_iter().zip(rows(new)) {
        if before != after {
            let restart = if RESTART.contains(&key) { NEEDS_RESTART } else { "" };
            lines.push(format!("settings.{key}: {before} -> {after}{restart}"));
        }
    }
    if old.auth.keys != new.auth.keys {
        lines.push("settings.auth.api_key: changed".into());
    }
    if old.oauth.proxy != new.oauth.proxy && old.oauth.proxy.to_string() == new.oauth.proxy.to_string() {
        lines.push("settings.oauth.proxy: credential changed".into());
    }
}

/// Every setting but the secrets, as it may stand in the file.
fn rows(settings: &Settings) -> Vec<(&'static str, String)> {
    let Settings { timeouts, oauth, auth, health, .. } = settings;
    let list = |items: &[String]| format!("[{}]", items.iter().map(|item| quote(item)).collect::<Vec<_>>().join(", "));
    let codes: Vec<_> = settings.unhealthy_http_codes.iter().map(u16::to_string).collect();
    vec![
        ("host", settings.host.clone()),
        ("port", settings.port.to_string()),
        ("allowed_hosts", list(&settings.allowed_hosts)),
        ("log_level", level(settings.log_level).into()),
        ("log_file_path", settings.log_file_path.as_ref().map_or("off".into(), |path| quote(&path.to_string_lossy()))),
        ("log_color", settings.log_color.to_string()),
        ("language", if settings.language == Language::Zh { "zh" } else { "en" }.into()),
        ("selection_strategy", strategy(settings.strategy).into()),
        ("sticky_provider_duration", said(settings.sticky_provider_duration)),
        ("failure_cooldown", said(health.failure_cooldown)),
        ("unhealthy_threshold", health.unhealthy_threshold.to_string()),
        ("unhealthy_reset_timeout", said(health.unhealthy_reset_timeout)),
        ("unhealthy_http_codes", format!("[{}]", codes.join(", "))),
        ("replay_after_send", settings.replay_after_send.to_string()),
        ("timeouts.connect", said(timeouts.connect)),
        ("timeouts.tls", said(timeouts.tls)),
        ("timeouts.first_byte_stream", said(timeouts.first_byte_stream)),
        ("timeouts.first_byte", said(timeouts.first_byte)),
        ("timeouts.before_commit_stream", said(timeouts.before_commit_stream)),
        ("timeouts.before_commit", said(timeouts.before_commit)),
        ("timeouts.idle", said(timeouts.idle)),
        ("auth.enabled", (!auth.keys.is_empty()).to_string()),
        ("auth.exempt_paths", list(&auth.exempt_paths)),
        ("oauth.enable_auto_refresh", oauth.enable_auto_refresh.to_string()),
        ("oauth.enable_persistence", oauth.enable_persistence.to_string()),
        ("oauth.service_name", quote(&oauth.service_name)),
        ("oauth.proxy", oauth.proxy.to_string()),
        ("oauth.storage", format!("{:?}", oauth.storage).to_ascii_lowercase()),
        ("oauth.authorize_url", quote(&oauth.authorize_url)),
        ("oauth.token_url", quote(&oauth.token_url)),
        ("oauth.client_id", quote(&oauth.client_id)),
        ("oauth.redirect_uri", quote(&oauth.redirect_uri)),
        ("oauth.scopes", quote(&oauth.scopes)),
        ("oauth.allowed_hosts", list(&oauth.allowed_hosts)),
    ]
}

fn level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Debug => "DEBUG",
        LogLevel::Info => "INFO",
        LogLevel::Warning => "WARNING",
        LogLevel::Error => "ERROR",
        LogLevel::Critical => "CRITICAL",
    }
}

fn strategy(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Priority => "priority",
        Strategy::RoundRobin => "round_robin",
        Strategy::Random => "random",
    }
}
