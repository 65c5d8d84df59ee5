//! A configuration as a file again, every default filled in. It holds the credentials: for checks that what was read is
//! what was meant, not for people's eyes.

use std::time::Duration;

use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::snapshot::{Language, LogLevel, OAuthStorage, Settings, Snapshot};
use crate::gate::ClientKey;
use crate::provider::{Auth, Egress, Provider, ProxyScheme, bracketed};
use crate::route::{ModelChoice, Strategy, Target};

/// JSON, which is YAML too.
pub(super) fn print(snapshot: &Snapshot) -> Zeroizing<String> {
    let routes = snapshot.routes.routes().iter().map(|route| {
        let targets: Vec<_> = route.targets.iter().map(target).collect();
        (route.pattern.to_string(), Value::from(targets))
    });
    let file = json!({
        "providers": snapshot.providers.iter().map(|one| provider(one)).collect::<Vec<_>>(),
        "model_routes": routes.collect::<Map<_, _>>(),
        "settings": settings(&snapshot.settings),
    });
    Zeroizing::new(file.to_string())
}

fn provider(provider: &Provider) -> Value {
    let (kind, value) = match &provider.auth {
        Auth::ApiKey(secret) => ("api_key", secret.expose()),
        Auth::Bearer(secret) => ("auth_token", secret.expose()),
        Auth::OAuth => ("auth_token", "oauth"),
        Auth::Passthrough => ("api_key", "passthrough"),
    };
    json!({
        "name": &*provider.key.name,
        "type": provider.kind.to_string(),
        "base_url": provider.base.to_string(),
        "auth_type": kind,
        "auth_value": value,
        "account_email": provider.key.account.as_ref().map(ToString::to_string),
        "proxy": egress(&provider.egress),
        "enabled": provider.enabled,
        "http2": provider.http2,
        "allow_insecure_http": true,
    })
}

fn target(target: &Target) -> Value {
    let model = match &target.model {
        ModelChoice::Passthrough => "passthrough",
        ModelChoice::Named(name) => name,
    };
    json!({
        "provider": &*target.provider.key.name,
        "account_email": target.provider.key.account.as_ref().map(ToString::to_string),
        "model": model,
        "priority": target.priority,
        "enabled": target.enabled,
    })
}

fn settings(settings: &Settings) -> Value {
    let (timeouts, oauth) = (&settings.timeouts, &settings.oauth);
    let keys = |of: &dyn Fn(&ClientKey) -> Option<Value>| settings.auth.keys.iter().filter_map(of).collect::<Vec<_>>();
    json!({
        "host": settings.host,
        "port": settings.port,
        "allowed_hosts": settings.allowed_hosts,
        "log_level": match settings.log_level {
            LogLevel::Debug => "DEBUG",
            LogLevel::Info => "INFO",
            LogLevel::Warning => "WARNING",
            LogLevel::Error => "ERROR",
            LogLevel::Critical => "CRITICAL",
        },
        "log_file_path": settings.log_file_path.as_ref().map_or_else(String::new, |path| path.display().to_string()),
        "log_color": settings.log_color,
        "language": match settings.language {
            Language::En => "en",
            Language::Zh => "zh",
        },
        "selection_strategy": match settings.strategy {
            Strategy::Priority => "priority",
            Strategy::RoundRobin => "round_robin",
            Strategy::Random => "random",
        },
        "sticky_provider_duration": duration(settings.sticky_provider_duration),
        "failure_cooldown": duration(settings.health.failure_cooldown),
        "unhealthy_threshold": settings.health.unhealthy_threshold,
        "unhealthy_reset_timeout": duration(settings.health.unhealthy_reset_timeout),
        "unhealthy_http_codes": settings.unhealthy_http_codes,
        "replay_after_send": settings.replay_after_send,
        "timeouts": {
            "connect": duration(timeouts.connect),
            "tls": duration(timeouts.tls),
            "first_byte_stream": duration(timeouts.first_byte_stream),
            "first_byte": duration(timeouts.first_byte),
            "before_commit_stream": duration(timeouts.before_commit_stream),
            "before_commit": duration(timeouts.before_commit),
            "idle": duration(timeouts.idle),
        },
        "auth": {
            "enabled": !settings.auth.keys.is_empty(),
            "api_key": keys(&|key| key.name.is_none().then(|| key.secret.expose().into())),
            "keys": keys(&|key| Some(json!({ "name": key.name.as_deref()?, "key": key.secret.expose() }))),
            "exempt_paths": settings.auth.exempt_paths,
        },
        "oauth": {
            "enable_auto_refresh": oauth.enable_auto_refresh,
            "enable_persistence": oauth.enable_persistence,
            "service_name": oauth.service_name,
            "proxy": egress(&oauth.proxy),
            "storage": match oauth.storage {
                OAuthStorage::Auto => "auto",
                OAuthStorage::Keyring => "keyring",
                OAuthStorage::File => "file",
                OAuthStorage::Memory => "memory",
            },
            "authorize_url": oauth.authorize_url,
            "token_url": oauth.token_url,
            "client_id": oauth.client_id,
            "redirect_uri": oauth.redirect_uri,
            "scopes": oauth.scopes,
            "allowed_hosts": oauth.allowed_hosts,
        },
    })
}

/// A proxy with its credentials; `null` = none.
fn egress(egress: &Egress) -> Value {
    let Egress::Proxy(proxy) = egress else { return Value::Null };
    let Some(credentials) = &proxy.credentials else { return egress.to_string().into() };
    let encoded = credentials
        .expose()
        .splitn(2, ':')
        .map(|part| part.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>());
    let encoded: Vec<_> = encoded.collect();
    let scheme = match proxy.scheme {
        ProxyScheme::Http => "http",
        ProxyScheme::Https => "https",
        ProxyScheme::Socks5 => "socks5",
        ProxyScheme::Socks5h => "socks5h",
    };
    format!("{scheme}://{}@{}:{}", encoded.join(":"), bracketed(&proxy.host), proxy.port).into()
}

/// In milliseconds where that is exact, else in seconds.
fn duration(duration: Duration) -> Value {
    if duration.subsec_nanos().is_multiple_of(1_000_000) {
        format!("{}ms", duration.as_millis()).into()
    } else {
        duration.as_secs_f64().into()
    }
}
