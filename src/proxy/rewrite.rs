//! Heads that cross the balancer: what is dropped, what is added. Open lists: a field that nobody here knows passes.
//!
//! The only way to an outgoing request is [`outbound`], and it adds exactly one credential: a request without one
//! cannot be made.

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use zeroize::Zeroizing;

use crate::gate::{Admitted, X_API_KEY};
use crate::oauth::Bearer;
use crate::provider::{Auth, Provider};
use crate::secret::Secret;
use crate::upstream::{Payload, Request};

/// Fields of a connection, not of a message (RFC 9110 §7.6.1).
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Further fields that do not go upstream: framing is set anew, cookies and the client's whereabouts are nobody's
/// business.
fn is_not_upstream(name: &str) -> bool {
    matches!(name, "host" | "content-length" | "expect" | "cookie" | "forwarded") || name.starts_with("x-forwarded-")
}

/// Where credentials travel; every one of them is dropped before one is added.
fn is_credential(name: &str) -> bool {
    matches!(name, "authorization" | "x-api-key" | "x-goog-api-key" | "api-key")
}

/// Fields of a response that would reach beyond one answer into the client's state, and those that speak for us: a
/// provider that is such a balancer does not.
fn is_not_downstream(name: &str) -> bool {
    matches!(
        name,
        "set-cookie"
            | "alt-svc"
            | "strict-transport-security"
            | "clear-site-data"
            | "x-provider-used"
            | "x-balancer-attempts"
    ) || name.starts_with("access-control-")
}

/// A list of features that the client asks for.
const ANTHROPIC_BETA: HeaderName = HeaderName::from_static("anthropic-beta");
/// The one without which a token of an account is refused.
const OAUTH_BETA: &str = "oauth-2025-04-20";

/// Which provider answered.
pub const X_PROVIDER_USED: HeaderName = HeaderName::from_static("x-provider-used");
/// How many targets were tried.
pub const X_BALANCER_ATTEMPTS: HeaderName = HeaderName::from_static("x-balancer-attempts");
/// Whether the SDKs and Claude Code should try again by themselves.
pub const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Which balancers a request went through: one that finds its own mark has been sent its own request.
pub const X_PROXY_HOP: HeaderName = HeaderName::from_static("x-proxy-hop");
/// It cannot lead back here, and gets nothing that the client did not send.
const NO_HOP: &str = "api.anthropic.com";

/// What of a request's head goes upstream.
#[derive(Clone, Copy, Debug)]
pub struct Inbound<'a> {
    /// The method.
    pub method: &'a Method,
    /// Path and query as they came.
    pub target: &'a str,
    /// All fields.
    pub headers: &'a HeaderMap,
    /// Where this proxy's own keys stood.
    pub admitted: &'a Admitted,
    /// This balancer's own mark.
    pub hop: &'a HeaderValue,
    /// Whether the answer must be readable to us.
    pub identity_only: bool,
}

/// There is no credential to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCredential {
    /// An account that nobody has signed in.
    #[error("login required")]
    Login,
    /// A `passthrough` provider, and a client without a credential.
    #[error("the request carries no credential of its own")]
    Client,
}

