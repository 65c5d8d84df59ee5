//! The head of a request on its way to a provider: a list of what it borrows from the client's, and what is ours.

use std::borrow::Cow;

use http::header::{ACCEPT_ENCODING, AUTHORIZATION};
use http::{HeaderMap, HeaderValue, Method};
use zeroize::Zeroizing;

use super::HopByHop;
use crate::gate::{Admitted, X_API_KEY};
use crate::oauth::Bearer;
use crate::provider::{Auth, Provider};
use crate::secret::Secret;
use crate::upstream::{Field, Payload, Request};

/// Further fields that do not go upstream: framing is set anew, cookies and the client's whereabouts are nobody's
/// business.
fn is_not_upstream(name: &str) -> bool {
    matches!(name, "host" | "content-length" | "expect" | "cookie" | "forwarded") || name.starts_with("x-forwarded-")
}

/// Where credentials travel; every one of them is dropped before one is added.
fn is_credential(name: &str) -> bool {
    matches!(name, "authorization" | "x-api-key" | "x-goog-api-key" | "api-key")
}

/// A list of features that the client asks for.
const ANTHROPIC_BETA: &str = "anthropic-beta";
/// The one without which a token of an account is refused.
const OAUTH_BETA: &str = "oauth-2025-04-20";

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
pub fn outbound<'a>(
    inbound: Inbound<'a>,
    provider: &'a Provider,
    bearer: Option<&Bearer>,
    payload: Payload<'a>,
) -> Result<Request<'a>, NoCredential> {
    static IDENTITY: HeaderValue = HeaderValue::from_static("identity");
    let mut headers = Vec::with_capacity(inbound.headers.len() + 4);
    headers.push(("host", Cow::Borrowed(&provider.host)));
    add_credential(&mut headers, inbound, provider, bearer)?;
    let hop = HopByHop::of(inbound.headers);
    for (name, value) in inbound.headers {
        let text = name.as_str();
        let dropped = is_not_upstream(text)
            || is_credential(text)
            || (inbound.identity_only && *name == ACCEPT_ENCODING)
            || hop.has(text);
        if !dropped {
            headers.push((text, Cow::Borrowed(value)));
        }
    }
    if provider.auth == Auth::OAuth {
        add_oauth_beta(&mut headers);
    }
    if inbound.identity_only {
        headers.push(("accept-encoding", Cow::Borrowed(&IDENTITY)));
    }
    if *provider.base.host != *NO_HOP {
        headers.push(("x-proxy-hop", Cow::Borrowed(inbound.hop)));
    }
    let target = match &*provider.base.prefix {
        "" => Cow::Borrowed(inbound.target),
        prefix => Cow::Owned([prefix, inbound.target].concat()),
    };
    Ok(Request { method: inbound.method, target, headers, payload })
}

fn add_credential(
    headers: &mut Vec<Field<'_>>,
    inbound: Inbound<'_>,
    provider: &Provider,
    bearer: Option<&Bearer>,
) -> Result<(), NoCredential> {
    match &provider.auth {
        Auth::ApiKey(secret) => headers.push(("x-api-key", Cow::Owned(sensitive(secret.expose())?))),
        Auth::Bearer(secret) => headers.push(("authorization", authorization(secret)?)),
        Auth::OAuth => {
            let own = |bearer: &&Bearer| provider.key.account.as_ref() == Some(bearer.email());
            let bearer = bearer.filter(own).ok_or(NoCredential::Login)?;
            headers.push(("authorization", authorization(bearer.access())?));
        }
        Auth::Passthrough => {
            let mut found = false;
            for (name, text) in [(AUTHORIZATION, "authorization"), (X_API_KEY, "x-api-key")] {
                for (index, value) in inbound.headers.get_all(&name).iter().enumerate() {
                    if inbound.admitted.keys_in.iter().any(|(key_in, at)| *key_in == name && *at == index) {
                        continue;
                    }
                    let mut value = value.clone();
                    value.set_sensitive(true);
                    headers.push((text, Cow::Owned(value)));
                    found = true;
                }
            }
            if !found {
                return Err(NoCredential::Client);
            }
        }
    }
    Ok(())
}

fn authorization(secret: &Secret) -> Result<Cow<'static, HeaderValue>, NoCredential> {
    sensitive(&Zeroizing::new(format!("Bearer {}", secret.expose()))).map(Cow::Owned)
}

/// Puts the feature that a token of an account needs in front of the client's, if the client does not name it.
fn add_oauth_beta(headers: &mut Vec<Field<'_>>) {
    let named = |value: &HeaderValue| {
        value.as_bytes().split(|byte| *byte == b',').any(|one| one.trim_ascii() == OAUTH_BETA.as_bytes())
    };
    let mut lists = headers.iter_mut().filter(|(name, _)| *name == ANTHROPIC_BETA).map(|(_, value)| value);
    let Some(first) = lists.next() else {
        headers.push((ANTHROPIC_BETA, Cow::Owned(HeaderValue::from_static(OAUTH_BETA))));
        return;
    };
    if named(first) || lists.any(|other| named(other)) {
        return;
    }
    let list = match first.as_bytes() {
        b"" => Ok(HeaderValue::from_static(OAUTH_BETA)),
        others => HeaderValue::from_bytes(&[OAUTH_BETA.as_bytes(), b",", others].concat()),
    };
    if let Ok(list) = list {
        *first = Cow::Owned(list);
    }
}

fn sensitive(text: &str) -> Result<HeaderValue, NoCredential> {
    // The configuration refuses credentials that no header can hold.
    let mut value = HeaderValue::from_str(text).map_err(|_| NoCredential::Login)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

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

    /// What was sent; `shown` is its `Debug`.
    struct Sent {
        target: String,
        headers: HeaderMap,
        shown: String,
    }

    impl Sent {
        fn of(request: &Request<'_>) -> Self {
            let mut headers = HeaderMap::new();
            for (name, value) in &request.headers {
                headers.append(name.parse::<HeaderName>().expect("a name"), HeaderValue::clone(value));
            }
            Self { target: request.target.to_string(), headers, shown: format!("{request:?}") }
        }
    }

    fn send(
        auth: Auth,
        fields: &[(&'static str, &'static str)],
        key_in: Option<HeaderName>,
    ) -> Result<Sent, NoCredential> {
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
        outbound(inbound, &provider(auth), None, Payload::Empty).map(|request| Sent::of(&request))
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
            let sent = Sent::of(&outbound(inbound, &provider, None, Payload::Empty).expect("sent"));
            assert_eq!(sent.headers.get_all("x-proxy-hop").iter().collect::<Vec<_>>(), wanted, "{place}");
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
        assert!(!request.shown.contains("ours"), "the credential is marked as sensitive");
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
            let map = headers(&came.iter().map(|value| ("anthropic-beta", *value)).collect::<Vec<_>>());
            let mut list = map.iter().map(|(name, value)| (name.as_str(), Cow::Borrowed(value))).collect();
            add_oauth_beta(&mut list);
            assert_eq!(list.iter().map(|(_, value)| &**value).collect::<Vec<_>>(), sent, "{came:?}");
        }
    }
}
