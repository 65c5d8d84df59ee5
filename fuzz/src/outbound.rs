//! The head of a request on its way out: one credential and never the one of another, the provider's own host, nothing
//! of the connection it came by, and all else as it came.

use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use claude_code_balancer::gate::{Admitted, X_API_KEY};
use claude_code_balancer::oauth::{Bearer, Generation, Token};
use claude_code_balancer::provider::{Auth, BaseUrl, Egress, Email, Kind, Provider, ProviderKey};
use claude_code_balancer::proxy::rewrite::{Inbound, X_PROXY_HOP, outbound};
use claude_code_balancer::secret::Secret;
use claude_code_balancer::upstream::Payload;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::gate::{KEY, head};

/// Ours, for the provider.
const OURS: &str = "credential-for-the-provider";
const BETA: &str = "anthropic-beta";
/// What never leaves: framing, connection, whereabouts, credentials.
const KEPT_BACK: [&str; 18] = [
    "authorization",
    "x-api-key",
    "x-goog-api-key",
    "api-key",
    "proxy-authorization",
    "proxy-authenticate",
    "proxy-connection",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
    "content-length",
    "expect",
    "cookie",
    "forwarded",
];

static PROVIDERS: LazyLock<[Provider; 4]> = LazyLock::new(|| {
    let email = Email::parse("a@example.com");
    let provider = |auth: Auth| {
        let key = ProviderKey { name: "P".into(), account: email.clone().filter(|_| auth == Auth::OAuth) };
        let base = BaseUrl::parse("https://h.test:8443/pre/fix").expect("a URL");
        Provider::new(key, Kind::Anthropic, base, auth, Egress::Direct)
    };
    [Auth::ApiKey(Secret::new(OURS)), Auth::Bearer(Secret::new(OURS)), Auth::OAuth, Auth::Passthrough].map(provider)
});

static BEARER: LazyLock<Bearer> = LazyLock::new(|| {
    Bearer::new(Arc::new(Token {
        email: Email::parse("a@example.com").expect("an address"),
        access: Secret::new(OURS),
        refresh: None,
        expires_at: SystemTime::UNIX_EPOCH,
        scopes: Vec::new(),
        verified: true,
        created_at: SystemTime::UNIX_EPOCH,
        generation: Generation(1),
    }))
});

pub fn check(bytes: &[u8]) {
    let Some((method, uri, headers)) = head(bytes) else { return };
    let Some(target) = uri.path_and_query().map(|target| target.as_str()) else { return };
    let is_key = |value: &&HeaderValue| value.as_bytes().ends_with(KEY.as_bytes());
    let keys_in = [AUTHORIZATION, X_API_KEY].into_iter().flat_map(|name| {
        let places = headers.get_all(&name).iter().enumerate().filter(|(_, value)| is_key(value));
        places.map(|(index, _)| (name.clone(), index)).collect::<Vec<_>>()
    });
    let admitted = Admitted { keys_in: keys_in.collect(), key: None };
    let hop_mark = HeaderValue::from_static("mark");
    for (provider, identity_only) in PROVIDERS.iter().flat_map(|provider| [(provider, true), (provider, false)]) {
        let inbound =
            Inbound { method: &method, target, headers: &headers, admitted: &admitted, identity_only, hop: &hop_mark };
        let own: Vec<(&HeaderName, &HeaderValue)> = headers
            .iter()
            .filter(|(name, value)| [AUTHORIZATION, X_API_KEY].contains(name) && !is_key(value))
            .collect();
        let wanted: HeaderMap = match &provider.auth {
            Auth::ApiKey(_) => [(X_API_KEY, HeaderValue::from_static(OURS))].into_iter().collect(),
            Auth::Bearer(_) | Auth::OAuth => {
                let value = HeaderValue::from_str(&format!("Bearer {OURS}")).expect("a value");
                [(AUTHORIZATION, value)].into_iter().collect()
            }
            Auth::Passthrough => own.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        };
        let Ok(request) = outbound(inbound, provider, Some(&BEARER), Payload::Empty) else {
            assert!(wanted.is_empty(), "a credential is not used");
            continue;
        };
        assert!(!wanted.is_empty(), "nothing is sent without a credential");
        assert_eq!((request.method, &*request.target), (&method, &*format!("/pre/fix{target}")));
        let mut fields = HeaderMap::new();
        for (name, value) in &request.headers {
            fields.append(HeaderName::from_bytes(name.as_bytes()).expect("a name"), HeaderValue::clone(value));
        }
        let sent = |name: &HeaderName| fields.get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(sent(&HOST), ["h.test:8443"]);
        for name in [AUTHORIZATION, X_API_KEY] {
            assert_eq!(sent(&name), wanted.get_all(&name).iter().collect::<Vec<_>>(), "{name} to {:?}", provider.auth);
        }
        let printed = format!("{request:?}");
        assert!(!printed.contains(OURS) || bytes.windows(OURS.len()).any(|part| part == OURS.as_bytes()));

        let hop = |name: &HeaderName| {
            let named =
                headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
            named.map(<[u8]>::trim_ascii).any(|named| named.eq_ignore_ascii_case(name.as_str().as_bytes()))
        };
        for name in headers.keys().chain(fields.keys()) {
            let (came, sent) = (headers.get_all(name).iter().collect::<Vec<_>>(), sent(name));
            let back = KEPT_BACK.contains(&name.as_str()) || name.as_str().starts_with("x-forwarded-") || hop(name);
            if [HOST, AUTHORIZATION, X_API_KEY].contains(name) {
                // Above.
            } else if *name == ACCEPT_ENCODING && identity_only {
                assert_eq!(sent, ["identity"]);
            } else if *name == X_PROXY_HOP {
                let came = if back { Vec::new() } else { came };
                assert_eq!(sent, [came, vec![&hop_mark]].concat(), "the mark of this balancer comes last");
            } else if *name == BETA && provider.auth == Auth::OAuth {
                let came = if back { Vec::new() } else { came };
                has_beta(&sent, &came);
            } else {
                assert_eq!(sent, if back { Vec::new() } else { came }, "{name}");
            }
        }
    }
}

/// The feature that a token needs is named once more at the most, in front.
fn has_beta(sent: &[&HeaderValue], came: &[&HeaderValue]) {
    let flat = |values: &[&HeaderValue]| {
        let all = values.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        all.map(|one| one.trim_ascii().to_vec()).filter(|one| !one.is_empty()).collect::<Vec<_>>()
    };
    let (sent, mut wanted, feature) = (flat(sent), flat(came), b"oauth-2025-04-20".to_vec());
    if !wanted.contains(&feature) {
        wanted.insert(0, feature);
    }
    assert_eq!(sent, wanted);
}