/// The request for a provider. `bearer` is the token of its account, where it has one.
///
/// # Errors
/// [`NoCredential`]: nothing is sent without one.
pub fn outbound(
    inbound: Inbound<'_>,
    provider: &Provider,
    bearer: Option<&Bearer>,
    payload: Payload,
) -> Result<Request, NoCredential> {
    let mut headers = HeaderMap::with_capacity(inbound.headers.len() + 4);
    headers.insert(HOST, provider.host.clone());
    add_credential(&mut headers, inbound, provider, bearer)?;
    let hop = HopByHop::of(inbound.headers);
    for (name, value) in inbound.headers {
        let text = name.as_str();
        let dropped = is_not_upstream(text)
            || is_credential(text)
            || (inbound.identity_only && *name == ACCEPT_ENCODING)
            || hop.has(text);
        if !dropped {
            headers.append(name, value.clone());
        }
    }
    if provider.auth == Auth::OAuth {
        add_oauth_beta(&mut headers);
    }
    if inbound.identity_only {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if *provider.base.host != *NO_HOP {
        headers.append(X_PROXY_HOP, inbound.hop.clone());
    }
    let target = format!("{}{}", provider.base.prefix, inbound.target);
    Ok(Request { method: inbound.method.clone(), target, headers, payload })
}

fn add_credential(
    headers: &mut HeaderMap,
    inbound: Inbound<'_>,
    provider: &Provider,
    bearer: Option<&Bearer>,
) -> Result<(), NoCredential> {
    match &provider.auth {
        Auth::ApiKey(secret) => headers.insert(X_API_KEY, sensitive(secret.expose())?),
        Auth::Bearer(secret) => headers.insert(AUTHORIZATION, authorization(secret)?),
        Auth::OAuth => {
            let own = |bearer: &&Bearer| provider.key.account.as_ref() == Some(bearer.email());
            let bearer = bearer.filter(own).ok_or(NoCredential::Login)?;
            headers.insert(AUTHORIZATION, authorization(bearer.access())?)
        }
        Auth::Passthrough => {
            for name in [AUTHORIZATION, X_API_KEY] {
                for (index, value) in inbound.headers.get_all(&name).iter().enumerate() {
                    if inbound.admitted.keys_in.iter().any(|(key_in, at)| *key_in == name && *at == index) {
                        continue;
                    }
                    let mut value = value.clone();
                    value.set_sensitive(true);
                    headers.append(&name, value);
                }
            }
            if !headers.contains_key(AUTHORIZATION) && !headers.contains_key(X_API_KEY) {
                return Err(NoCredential::Client);
            }
            None
        }
    };
    Ok(())
}

fn authorization(secret: &Secret) -> Result<HeaderValue, NoCredential> {
    sensitive(&Zeroizing::new(format!("Bearer {}", secret.expose())))
}

/// Puts the feature that a token of an account needs in front of the client's, if the client does not name it.
fn add_oauth_beta(headers: &mut HeaderMap) {
    let named = |value: &HeaderValue| {
        value.as_bytes().split(|byte| *byte == b',').any(|one| one.trim_ascii() == OAUTH_BETA.as_bytes())
    };
    if headers.get_all(ANTHROPIC_BETA).iter().any(named) {
        return;
    }
    match headers.get_mut(ANTHROPIC_BETA) {
        Some(first) if first.is_empty() => *first = HeaderValue::from_static(OAUTH_BETA),
        Some(first) => {
            let list = [OAUTH_BETA.as_bytes(), b",", first.as_bytes()].concat();
            if let Ok(list) = HeaderValue::from_bytes(&list) {
                *first = list;
            }
        }
        None => {
            headers.insert(ANTHROPIC_BETA, HeaderValue::from_static(OAUTH_BETA));
        }
    }
}

fn sensitive(text: &str) -> Result<HeaderValue, NoCredential> {
    // The configuration refuses credentials that no header can hold.
    let mut value = HeaderValue::from_str(text).map_err(|_| NoCredential::Login)?;
    value.set_sensitive(true);
    Ok(value)
}

/// A response head as the client gets it, in the order in which it came. `content-length` stays only where the body
/// passes exactly as it was announced.
pub fn downstream(headers: &HeaderMap, keep_length: bool) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(headers.len() + 2);
    let hop = HopByHop::of(headers);
    for (name, value) in headers {
        let text = name.as_str();
        let dropped = is_not_downstream(text) || (!keep_length && *name == CONTENT_LENGTH) || hop.has(text);
        if !dropped {
            kept.append(name, value.clone());
        }
    }
    kept
}

/// Says who answered, after how many attempts.
pub fn sign(headers: &mut HeaderMap, provider: Option<&str>, attempts: usize) {
    if let Some(value) = provider.and_then(|label| HeaderValue::from_str(&visible(label)).ok()) {
        headers.insert(X_PROVIDER_USED, value);
    }
    headers.insert(X_BALANCER_ATTEMPTS, HeaderValue::from(attempts));
}

