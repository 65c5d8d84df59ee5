use super::*;
use http::HeaderValue;
use proptest::prelude::*;

fn policy() -> Policy<'static> {
    Policy { port: 9090, bound: "127.0.0.1", allowed_hosts: &[], keys: &[], exempt_paths: &[], peer_is_local: true }
}

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).expect("value"))).collect()
}

fn verdict(
    method: &str,
    target: &str,
    fields: &[(&'static str, &str)],
    policy: Policy<'_>,
) -> Result<Admitted, Refusal> {
    let method = Method::from_bytes(method.as_bytes()).expect("method");
    admit(&method, &target.parse().expect("target"), &headers(fields), policy)
}

fn key(text: &str) -> ClientKey {
    ClientKey { name: None, secret: Secret::new(text) }
}

const OWN: (&str, &str) = ("host", "localhost:9090");

#[test]
fn only_our_own_names_with_the_real_port_are_served() {
    let allowed = ["balancer.local".to_owned(), "gate.example:8443".to_owned()];
    let policy = Policy { allowed_hosts: &allowed, ..policy() };
    let served = [
        "localhost:9090",
        "LOCALHOST:9090",
        "127.0.0.1:9090",
        "[::1]:9090",
        "balancer.local",
        "balancer.local:9090",
        "gate.example:8443",
    ];
    for host in served {
        assert!(verdict("GET", "/health", &[("host", host)], policy).is_ok(), "{host}");
    }
    let foreign = [
        "evil",
        "evil:9090",
        "localhost",
        "localhost:9091",
        "localhost.evil.com:9090",
        "127.0.0.1.nip.io:9090",
        ":9090",
        "127.0.0.1",
        "[::1]",
        "::1:9090",
        "127.0.0.2:9090",
        "balancer.local:80",
        "gate.example:9090",
        "localhost.:9090",
        "localhost:+9090",
        "localhost:9090.",
        "user@localhost:9090",
        "localhost:9090:9090",
        "[127.0.0.1]:9090",
        "127.0.0.1]:9090",
    ];
    for host in foreign {
        assert_eq!(verdict("GET", "/health", &[("host", host)], policy), Err(Refusal::ForeignHost), "{host}");
    }
    for missing in [&[][..], &[("host", "")], &[OWN, OWN], &[OWN, ("host", "evil")]] {
        assert_eq!(verdict("GET", "/health", missing, policy), Err(Refusal::Host), "{missing:?}");
    }
}

#[test]
fn web_pages_are_refused_on_every_route() {
    for target in ["/", "/health", "/providers", "/v1/messages", "/oauth/tokens", "/nowhere"] {
        for field in [
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("origin", "http://localhost.evil.com"),
            ("origin", "http://127.0.0.1:8080"),
            ("origin", "https://localhost:9090"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert_eq!(
                verdict("GET", target, &[OWN, field], policy()),
                Err(Refusal::ForeignOrigin),
                "{target} {field:?}"
            );
        }
        for field in [
            ("origin", "http://localhost:9090"),
            ("sec-fetch-site", "none"),
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-mode", "cors"),
        ] {
            assert!(verdict("GET", target, &[OWN, field], policy()).is_ok(), "{target} {field:?}");
        }
    }
}

#[test]
fn targets_that_other_parsers_read_otherwise_are_refused() {
    for target in [
        "/v1/../oauth/tokens",
        "/v1/%2e%2e/x",
        "/v1/%2E./x",
        "//evil/v1",
        "/v1/./x",
        "/v1//x",
        "http://evil/v1/messages",
    ] {
        assert_eq!(verdict("GET", target, &[OWN], policy()), Err(Refusal::Target), "{target}");
    }
    for target in ["/v1/messages?beta=true", "/v1/a.b/..c", "http://localhost:9090/v1/messages", "/v1/files/a%2fb"] {
        assert!(verdict("GET", target, &[OWN], policy()).is_ok(), "{target}");
    }
}

proptest! {
    #[test]
    fn a_path_that_needs_no_closer_look_would_pass_it(path in "/?([a-c;~]|/|//|\\.|%2[eF]|\\\\|[ -~]|[\u{0}-\u{ff}]){0,9}") {
        prop_assert!(!is_calm(&path) || is_clear(&path), "{path:?}");
    }
}

#[test]
fn most_paths_need_no_closer_look() {
    for path in ["/", "/v1/messages", "/v1/messages/count_tokens", "/v1/files/file_011-a~b;c"] {
        assert!(is_calm(path), "{path}");
    }
}

#[test]
fn methods_beyond_the_four_are_refused() {
    for method in ["OPTIONS", "PUT", "PATCH", "TRACE", "get"] {
        assert_eq!(verdict(method, "/v1/messages", &[OWN], policy()), Err(Refusal::Method), "{method}");
    }
}

#[test]
fn management_is_for_this_machine() {
    let remote = Policy { peer_is_local: false, ..policy() };
    for target in ["/providers", "/providers/reload", "/oauth/status", "/metrics"] {
        assert_eq!(verdict("GET", target, &[OWN], remote), Err(Refusal::Remote), "{target}");
        for field in [("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=x"), ("via", "1.1 x")] {
            assert_eq!(verdict("GET", target, &[OWN, field], policy()), Err(Refusal::Remote), "{target} {field:?}");
        }
    }
    for target in ["/provider", "/providersx", "/oauthx/status", "/v1/providers", "/x/oauth"] {
        assert!(verdict("GET", target, &[OWN, ("via", "1.1 x")], policy()).is_ok(), "{target}");
    }
    let keys = [key("first-key-0123456")];
    let keyed = Policy { keys: &keys, ..remote };
    for target in ["/", "/health", "/v1/messages"] {
        assert!(verdict("GET", target, &[OWN, ("x-api-key", "first-key-0123456")], keyed).is_ok(), "{target}");
        assert_eq!(verdict("GET", target, &[OWN], remote), Err(Refusal::NoKey), "no keys let nobody in from outside");
    }
    let managing = verdict("GET", "/providers", &[OWN, ("x-api-key", "first-key-0123456")], keyed);
    assert_eq!(managing, Err(Refusal::Remote), "not even with a key");
}

#[test]
fn management_bodies_are_json_or_empty() {
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""] {
        let fields = [OWN, ("content-type", kind), ("content-length", "2")];
        assert_eq!(verdict("POST", "/providers/reload", &fields, policy()), Err(Refusal::MediaType), "{kind}");
    }
    assert_eq!(
        verdict("POST", "/providers/reload", &[OWN, ("content-length", "2")], policy()),
        Err(Refusal::MediaType)
    );
    for fields in [
        &[OWN][..],
        &[OWN, ("content-length", "0")],
        &[OWN, ("content-type", "Application/JSON; charset=utf-8"), ("content-length", "2")],
    ] {
        assert!(verdict("POST", "/providers/reload", fields, policy()).is_ok(), "{fields:?}");
    }
}

#[test]
fn compressed_requests_are_refused() {
    assert_eq!(verdict("POST", "/v1/messages", &[OWN, ("content-encoding", "gzip")], policy()), Err(Refusal::Encoded));
    assert!(verdict("POST", "/v1/messages", &[OWN, ("content-encoding", "identity")], policy()).is_ok());
    let second = [OWN, ("content-encoding", "identity"), ("content-encoding", "gzip")];
    assert_eq!(verdict("POST", "/v1/messages", &second, policy()), Err(Refusal::Encoded));
}

#[test]
fn the_key_may_come_in_either_header_and_is_named_for_removal() {
    let keys = [key("first-key-0123456"), key("second-key-012345")];
    let exempt = ["/health".to_owned()];
    let policy = Policy { keys: &keys, exempt_paths: &exempt, ..policy() };
    let post = |fields: &[(&'static str, &str)]| verdict("POST", "/v1/messages", fields, policy).map(|a| a.keys_in);
    assert_eq!(post(&[OWN]), Err(Refusal::NoKey));
    assert_eq!(post(&[OWN, ("x-api-key", "wrong")]), Err(Refusal::WrongKey));
    assert_eq!(post(&[OWN, ("x-api-key", "second-key-012345")]), Ok(vec![(X_API_KEY, 0)]));
    assert_eq!(post(&[OWN, ("authorization", "Bearer first-key-0123456")]), Ok(vec![(AUTHORIZATION, 0)]));
    assert_eq!(post(&[OWN, ("authorization", "bearer first-key-0123456")]), Ok(vec![(AUTHORIZATION, 0)]));
    assert_eq!(post(&[OWN, ("authorization", "first-key-0123456")]), Ok(vec![(AUTHORIZATION, 0)]));
    assert_eq!(
        post(&[OWN, ("x-api-key", "client's own"), ("authorization", "Bearer first-key-0123456")]),
        Ok(vec![(AUTHORIZATION, 0)])
    );
    assert_eq!(
        post(&[OWN, ("authorization", "Bearer first-key-0123456"), ("x-api-key", "first-key-0123456")]),
        Ok(vec![(X_API_KEY, 0), (AUTHORIZATION, 0)]),
        "sent twice, it is removed twice"
    );
    assert!(verdict("GET", "/health", &[OWN], policy).is_ok());
    assert!(verdict("HEAD", "/", &[OWN], policy).is_ok());
    assert!(verdict("HEAD", "/api/hello", &[OWN], policy).is_ok());
    assert_eq!(verdict("GET", "/", &[OWN], policy), Err(Refusal::NoKey));
    assert_eq!(verdict("GET", "/providers", &[OWN], policy), Err(Refusal::NoKey));
}

#[test]
fn framing_must_be_clear() {
    let post = |fields: &[(&'static str, &str)]| verdict("POST", "/v1/messages", &[&[OWN], fields].concat(), policy());
    for fields in [
        &[][..],
        &[("content-length", "0")],
        &[("content-length", "10")],
        &[("transfer-encoding", "chunked")],
        &[("transfer-encoding", "Chunked")],
    ] {
        assert!(post(fields).is_ok(), "{fields:?}");
    }
    for fields in [
        &[("content-length", "3"), ("transfer-encoding", "chunked")][..],
        &[("content-length", "")],
        &[("content-length", "03")],
        &[("content-length", "00")],
        &[("content-length", "+3")],
        &[("content-length", "3, 3")],
        &[("transfer-encoding", "gzip, chunked")],
        &[("transfer-encoding", "chunked, chunked")],
        &[("transfer-encoding", "")],
    ] {
        assert_eq!(post(fields), Err(Refusal::Framing), "{fields:?}");
    }
    for field in [("content-length", "3"), ("transfer-encoding", "chunked")] {
        assert_eq!(verdict("GET", "/v1/models", &[OWN, field], policy()), Err(Refusal::Framing), "{field:?}");
    }
    assert!(verdict("GET", "/v1/models", &[OWN, ("content-length", "0")], policy()).is_ok());
}

#[test]
fn targets_have_a_limit() {
    let target = |length: usize| format!("/v1/messages?{}", "q".repeat(length - "/v1/messages?".len()));
    assert!(verdict("POST", &target(8192), &[OWN], policy()).is_ok());
    assert_eq!(verdict("POST", &target(8193), &[OWN], policy()), Err(Refusal::Target));
}

#[test]
fn an_escape_hides_no_way_up_and_no_control() {
    for path in [
        "/v1/%2e%2e%2fproviders",
        "/v1/x%2F..%2Fy",
        "/v1/..;a=b/x",
        "/v1/%2e%2E;/x",
        "/v1/x%5c..%5cy",
        "/v1/x%00",
        "/v1/x%0d%0ay:%20z",
        "/v1/x%7f",
        "/v1/x%",
        "/v1/x%4",
        "/v1/x%zz",
        "/v1/x%ff",
    ] {
        assert_eq!(verdict("POST", path, &[OWN], policy()), Err(Refusal::Target), "{path}");
    }
    for path in [
        "/v1/models/anthropic%2Fclaude-x",
        "/v1/models/claude..x",
        "/v1/files/a%20b",
        "/v1/files/%C3%BC",
        "/v1/...",
        "/v1/a;b",
    ] {
        assert!(verdict("GET", path, &[OWN], policy()).is_ok(), "{path}");
    }
}

#[test]
fn credentials_are_masked() {
    let mut map = headers(&[
        ("authorization", "canary"),
        ("x-api-key", "canary"),
        ("cookie", "canary"),
        ("proxy-authorization", "canary"),
        ("x-goog-api-key", "canary"),
        ("api-key", "canary"),
        ("accept", "shown"),
    ]);
    mask(&mut map);
    let shown = format!("{map:?}");
    assert!(shown.contains("shown") && !shown.contains("canary"), "{shown}");
}
