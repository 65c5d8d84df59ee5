//! What a file means: entries that lean on each other, credentials that are elsewhere, routes that name providers.
//! Again every problem is collected; a [`Snapshot`] exists only where there is no error.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::gate::ClientKey;
use crate::provider::{BaseUrl, Egress, EgressProxy, Email, Kind, Provider, ProviderKey, is_loopback};
use crate::route::{ModelChoice, Route, RouteTable, Target};

use super::Surroundings;
use super::credential;
use super::entry;
use super::fields::At;
use super::file::{File, ProviderEntry, RouteEntry, TargetEntry};
use super::problem::{Place, Problems, nearest, quote};
use super::settings::{SettingsGiven, bind_host, log_path};
use super::shadow;
use super::snapshot::{ClientAuth, Language, Settings, Snapshot};

/// The shortest key that may guard a listener which others can reach.
const KEY_LENGTH: usize = 16;

/// Turns a file into a snapshot of generation 1.
pub(super) fn resolve(
    file: File,
    path: Option<PathBuf>,
    around: &Surroundings<'_>,
    problems: &mut Problems,
) -> Option<Snapshot> {
    let settings = settings(file.settings, around, problems);
    let providers = providers(&file.providers, &settings, around, problems);
    if file.providers.is_empty() && !problems.has_errors() {
        let cure = "add an entry with `name`, `base_url` and `auth_value`, as in config/minimal.yaml";
        problems.error(file.providers_at, "providers", "there is no provider", cure);
    }
    let routes = routes(&file.routes, &file.providers, &providers, problems);
    ambient_proxies(around, problems);
    if problems.has_errors() {
        return None;
    }
    let providers: Vec<_> = providers.into_iter().flatten().collect();
    let enabled = || providers.iter().filter(|provider| provider.enabled);
    if enabled().next().is_none() {
        problems.warning(file.providers_at, "providers", "no provider is enabled", "every request will be refused");
    }
    let routes = if routes.is_empty() { vec![implicit_route(enabled())] } else { routes };
    Some(Snapshot {
        generation: 1,
        file: path,
        loaded_at: SystemTime::now(),
        routes: RouteTable::new(routes),
        providers,
        settings,
    })
}

/// All providers in file order, for any model.
pub(super) fn implicit_route<'a>(providers: impl Iterator<Item = &'a Arc<Provider>>) -> Route {
    let target = |provider: &Arc<Provider>| Target {
        provider: provider.clone(),
        model: ModelChoice::Passthrough,
        priority: 1,
        enabled: true,
    };
    Route::new("*", providers.map(target).collect())
}

fn settings(given: SettingsGiven, around: &Surroundings<'_>, problems: &mut Problems) -> Settings {
    let SettingsGiven { plain: mut settings, host, log_file_path, language, auth } = given;
    let overridden = around.host.is_some();
    if let Some(host) = &around.host {
        match bind_host(host) {
            Some(host) => settings.host = host,
            None => {
                let message = format!("--host: {} is not an address or host name", quote(host));
                problems.error(None, "", message, "write 127.0.0.1, ::1 or a host name");
            }
        }
    }
    settings.port = around.port.unwrap_or(settings.port);
    settings.language = language.unwrap_or_else(|| ambient_language(around));
    settings.log_file_path = log_path(log_file_path.as_ref().map(|path| path.value.as_str()), around.folder.as_deref());

    let mut keys = Vec::new();
    let mut faulty = auth.faulty;
    if auth.enabled {
        for (name, given) in &auth.keys {
            let key = credential::look_up(given, around, problems);
            faulty |= key.is_none();
            keys.extend(key.map(|secret| ClientKey { name: name.clone(), secret }));
        }
        if keys.is_empty() && !faulty {
            let cure = "set settings.auth.api_key (for example \"${BALANCER_KEY}\"), or enabled: false";
            problems.error(auth.place, "settings.auth.api_key", "no key is given, but one is asked for", cure);
        }
    }
    let guarded = |key: &ClientKey| {
        let text = key.secret.expose();
        text.len() >= KEY_LENGTH && !crate::secret::is_placeholder(text)
    };
    let guarded = auth.enabled && !keys.is_empty() && keys.iter().all(guarded);
    if !(is_loopback(&settings.host) || guarded || faulty) {
        let message = format!("{} can be reached by others, and no key of its own guards it", quote(&settings.host));
        let cure = "set settings.auth.enabled: true and an api_key of at least 16 characters, or bind 127.0.0.1";
        problems.error(host.filter(|_| !overridden), "settings.host", message, cure);
    }
    settings.auth = ClientAuth { keys, exempt_paths: settings.auth.exempt_paths };
    settings
}

