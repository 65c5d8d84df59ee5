//! `settings:`. Most of it means what it says and goes straight into [`Settings`]; what depends on other sections or
//! on the machine (keys, hosts, paths) is handed to `resolve` with its place.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::provider::BaseUrl;
use crate::route::Strategy;
use crate::secret::Secret;

use super::fields::{At, Fields, literal, number};
use super::file::{DAY, printable, proxy, url};
use super::keys;
use super::legacy;
use super::problem::{Place, Problems, quote};
use super::snapshot::{Language, LogLevel, OAuthSettings, OAuthStorage, Settings};
use super::tree::{Node, Value};

/// The section as it was written, with defaults where nothing was.
#[derive(Debug, Default)]
pub(super) struct SettingsGiven {
    /// What needs no further thought.
    pub(super) plain: Settings,
    pub(super) host: Option<Place>,
    pub(super) log_file_path: Option<At<String>>,
    pub(super) language: Option<Language>,
    pub(super) auth: AuthGiven,
}

/// `settings.auth`.
#[derive(Debug, Default)]
pub(super) struct AuthGiven {
    pub(super) enabled: bool,
    /// Where the section stands.
    pub(super) place: Option<Place>,
    /// Not yet looked up.
    pub(super) keys: Vec<(Option<Arc<str>>, At<Secret>)>,
    /// Whether something was wrong with them; "no key" would only confuse then.
    pub(super) faulty: bool,
}

/// Failures that are "never forgotten" are forgotten after this.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

pub(super) fn read(node: &Node, problems: &mut Problems) -> SettingsGiven {
    let mut given = SettingsGiven::default();
    let Some(fields) = Fields::open(node, "settings", &keys::SETTINGS, &legacy::SETTINGS, problems) else {
        return given;
    };
    listener(&fields, &mut given, problems);
    logging(&fields, &mut given, problems);
    routing(&fields, &mut given.plain, problems);
    timeouts(&fields, &mut given.plain, problems);
    auth(&fields, &mut given, problems);
    oauth(&fields, &mut given.plain.oauth, problems);
    given
}

fn listener(fields: &Fields<'_>, given: &mut SettingsGiven, problems: &mut Problems) {
    if let Some(host) = fields.text("host", problems) {
        match bind_host(host.value) {
            Some(name) => {
                given.plain.host = name;
                given.host = Some(host.place);
            }
            None => {
                let message = format!("{} is not an address or host name", quote(host.value));
                let cure = "write 127.0.0.1, ::1 or a host name; the port stands in settings.port";
                problems.error(Some(host.place), &host.path, message, cure);
            }
        }
    }
    if let Some(port) = fields.number("port", 0..=65535, problems) {
        given.plain.port = u16::try_from(port.value).unwrap_or_default();
    }
    given.plain.allowed_hosts = hosts(fields, "allowed_hosts", false, problems);
}

/// An address or name to bind, without the brackets of an IPv6 one.
pub(super) fn bind_host(text: &str) -> Option<String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if bare.parse::<std::net::IpAddr>().is_ok() {
        return Some(bare.to_owned());
    }
    (bare == text && is_host_name(text)).then(|| text.to_ascii_lowercase())
}

fn is_host_name(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        })
}

/// Host names, each with or without a port; where it is allowed, `*.` in front stands for all names below.
fn hosts(fields: &Fields<'_>, key: &str, wild: bool, problems: &mut Problems) -> Vec<String> {
    let mut hosts = Vec::new();
    for text in fields.texts(key, problems).unwrap_or_default() {
        let lower = text.value.to_ascii_lowercase();
        let name = lower.strip_prefix("*.").filter(|_| wild).unwrap_or(&lower);
        let (name, port) = match name.rsplit_once(':') {
            Some((front, port)) if !front.contains(':') || front.ends_with(']') => (front, Some(port)),
            _ => (name, None),
        };
        let port_fits = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
        if port_fits && bind_host(name).is_some() {
            hosts.push(lower);
        } else {
            let message = format!("{} is not a host name", quote(text.value));
            problems.error(
                Some(text.place),
                &text.path,
                message,
                "write gateway.lan, or gateway.lan:9090; no scheme, no path",
            );
        }
    }
    hosts
}

