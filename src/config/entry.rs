//! Whether one provider's credential and destination go together.

use crate::provider::{Auth, BaseUrl, Kind, is_loopback};

use super::Surroundings;
use super::credential;
use super::file::{AuthType, ProviderEntry};
use super::problem::{Problems, quote};
use super::snapshot::Settings;

/// What opens a provider. `None` = its problem has been reported.
pub(super) fn auth(entry: &ProviderEntry, around: &Surroundings<'_>, problems: &mut Problems) -> Option<Auth> {
    let kind = entry.auth_type.as_ref().map(|kind| kind.value);
    let Some(value) = &entry.auth_value else {
        // `auth_type: oauth` says all there is to say.
        if kind == Some(AuthType::OAuth) {
            return Some(Auth::OAuth);
        }
        if !entry.auth_value_faulty {
            let cure = "write a key, \"passthrough\" (the client's own), \"oauth\" (a signed-in account), ${NAME} or file:/path";
            problems.error(Some(entry.place), &entry.path, "has no `auth_value`", cure);
        }
        return None;
    };
    let text = value.value.expose();
    let contradiction = |problems: &mut Problems, cure: &str| {
        let (place, path) =
            entry.auth_type.as_ref().map_or((value.place, &value.path), |kind| (kind.place, &kind.path));
        problems.error(Some(place), path, "contradicts auth_value", cure);
        None
    };
    if text.eq_ignore_ascii_case("oauth") {
        return match kind {
            Some(AuthType::ApiKey) => contradiction(
                problems,
                "an account's token goes out as a bearer token: auth_type: auth_token, or no auth_type",
            ),
            _ => Some(Auth::OAuth),
        };
    }
    if kind == Some(AuthType::OAuth) {
        return contradiction(problems, "write auth_value: oauth, or auth_type: api_key or auth_token for a key");
    }
    if text.eq_ignore_ascii_case("passthrough") {
        return Some(Auth::Passthrough);
    }
    let secret = credential::look_up(value, around, problems)?;
    Some(match kind {
        Some(AuthType::AuthToken) => Auth::Bearer(secret),
        _ => Auth::ApiKey(secret),
    })
}

/// Plain http into the world or where HTTP/2 is wanted, a loop to ourselves, an account's token to a stranger, `/v1`
/// twice.
pub(super) fn check_destination(
    entry: &ProviderEntry,
    kind: Kind,
    base: &BaseUrl,
    auth: Option<&Auth>,
    settings: &Settings,
    problems: &mut Problems,
) {
    // Where it was written for this entry; an inherited one has been reported at its own entry, if at all.
    let (place, path) = match &entry.base {
        Some(base) => (base.place, base.path.clone()),
        None => (entry.place, entry.path.clone()),
    };
    if entry.base.is_some() && kind == Kind::Anthropic && base.prefix.ends_with("/v1") {
        let message = "ends in /v1, which every request brings along: they would go to /v1/v1/messages";
        problems.warning(Some(place), &path, message, "leave the /v1 out, unless the provider really is there");
    }
    let origin = quote(&base.origin());
    if is_own_listener(base, settings) {
        let cure = "that is this proxy's own address; name the provider behind it";
        problems.error(Some(place), &path, format!("{origin} would send requests in a circle"), cure);
    }
    if entry.http2 && !base.tls {
        let message = "is offered in a TLS handshake, and there is none: this provider is spoken to in HTTP/1.1";
        problems.warning(entry.http2_at, &format!("{}.http2", entry.path), message, "write https://, or leave it out");
    }
    if !base.tls && !base.is_loopback() {
        if matches!(auth, Some(Auth::OAuth)) {
            let message = format!("{origin} would carry an account's token unencrypted");
            problems.error(Some(place), &path, message, "write https://");
        } else if !entry.allow_insecure_http {
            let cure = "write https://, or set allow_insecure_http: true if the way there is trusted";
            problems.error(Some(place), &path, format!("{origin} would carry the credential unencrypted"), cure);
        }
    }
    if matches!(auth, Some(Auth::OAuth)) && !may_receive_tokens(base, &settings.oauth.allowed_hosts) {
        let message = format!("{} is not known as a host that may receive an account's token", quote(&base.host));
        let cure = "use a key for this provider, or add the host to settings.oauth.allowed_hosts if you trust it with the account";
        problems.error(Some(place), &path, message, cure);
    }
}

fn is_own_listener(base: &BaseUrl, settings: &Settings) -> bool {
    let same_host = *base.host == *settings.host || (base.is_loopback() && is_loopback(&settings.host));
    let any = matches!(settings.host.as_str(), "0.0.0.0" | "::") && base.is_loopback();
    settings.port != 0 && base.port == settings.port && (same_host || any)
}

fn may_receive_tokens(base: &BaseUrl, allowed: &[String]) -> bool {
    let host = &*base.host;
    let below = |domain: &str| host == domain || host.strip_suffix(domain).is_some_and(|front| front.ends_with('.'));
    base.is_loopback()
        || below("anthropic.com")
        || below("claude.com")
        || allowed.iter().any(|rule| match rule.strip_prefix("*.") {
            Some(domain) => host.strip_suffix(domain).is_some_and(|front| front.ends_with('.')),
            None => *rule == host || *rule == format!("{}:{}", crate::provider::bracketed(host), base.port),
        })
}