/// Spaces and visible ASCII as they are, the rest percent-encoded.
fn visible(label: &str) -> String {
    let mut out = String::with_capacity(label.len());
    for byte in label.bytes() {
        if byte.is_ascii_graphic() || byte == b' ' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The fields of a head that end at its connection: those that always do, and those that `connection` lists.
struct HopByHop<'a>(Vec<&'a [u8]>);

impl<'a> HopByHop<'a> {
    fn of(headers: &'a HeaderMap) -> Self {
        let lists = headers.get_all(CONNECTION).iter().map(HeaderValue::as_bytes);
        let listed = lists.flat_map(|list| list.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        // What nearly every list is made of: a field that is dropped anyway, and an option that is no field.
        Self(listed.filter(|name| !matches!(*name, b"keep-alive" | b"close")).collect())
    }

    fn has(&self, name: &str) -> bool {
        is_hop_by_hop(name) || self.0.iter().any(|listed| listed.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// Whether the media type of a message is one of `kinds` (lower-case, without parameters).
pub fn is_of_kind(headers: &HeaderMap, kinds: &[&str]) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return false };
    let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    kinds.iter().any(|kind| essence.eq_ignore_ascii_case(kind.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{BaseUrl, Egress, Kind, ProviderKey};
    use crate::secret::Secret;

    fn provider(auth: Auth) -> Provider {
        let key = ProviderKey { name: "P".into(), account: None };
        Provider::new(key, Kind::Anthropic, BaseUrl::parse("https://h.test/pre").expect("url"), auth, Egress::Direct)
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn send(
        auth: Auth,
        fields: &[(&'static str, &'static str)],
        key_in: Option<HeaderName>,
    ) -> Result<Request, NoCredential> {
        let (headers, admitted) =
            (headers(fields), Admitted { keys_in: key_in.into_iter().map(|name| (name, 0)).collect(), key: None });
        let inbound = Inbound {
            method: &Method::POST,
            target: "/v1/messages?beta=true",
            headers: &headers,
            admitted: &admitted,
            hop: &HeaderValue::from_static("mark"),
            identity_only: true,
        };
        outbound(inbound, &provider(auth), None, Payload::Empty)
    }

    #[test]
    fn the_mark_goes_behind_those_of_others_and_not_where_no_loop_can_be() {
        let fields = headers(&[("x-proxy-hop", "other")]);
        let (admitted, hop) = (Admitted { keys_in: Vec::new(), key: None }, HeaderValue::from_static("mark"));
        let inbound = Inbound {
            method: &Method::POST,
            target: "/v1/messages",
            headers: &fields,
            admitted: &admitted,
            hop: &hop,
            identity_only: true,
        };
        for (place, wanted) in [("https://h.test", vec!["other", "mark"]), ("https://api.anthropic.com", vec!["other"])]
        {
            let mut provider = provider(Auth::ApiKey(Secret::new("ours")));
            provider.base = crate::provider::BaseUrl::parse(place).expect("a URL");
            let sent = outbound(inbound, &provider, None, Payload::Empty).expect("sent");
            assert_eq!(sent.headers.get_all(X_PROXY_HOP).iter().collect::<Vec<_>>(), wanted, "{place}");
        }
    }

    #[test]
    fn everything_passes_but_what_is_listed() {
        let request = send(
            Auth::ApiKey(Secret::new("ours")),
            &[
                ("authorization", "Bearer canary"),
                ("x-api-key", "canary"),
                ("x-goog-api-key", "canary"),
                ("proxy-authorization", "canary"),
                ("cookie", "canary"),
                ("host", "localhost:9090"),
                ("connection", "keep-alive, X-Private"),
                ("x-private", "canary"),
                ("x-forwarded-for", "canary"),
                ("forwarded", "canary"),
                ("te", "trailers"),
                ("expect", "100-continue"),
                ("content-length", "3"),
                ("accept-encoding", "gzip"),
                ("anthropic-beta", "a,b"),
                ("anthropic-new", "1"),
                ("x-stainless-os", "Linux"),
                ("user-agent", "claude-cli/2"),
                ("x-repeated", "1"),
                ("x-repeated", "2"),
            ],
            None,
        )
        .expect("sent");
        assert_eq!(request.target, "/pre/v1/messages?beta=true");
        let names: Vec<_> = request.headers.keys().map(HeaderName::as_str).collect();
        let wanted = [
            "host",
            "x-api-key",
            "anthropic-beta",
            "anthropic-new",
            "x-stainless-os",
            "user-agent",
            "x-repeated",
            "accept-encoding",
            "x-proxy-hop",
        ];
        assert_eq!(names, wanted);
        assert_eq!(
            (&request.headers["host"], &request.headers["x-api-key"]),
            (&"h.test".parse().unwrap(), &"ours".parse().unwrap())
        );
        assert_eq!(request.headers["accept-encoding"], "identity");
        assert_eq!(request.headers.get_all("x-repeated").iter().count(), 2);
        assert!(!format!("{request:?}").contains("ours"), "the credential is marked as sensitive");
    }

    #[test]
    fn exactly_one_credential_goes_out_and_none_means_nothing_is_sent() {
        let both = [("authorization", "Bearer own"), ("x-api-key", "own")];
        let bearer = send(Auth::Bearer(Secret::new("ours")), &both, None).expect("sent");
        assert_eq!(
            (bearer.headers["authorization"].to_str().ok(), bearer.headers.get("x-api-key")),
            (Some("Bearer ours"), None)
        );
        let own = send(Auth::Passthrough, &both, None).expect("sent");
        assert_eq!(
            (&own.headers["authorization"], &own.headers["x-api-key"]),
            (&"Bearer own".parse().unwrap(), &"own".parse().unwrap())
        );
        let keyed = send(Auth::Passthrough, &both, Some(X_API_KEY)).expect("sent");
        assert_eq!(
            (keyed.headers["authorization"].to_str().ok(), keyed.headers.get("x-api-key")),
            (Some("Bearer own"), None)
        );
        assert_eq!(
            send(Auth::Passthrough, &[("x-api-key", "key of the proxy")], Some(X_API_KEY)).err(),
            Some(NoCredential::Client)
        );
        assert_eq!(send(Auth::Passthrough, &[], None).err(), Some(NoCredential::Client));
        assert_eq!(send(Auth::OAuth, &both, None).err(), Some(NoCredential::Login));
    }

    #[test]
    fn the_feature_of_a_token_stands_in_front_of_every_other() {
        for (came, sent) in [
            (&[][..], &[OAUTH_BETA][..]),
            (&["a,b"], &["oauth-2025-04-20,a,b"]),
            (&["a", "b , oauth-2025-04-20"], &["a", "b , oauth-2025-04-20"]),
            (&["", "b"], &[OAUTH_BETA, "b"]),
        ] {
            let mut map = headers(&came.iter().map(|value| ("anthropic-beta", *value)).collect::<Vec<_>>());
            add_oauth_beta(&mut map);
            assert_eq!(map.get_all(ANTHROPIC_BETA).iter().collect::<Vec<_>>(), sent, "{came:?}");
        }
    }

    #[test]
    fn answers_lose_only_what_would_reach_beyond_them() {
        let kept = downstream(
            &headers(&[
                ("connection", "close, x-hop"),
                ("x-hop", "1"),
                ("keep-alive", "timeout=5"),
                ("transfer-encoding", "chunked"),
                ("set-cookie", "a=b"),
                ("access-control-allow-origin", "*"),
                ("alt-svc", "h3"),
                ("strict-transport-security", "max-age=1"),
                ("clear-site-data", "*"),
                ("x-provider-used", "forged"),
                ("request-id", "req_1"),
                ("retry-after", "3"),
                ("anthropic-ratelimit-unified-status", "allowed"),
                ("content-length", "3"),
                ("x-new", "1"),
            ]),
            false,
        );
        let names: Vec<_> = kept.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["request-id", "retry-after", "anthropic-ratelimit-unified-status", "x-new"]);
    }

    #[test]
    fn names_that_no_header_can_hold_are_percent_encoded() {
        let mut map = HeaderMap::new();
        sign(&mut map, Some("Büro 中 (a@b.c)"), 2);
        assert_eq!(map["x-provider-used"], "B%C3%BCro %E4%B8%AD (a@b.c)");
        assert_eq!(map["x-balancer-attempts"], "2");
    }
}