fn logging(fields: &Fields<'_>, given: &mut SettingsGiven, problems: &mut Problems) {
    let levels = [
        ("DEBUG", LogLevel::Debug),
        ("INFO", LogLevel::Info),
        ("WARNING", LogLevel::Warning),
        ("ERROR", LogLevel::Error),
        ("CRITICAL", LogLevel::Critical),
    ];
    if let Some(level) = fields.word("log_level", &levels, problems) {
        given.plain.log_level = level.value;
    }
    given.plain.log_color = fields.flag("log_color", problems).unwrap_or(true);
    if let Some(path) = fields.node("log_file_path").and_then(|_| fields.text("log_file_path", problems)) {
        given.log_file_path = match path.value {
            "" => Some(At { value: String::new(), place: path.place, path: path.path }),
            _ => printable(path, 4096, problems),
        };
    }
    let languages = [("en", Language::En), ("zh", Language::Zh)];
    given.language = fields.word("language", &languages, problems).map(|language| language.value);
}

fn routing(fields: &Fields<'_>, settings: &mut Settings, problems: &mut Problems) {
    let strategies =
        [("priority", Strategy::Priority), ("round_robin", Strategy::RoundRobin), ("random", Strategy::Random)];
    if let Some(strategy) = fields.word("selection_strategy", &strategies, problems) {
        settings.strategy = strategy.value;
    }
    let range = Duration::ZERO..=DAY;
    if let Some(sticky) = fields.duration("sticky_provider_duration", range.clone(), problems) {
        settings.sticky_provider_duration = sticky.value;
    }
    if let Some(cooldown) = fields.duration("failure_cooldown", range.clone(), problems) {
        settings.health.failure_cooldown = cooldown.value;
    }
    if let Some(threshold) = fields.number("unhealthy_threshold", 1..=i64::from(u32::MAX), problems) {
        settings.health.unhealthy_threshold = u32::try_from(threshold.value).unwrap_or(1);
    }
    if let Some(reset) = fields.duration("unhealthy_reset_timeout", Duration::ZERO..=NEVER, problems) {
        settings.health.unhealthy_reset_timeout = if reset.value.is_zero() { NEVER } else { reset.value };
    }
    for (path, node) in fields.list("unhealthy_http_codes", problems).unwrap_or_default() {
        match number(node, &(400..=599)) {
            Ok(code) => settings.unhealthy_http_codes.extend(u16::try_from(code)),
            Err((message, cure)) => problems.error(Some(node.place), &path, message, cure),
        }
    }
    settings.replay_after_send = fields.flag("replay_after_send", problems).unwrap_or(true);
}

fn timeouts(fields: &Fields<'_>, settings: &mut Settings, problems: &mut Problems) {
    let Some(section) = fields.section("timeouts", &keys::TIMEOUTS, &legacy::TIMEOUTS, problems) else { return };
    let timeouts = &mut settings.timeouts;
    legacy::nested_timeouts(&section, timeouts, problems);
    for (key, slot) in [
        ("connect", &mut timeouts.connect),
        ("tls", &mut timeouts.tls),
        ("first_byte_stream", &mut timeouts.first_byte_stream),
        ("first_byte", &mut timeouts.first_byte),
        ("before_commit_stream", &mut timeouts.before_commit_stream),
        ("before_commit", &mut timeouts.before_commit),
        ("idle", &mut timeouts.idle),
    ] {
        if let Some(value) = section.duration(key, Duration::from_millis(1)..=DAY, problems) {
            *slot = value.value;
        }
    }
}

fn auth(fields: &Fields<'_>, given: &mut SettingsGiven, problems: &mut Problems) {
    let Some(section) = fields.section("auth", &keys::AUTH, &[], problems) else { return };
    given.auth.place = Some(section.place);
    given.auth.enabled = section.flag("enabled", problems).unwrap_or(false);
    if let Some(node) = section.node("api_key") {
        let path = section.at("api_key");
        let items: Vec<(String, &Node)> = match &node.value {
            Value::List(items) => items.iter().enumerate().map(|(i, item)| (format!("{path}[{i}]"), item)).collect(),
            _ => vec![(path, node)],
        };
        for (path, item) in items {
            match literal(item) {
                Ok("") => {}
                Ok(text) => given.auth.keys.push((None, At { value: Secret::new(text), place: item.place, path })),
                Err((_, _)) => {
                    given.auth.faulty = true;
                    let message = format!("expected a key, found {}", item.sort_name());
                    problems.error(Some(item.place), &path, message, "write a text, or a list of texts");
                }
            }
        }
    }
    named_keys(&section, &mut given.auth, problems);
    if let Some(paths) = section.texts("exempt_paths", problems) {
        let mut exempt = Vec::new();
        for text in paths {
            let fits =
                text.value.starts_with('/') && text.value.bytes().all(|b| b.is_ascii_graphic() && !b"?#".contains(&b));
            if fits && text.value.len() <= 256 {
                exempt.push(text.value.to_owned());
            } else {
                let message = format!("{} is not a path", quote(text.value));
                problems.error(
                    Some(text.place),
                    &text.path,
                    message,
                    "a path begins with / and has no query, as in /health",
                );
            }
        }
        given.plain.auth.exempt_paths = exempt;
    }
}