fn ambient_language(around: &Surroundings<'_>) -> Language {
    let tongue =
        ["LC_ALL", "LC_MESSAGES", "LANG"].into_iter().find_map(|name| (around.env)(name).filter(|v| !v.is_empty()));
    match tongue {
        Some(tongue) if tongue.to_ascii_lowercase().starts_with("zh") => Language::Zh,
        _ => Language::En,
    }
}

fn ambient_proxies(around: &Surroundings<'_>, problems: &mut Problems) {
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    let set: Vec<_> = names.into_iter().filter(|name| (around.env)(name).is_some_and(|v| !v.is_empty())).collect();
    if !set.is_empty() {
        let message = format!("{} in the environment is not used", set.join(", "));
        problems.warning(None, "", message, "give each provider that needs one its own `proxy`");
    }
}

/// One provider for each entry, `None` where something about it is wrong.
fn providers(
    entries: &[ProviderEntry],
    settings: &Settings,
    around: &Surroundings<'_>,
    problems: &mut Problems,
) -> Vec<Option<Arc<Provider>>> {
    // First entry of each name, and of each (name, account).
    let mut leaders: HashMap<&str, &ProviderEntry> = HashMap::new();
    let mut keys: HashMap<ProviderKey, &ProviderEntry> = HashMap::new();
    let mut providers = Vec::with_capacity(entries.len());
    for entry in entries {
        let Some(name) = &entry.name else {
            // Its other problems are worth knowing, too.
            entry::auth(entry, around, problems);
            providers.push(None);
            continue;
        };
        let leader = *leaders.entry(&name.value).or_insert(entry);
        let key = ProviderKey {
            name: name.value.as_str().into(),
            account: entry.account.as_ref().map(|account| account.value.clone()),
        };
        if let Some(other) = keys.get(&key) {
            let message = match &key.account {
                Some(account) => {
                    format!("{} with {account} stands at line {} already", quote(&key.name), other.place.line)
                }
                None => format!("{} without an account stands at line {} already", quote(&key.name), other.place.line),
            };
            let cure = "entries of one name differ by `account_email`; change the name or the account of one";
            problems.error(Some(entry.place), &entry.path, message, cure);
        } else {
            keys.insert(key.clone(), entry);
        }
        providers.push(provider(entry, leader, key, settings, around, problems).map(Arc::new));
    }
    providers
}

fn provider(
    entry: &ProviderEntry,
    leader: &ProviderEntry,
    key: ProviderKey,
    settings: &Settings,
    around: &Surroundings<'_>,
    problems: &mut Problems,
) -> Option<Provider> {
    let kind = entry.kind.as_ref().or(leader.kind.as_ref()).map(|kind| kind.value).unwrap_or_default();
    let base = match entry.base.as_ref().or(leader.base.as_ref()) {
        Some(base) => base.value.clone(),
        None => BaseUrl::parse("https://api.anthropic.com").ok()?,
    };
    let auth = entry::auth(entry, around, problems);
    entry::check_destination(entry, kind, &base, auth.as_ref(), settings, problems);
    if let Some(At { value: Egress::Proxy(EgressProxy { credentials: Some(_), .. }), place, path }) = &entry.proxy
        && around.readable_by_others
    {
        let message = "holds a password in a file that other users may read";
        problems.warning(Some(*place), path, message, "chmod 600 the file");
    }
    let egress = entry.proxy.as_ref().map_or(Egress::Direct, |proxy| proxy.value.clone());
    let mut provider = Provider::new(key, kind, base, auth?, egress);
    provider.enabled = entry.enabled;
    if entry.http2 {
        provider.offer_http2();
    }
    if kind == Kind::OpenAi && entry.enabled {
        provider.enabled = false;
        let place = entry.kind.as_ref().map_or(entry.place, |kind| kind.place);
        let message = "providers of type openai are not supported yet; this entry is off";
        problems.warning(
            Some(place),
            &format!("{}.type", entry.path),
            message,
            "set enabled: false to be spared this warning",
        );
    }
    Some(provider)
}

