//! The gate: whoever is let in asked for a name of ours, comes from no foreign page, climbs nowhere, and has a body of
//! which there is one reading. Each rule is written here once more, in another way.

use claude_code_balancer::gate::{self, ClientKey, Policy, X_API_KEY};
use claude_code_balancer::secret::Secret;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, HOST, ORIGIN, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

/// Opens the gate that asks for a key.
pub(super) const KEY: &str = "key-of-the-gate-0123";

/// A request's head, as far as the libraries take it for one.
pub(super) fn head(bytes: &[u8]) -> Option<(Method, Uri, HeaderMap)> {
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut fields);
    if !request.parse(bytes).ok()?.is_complete() {
        return None;
    }
    let mut headers = HeaderMap::new();
    for field in request.headers.iter() {
        headers.append(HeaderName::from_bytes(field.name.as_bytes()).ok()?, HeaderValue::from_bytes(field.value).ok()?);
    }
    Some((Method::from_bytes(request.method?.as_bytes()).ok()?, Uri::try_from(request.path?).ok()?, headers))
}

pub fn check(bytes: &[u8]) {
    let Some((method, uri, headers)) = head(bytes) else { return };
    let allowed = ["proxy.example".to_owned(), "other.example:8443".to_owned()];
    let own = |bound: &str| {
        let mut own: Vec<String> = ["localhost", "127.0.0.1", "[::1]", bound, "proxy.example"]
            .iter()
            .map(|name| format!("{name}:9090"))
            .collect();
        own.extend(allowed.clone());
        own
    };
    let (keys, exempt) = ([ClientKey { name: None, secret: Secret::new(KEY) }], ["/health".to_owned()]);
    let open = Policy {
        port: 9090,
        bound: "127.0.0.1",
        allowed_hosts: &allowed,
        keys: &[],
        exempt_paths: &exempt,
        peer_is_local: true,
    };
    let guarded = Policy { bound: "fd00::1", keys: &keys, ..open };
    let far = Policy { peer_is_local: false, ..guarded };
    for (policy, own) in [(open, own("127.0.0.1")), (guarded, own("[fd00::1]")), (far, own("[fd00::1]"))] {
        let Ok(admitted) = gate::admit(&method, &uri, &headers, policy) else { continue };
        let has = |name: HeaderName| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
        let ours = |host: &[u8]| own.iter().any(|own| own.as_bytes().eq_ignore_ascii_case(host));

        let hosts = has(HOST);
        assert!(hosts.len() == 1 && ours(hosts[0]), "let in at {hosts:?}");
        let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
        assert!(authority.is_none_or(|authority| authority.eq_ignore_ascii_case(hosts[0])), "{uri} at {hosts:?}");
        assert!(has(ORIGIN).iter().all(|origin| origin.strip_prefix(b"http://").is_some_and(ours)));
        assert!(headers.get_all("sec-fetch-site").iter().all(|site| site == "none" || site == "same-origin"));

        let path = uri.path();
        assert!(
            path.starts_with('/')
                && !path.contains("//")
                && uri.path_and_query().is_none_or(|all| all.as_str().len() <= 8192)
        );
        let lower = path.to_ascii_lowercase();
        let plain = lower.replace("%2e", ".").replace("%2f", "/").replace("%5c", "\\").replace("%3b", ";");
        assert!(!plain.contains('\\') && !plain.split('/').any(climbs), "{path}");
        let controls = (0..32).chain([127]).any(|byte| lower.contains(&format!("%{byte:02x}")));
        assert!(!controls && path.is_ascii(), "{path}");

        let (lengths, codings) = (has(CONTENT_LENGTH), has(TRANSFER_ENCODING));
        assert!(lengths.len() + codings.len() <= 1, "two framings");
        let length = lengths.first().map(|length| std::str::from_utf8(length).expect("ASCII"));
        assert!(length.is_none_or(|length| length.bytes().all(|digit| digit.is_ascii_digit())));
        assert!(length.is_none_or(|length| length == "0" || matches!(length.as_bytes(), [b'1'..=b'9', ..])));
        assert!(codings.iter().all(|coding| coding.eq_ignore_ascii_case(b"chunked")));
        let bodiless = matches!(method.as_str(), "GET" | "HEAD");
        assert!(bodiless || matches!(method.as_str(), "POST" | "DELETE"), "{method}");
        assert!(!bodiless || (codings.is_empty() && length.is_none_or(|length| length == "0")), "{method} with a body");
        assert!(has(CONTENT_ENCODING).iter().all(|coding| coding.eq_ignore_ascii_case(b"identity")));

        let managed = ["/providers", "/oauth", "/metrics", "/cleanup"]
            .into_iter()
            .any(|room| path.strip_prefix(room).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
        let passed_on = headers
            .keys()
            .any(|name| matches!(name.as_str(), "forwarded" | "via") || name.as_str().starts_with("x-forwarded-"));
        assert!(!managed || (policy.peer_is_local && !passed_on), "{path} from afar");

        let probe = method == Method::HEAD && (path == "/" || path == "/api/hello");
        let free = policy.keys.is_empty() || probe || path == "/health";
        assert!(free || !admitted.keys_in.is_empty(), "let in without a key");
        for (name, index) in &admitted.keys_in {
            let value = headers.get_all(name).iter().nth(*index).expect("a field").as_bytes();
            assert!([X_API_KEY, AUTHORIZATION].contains(name) && value.trim_ascii().ends_with(KEY.as_bytes()));
        }
    }
}

/// A segment that leads up, or nowhere.
fn climbs(segment: &str) -> bool {
    let name = segment.split(';').next().unwrap_or_default();
    name == "." || name == ".."
}