/// `auth.keys`: each with a name for the log.
fn named_keys(section: &Fields<'_>, auth: &mut AuthGiven, problems: &mut Problems) {
    let Some(node) = section.node("keys") else { return };
    let path = section.at("keys");
    let Value::List(items) = &node.value else {
        // A key may stand there: it is not quoted.
        auth.faulty = true;
        let message = format!("expected a list, found {}", node.sort_name());
        problems.error(Some(node.place), &path, message, "begin each entry with `- `; config/example.yaml shows one");
        return;
    };
    for (path, node) in items.iter().enumerate().map(|(index, node)| (format!("{path}[{index}]"), node)) {
        let fields = Fields::open(node, &path, &keys::CLIENT_KEY, &[], problems);
        let given = fields.as_ref().map(|fields| (fields.text("name", problems), fields.literal("key", problems)));
        let Some((Some(name), Some(key))) = given else {
            auth.faulty = true;
            if fields.is_some_and(|fields| !fields.has("name") || !fields.has("key")) {
                let cure = "write { name: laptop, key: \"${LAPTOP_KEY}\" }";
                problems.error(Some(node.place), &path, "has no name or no key", cure);
            }
            continue;
        };
        if name.value.is_empty() || name.value.chars().count() > 64 || name.value.chars().any(char::is_control) {
            let message = format!("{} is not a name", quote(name.value));
            problems.error(Some(name.place), &name.path, message, "write 1 to 64 characters without controls");
        }
        let value = At { value: Secret::new(key.value), place: key.place, path: key.path };
        auth.keys.push((Some(name.value.into()), value));
    }
}

fn oauth(fields: &Fields<'_>, oauth: &mut OAuthSettings, problems: &mut Problems) {
    let Some(section) = fields.section("oauth", &keys::OAUTH, &[], problems) else { return };
    oauth.enable_auto_refresh = section.flag("enable_auto_refresh", problems).unwrap_or(true);
    oauth.enable_persistence = section.flag("enable_persistence", problems).unwrap_or(true);
    if let Some(egress) = proxy(&section, "proxy", problems) {
        oauth.proxy = egress.value;
    }
    let storages = [
        ("auto", OAuthStorage::Auto),
        ("keyring", OAuthStorage::Keyring),
        ("file", OAuthStorage::File),
        ("memory", OAuthStorage::Memory),
    ];
    if let Some(storage) = section.word("storage", &storages, problems) {
        oauth.storage = storage.value;
    }
    for (key, slot) in
        [("service_name", &mut oauth.service_name), ("client_id", &mut oauth.client_id), ("scopes", &mut oauth.scopes)]
    {
        if let Some(text) = section.text(key, problems).and_then(|text| printable(text, 512, problems)) {
            *slot = text.value;
        }
    }
    for (key, slot) in [
        ("authorize_url", &mut oauth.authorize_url),
        ("token_url", &mut oauth.token_url),
        ("redirect_uri", &mut oauth.redirect_uri),
    ] {
        let Some(text) = section.text(key, problems) else { continue };
        let (place, path, whole) = (text.place, text.path.clone(), text.value);
        let Some(url) = url(text, BaseUrl::parse, "write https://HOST/PATH", problems) else { continue };
        if url.value.tls || url.value.is_loopback() {
            *slot = whole.to_owned();
        } else {
            // Codes and tokens travel here.
            let message = format!("{} would carry credentials unencrypted", quote(whole));
            problems.error(Some(place), &path, message, "write https://HOST/PATH");
        }
    }
    oauth.allowed_hosts = hosts(&section, "allowed_hosts", true, problems);
}

/// Where the log goes: beside the configuration file, unless the path is absolute.
pub(super) fn log_path(given: Option<&str>, folder: Option<&std::path::Path>) -> Option<PathBuf> {
    match given {
        Some("") => None,
        Some(path) => Some(folder.map_or_else(|| PathBuf::from(path), |folder| folder.join(path))),
        None => folder.map(|folder| folder.join("logs/logs.jsonl")),
    }
}