fn routes(
    routes: &[RouteEntry],
    entries: &[ProviderEntry],
    providers: &[Option<Arc<Provider>>],
    problems: &mut Problems,
) -> Vec<Route> {
    let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        if let Some(name) = &entry.name {
            by_name.entry(&name.value).or_default().push(index);
        }
    }
    let mut list = Vec::with_capacity(routes.len());
    for route in routes {
        let mut targets = Vec::with_capacity(route.targets.len());
        let mut unknown = route.faulty;
        let mut seen: HashMap<(usize, Option<&str>), Place> = HashMap::new();
        for target in &route.targets {
            let Some(index) = look_up(target, &by_name, entries, problems) else {
                unknown = true;
                continue;
            };
            // The same target once more is skipped: one of them is too many, whichever is asked first.
            if target.enabled && !problems.has_errors() {
                let here = target.provider.place;
                let first = *seen.entry((index, target.model.as_deref())).or_insert(here);
                if first != here {
                    let message = format!("is never asked: the target at {}:{} is the same", first.line, first.column);
                    let cure = "give it another provider, account or model, or remove it";
                    problems.warning(Some(here), &target.provider.path, message, cure);
                }
            }
            let Some(Some(provider)) = providers.get(index) else {
                unknown = true;
                continue;
            };
            targets.push(Target {
                provider: provider.clone(),
                model: target.model.as_deref().map_or(ModelChoice::Passthrough, |name| ModelChoice::Named(name.into())),
                priority: target.priority,
                enabled: target.enabled,
            });
        }
        if !unknown && !targets.iter().any(|target| target.enabled && target.provider.enabled) {
            let cure = "add or enable a target; as it stands the next matching route is asked";
            problems.warning(Some(route.place), &route.path, "no target of this route can be used", cure);
        }
        list.push(Route::new(route.pattern.as_str(), targets));
    }
    shadow::check(routes, problems);
    list
}

/// An account: the entry with that name and account. None: the entry of that name without one. Neither: the first
/// entry of that name, as the predecessor did, but with a warning where an account was asked for.
fn look_up(
    target: &TargetEntry,
    by_name: &HashMap<&str, Vec<usize>>,
    entries: &[ProviderEntry],
    problems: &mut Problems,
) -> Option<usize> {
    let name = &target.provider;
    let Some(indices) = by_name.get(name.value.as_str()) else {
        // What is only counted needs no cure, which costs a comparison with every name.
        let names = by_name.keys().copied().filter(|_| !problems.are_too_many());
        let cure = match nearest(&name.value, names) {
            Some(near) => format!("did you mean {}?", quote(near)),
            None if by_name.is_empty() => "no provider has a name".to_owned(),
            None => "name one of `providers:`, written as there".to_owned(),
        };
        let message = format!("no provider named {}", quote(&name.value));
        problems.error(Some(name.place), &name.path, message, cure);
        return None;
    };
    let account_of = |index: usize| -> Option<&Email> { Some(&entries.get(index)?.account.as_ref()?.value) };
    let wanted = target.account.as_ref().map(|account| &account.value);
    let exact = indices.iter().copied().find(|index| account_of(*index) == wanted);
    let first = indices.first().copied();
    if exact.is_none()
        && let Some(account) = &target.account
    {
        let have: Vec<_> = indices.iter().filter_map(|index| account_of(*index)).map(Email::as_str).collect();
        let cure = match nearest(account.value.as_str(), have.iter().copied()) {
            Some(near) => format!("did you mean {}? until then the first entry of that name is used", quote(near)),
            None => "the first entry of that name is used".to_owned(),
        };
        let message = format!("no entry {} has the account {}", quote(&name.value), quote(account.value.as_str()));
        problems.warning(Some(account.place), &account.path, message, cure);
    }
    exact.or(first)
}
