//! Who may talk to the balancer, over real sockets: a refusal reaches no provider, and nothing ever grants an origin.

use claude_code_balancer::lab::{Lab, Script};

use crate::support::binary::{Binary, ask};
use crate::support::running::{Running, ask_for, assert_grants_no_origin, assert_is_our_error, providers};
use crate::support::{Reply, soon};

const KEY: &str = "the-key-of-this-proxy-0123456789";

/// Every kind of path.
const PATHS: [(&str, &str); 13] = [
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/providers"),
    ("POST", "/providers/reload"),
    ("GET", "/metrics"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("GET", "/v1/models"),
    ("POST", "/v1/files"),
    ("GET", "/oauth/generate-url"),
    ("POST", "/oauth/refresh/a@b.test"),
    ("DELETE", "/oauth/tokens"),
    ("GET", "/nowhere"),
];

async fn lab_and(settings: &str) -> (Lab, Running) {
    let lab = Lab::start().await.unwrap();
    let running = Running::start(&format!("{}{settings}", providers(&[("A", &lab)]))).await;
    (lab, running)
}

/// A request with exactly these headers.
async fn raw(running: &Running, request: &str) -> Reply {
    let mut client = running.connect().await;
    client.send_raw(request.as_bytes()).await.unwrap();
    soon("an answer", client.read_to_end()).await.unwrap()
}

fn body_for(method: &str) -> String {
    if method == "POST" { ask_for("claude-x") } else { String::new() }
}

#[tokio::test]
async fn foreign_host_names_are_turned_away_before_routing() {
    let (lab, running) = lab_and("settings:\n  allowed_hosts: [gateway.lan, \"named.lan:8443\"]\n").await;
    let port = running.address.port();
    let rows: Vec<(Vec<String>, u16)> = vec![
        (vec![], 400),
        (vec![String::new()], 400),
        (vec![format!("localhost:{port}"), format!("localhost:{port}")], 400),
        (vec![format!("localhost:{port}"), "evil.test".into()], 400),
        (vec!["evil.test".into()], 421),
        (vec![format!("evil.test:{port}")], 421),
        (vec!["localhost".into()], 421),
        (vec!["127.0.0.1".into()], 421),
        (vec![format!("localhost:{}", port ^ 1)], 421),
        (vec![format!(":{port}")], 421),
        (vec![format!("localhost.evil.test:{port}")], 421),
        (vec![format!("127.0.0.1.evil.test:{port}")], 421),
        (vec![format!("[::2]:{port}")], 421),
        (vec![format!("0.0.0.0:{port}")], 421),
        (vec![format!("gateway.lan.evil.test:{port}")], 421),
        (vec![format!("named.lan:{port}")], 421),
        (vec![format!("localhost:{port}")], 200),
        (vec![format!("LOCALHOST:{port}")], 200),
        (vec![format!("127.0.0.1:{port}")], 200),
        (vec![format!("[::1]:{port}")], 200),
        (vec!["gateway.lan".into()], 200),
        (vec![format!("Gateway.LAN:{port}")], 200),
        (vec!["named.lan:8443".into()], 200),
    ];
    for (hosts, expected) in rows {
        let fields: String = hosts.iter().map(|host| format!("host: {host}\r\n")).collect();
        for (method, path) in PATHS {
            let body = body_for(method);
            if expected == 200 && path != "/health" {
                continue;
            }
            let length = body.len();
            let kind = "content-type: application/json\r\n";
            let head = format!("{method} {path} HTTP/1.1\r\n{fields}{kind}content-length: {length}\r\n\r\n{body}");
            let reply = raw(&running, &head).await;
            let what = format!("{method} {path} with {hosts:?}");
            assert_eq!(reply.status, expected, "{what}: {}", reply.text());
            if expected != 200 {
                assert_is_our_error(&reply, expected, "invalid_request_error", &what);
                assert!(!reply.text().contains("evil"), "{what}: {}", reply.text());
            }
        }
    }
    assert_eq!(lab.connections(), 0);
}

#[tokio::test]
async fn an_absolute_target_must_name_the_same_place_as_host() {
    let (lab, running) = lab_and("").await;
    let host = running.host();
    for (target, expected) in [
        (format!("http://{host}/health"), 200),
        ("http://evil.test/health".to_owned(), 400),
        (format!("http://user@{host}/health"), 400),
        (format!("http://localhost:{}/health", running.address.port()), 400),
    ] {
        let reply = raw(&running, &format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        assert_eq!(reply.status, expected, "{target}: {}", reply.text());
    }
    assert_eq!(lab.connections(), 0);
}

#[tokio::test]
async fn malformed_targets_reach_no_provider() {
    let (lab, running) = lab_and("").await;
    let host = running.host();
    for target in [
        "/v1/../providers",
        "/v1/%2e%2e/providers",
        "/v1/.%2E/x",
        "/v1//messages",
        "//evil.test/v1/messages",
        "/v1/messages/.",
        "/v1\\messages",
        "/v1/messages%",
        "/v1/%2e%2e%2fproviders",
        "/v1/x%0d%0ax-api-key:y",
        "/v1/x%00",
        "/v1/..;/providers",
        "*",
        "v1/messages",
        "/v1/\u{e4}",
    ] {
        let body = ask_for("claude-x");
        let request = format!("POST {target} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let mut client = running.connect().await;
        client.send_raw(request.as_bytes()).await.unwrap();
        let reply = soon(target, client.read_to_end()).await.unwrap();
        assert!(matches!(reply.status, 400 | 404), "{target}: {} {}", reply.status, reply.text());
        assert_grants_no_origin(&reply, target);
    }
    assert_eq!(lab.connections(), 0);
}

#[tokio::test]
async fn web_pages_are_refused_on_every_route() {
    let (lab, running) = lab_and("settings:\n  allowed_hosts: [gateway.lan]\n").await;
    let port = running.address.port();
    let own = format!("http://127.0.0.1:{port}");
    let by_name = format!("http://localhost:{port}");
    let https = format!("https://localhost:{port}");
    let elsewhere = format!("http://localhost:{}", port ^ 1);
    let prefix = format!("http://localhost:{port}.evil.test");
    let rebound = format!("http://evil.test:{port}");
    let foreign: Vec<Vec<(&str, &str)>> = vec![
        vec![("origin", "https://evil.test")],
        vec![("origin", "null")],
        vec![("origin", "")],
        vec![("origin", &https)],
        vec![("origin", &elsewhere)],
        vec![("origin", &prefix)],
        vec![("origin", &rebound)],
        vec![("origin", "http://localhost")],
        vec![("origin", "file://")],
        vec![("origin", &own), ("origin", "https://evil.test")],
        vec![("sec-fetch-site", "cross-site")],
        vec![("sec-fetch-site", "same-site")],
        vec![("sec-fetch-site", "Cross-Site")],
        vec![("sec-fetch-site", "")],
        vec![("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")],
        vec![("origin", &own), ("sec-fetch-site", "cross-site")],
    ];
    for headers in &foreign {
        for (method, path) in PATHS {
            let json = [("content-type", "application/json")];
            let headers = [headers.as_slice(), &json].concat();
            let reply = running.send(method, path, &headers, body_for(method)).await;
            assert_is_our_error(&reply, 403, "permission_error", &format!("{method} {path} {headers:?}"));
            assert_eq!(reply.header("x-should-retry"), Some("false"));
            assert_eq!(
                (reply.header("x-frame-options"), reply.header("cache-control")),
                (Some("DENY"), Some("no-store"))
            );
        }
    }
    assert_eq!(lab.connections(), 0);
    let welcome: Vec<Vec<(&str, &str)>> = vec![
        vec![],
        vec![("origin", &own)],
        vec![("origin", &by_name)],
        vec![("origin", "http://gateway.lan")],
        vec![("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")],
        vec![("sec-fetch-site", "same-origin"), ("origin", &own)],
        vec![("sec-fetch-mode", "cors")],
    ];
    for headers in &welcome {
        let reply = running.send("GET", "/providers", headers, "").await;
        assert_eq!(reply.status, 200, "{headers:?}: {}", reply.text());
        assert_grants_no_origin(&reply, "a page of our own");
    }
}

#[tokio::test]
async fn other_methods_are_answered_with_what_would_do() {
    let (lab, running) = lab_and("").await;
    let preflight = [("access-control-request-method", "POST"), ("access-control-request-private-network", "true")];
    for method in ["OPTIONS", "PUT", "PATCH", "TRACE", "PROPFIND", "get"] {
        for (_, path) in PATHS {
            let reply = running.send(method, path, &preflight, "").await;
            if path == "/nowhere" && method != "OPTIONS" {
                assert_is_our_error(&reply, 404, "not_found_error", &format!("{method} {path}"));
                continue;
            }
            assert_is_our_error(&reply, 405, "invalid_request_error", &format!("{method} {path}"));
            let allow = match path {
                "/" | "/health" | "/providers" | "/metrics" | "/oauth/status" | "/oauth/generate-url" => "GET, HEAD",
                "/v1/messages" | "/v1/messages/count_tokens" | "/providers/reload" | "/oauth/exchange-code" => "POST",
                "/api/hello" => "HEAD",
                "/oauth/tokens" => "DELETE",
                _ if path.starts_with("/oauth/tokens/") => "DELETE",
                _ if path.starts_with("/oauth/refresh/") => "POST",
                _ => "GET, HEAD, POST, DELETE",
            };
            assert_eq!(reply.header("allow"), Some(allow), "{method} {path}");
        }
    }
    assert_eq!(lab.connections(), 0);
}

#[tokio::test]
async fn management_is_never_served_to_a_forwarded_request() {
    let (_lab, running) = lab_and("").await;
    for header in [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("forwarded", "for=127.0.0.1"),
        ("via", "1.1 proxy"),
    ] {
        for (method, path) in
            [("GET", "/providers"), ("POST", "/providers/reload"), ("GET", "/oauth/status"), ("GET", "/metrics")]
        {
            let reply = running.send(method, path, &[header], "").await;
            assert_is_our_error(&reply, 403, "permission_error", &format!("{method} {path} {header:?}"));
        }
        assert_eq!(running.send("GET", "/health", &[header], "").await.status, 200, "{header:?}");
    }
}

#[tokio::test]
async fn management_bodies_that_a_form_could_send_are_refused() {
    let (_lab, running) = lab_and("").await;
    for path in ["/providers/reload", "/oauth/exchange-code", "/oauth/refresh/a@b.test"] {
        for kind in [
            Some("text/plain"),
            Some("application/x-www-form-urlencoded"),
            Some("multipart/form-data; boundary=x"),
            None,
        ] {
            let headers: Vec<_> = kind.map(|kind| ("content-type", kind)).into_iter().collect();
            let reply = running.send("POST", path, &headers, "{\"code\":\"x\"}").await;
            assert_is_our_error(&reply, 415, "invalid_request_error", &format!("{path} {kind:?}"));
        }
        for body in ["", "{}"] {
            let headers: &[_] =
                if body.is_empty() { &[] } else { &[("content-type", "application/json; charset=utf-8")] };
            let reply = running.send("POST", path, headers, body).await;
            assert_ne!(reply.status, 415, "{path} {body:?}: {}", reply.text());
        }
    }
}

fn with_key(passthrough: &Lab, keyed: &Lab) -> String {
    format!(
        "providers:\n  - {{ name: P, base_url: \"{}\", auth_value: passthrough }}\n  \
         - {{ name: K, base_url: \"{}\", auth_value: key-K }}\nmodel_routes:\n  \"p-*\": [{{ provider: P }}]\n  \
         \"k-*\": [{{ provider: K }}]\nsettings:\n  auth: {{ enabled: true, api_key: {KEY} }}\n",
        passthrough.url(),
        keyed.url()
    )
}

#[tokio::test]
async fn with_a_key_set_nobody_passes_without_it_but_probes_and_exempt_paths() {
    let lab = Lab::start().await.unwrap();
    let running = Running::start(&with_key(&lab, &lab)).await;
    let bearer = format!("Bearer {KEY}");
    for (method, path) in PATHS.into_iter().filter(|(_, path)| *path != "/health") {
        let what = format!("{method} {path}");
        let json = ("content-type", "application/json");
        let missing = running.send(method, path, &[json], body_for(method)).await;
        assert_is_our_error(&missing, 401, "authentication_error", &what);
        assert_eq!(missing.header("x-should-retry"), Some("false"), "{what}");
        for wrong in ["", "x", &KEY[1..], &format!("{KEY}x"), &KEY.to_uppercase(), &format!("Basic {KEY}")] {
            for name in ["x-api-key", "authorization"] {
                let reply = running.send(method, path, &[json, (name, wrong)], body_for(method)).await;
                assert_is_our_error(&reply, 401, "authentication_error", &format!("{what} {name}: {wrong}"));
                assert_eq!(reply.header("x-should-retry"), Some("false"), "{what}");
                assert!(!reply.text().contains(&KEY[1..]), "{what}");
            }
        }
    }
    assert_eq!(lab.connections(), 0);
    for (method, path) in [("GET", "/health"), ("HEAD", "/health"), ("HEAD", "/"), ("HEAD", "/api/hello")] {
        assert_eq!(running.send(method, path, &[], "").await.status, 200, "{method} {path}");
        let wrong = running.send(method, path, &[("x-api-key", "wrong")], "").await;
        assert_eq!(wrong.status, 200, "{method} {path} with a client's own key");
    }
    for header in [("x-api-key", KEY), ("authorization", &bearer), ("authorization", KEY)] {
        assert_eq!(running.send("GET", "/providers", &[header], "").await.status, 200, "{header:?}");
    }
}

#[tokio::test]
async fn the_key_of_this_proxy_opens_it_and_never_leaves() {
    let (passthrough, keyed) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let running = Running::start(&with_key(&passthrough, &keyed)).await;
    let bearer = format!("Bearer {KEY}");
    type Row<'a> = (&'static [&'static str], Vec<(&'a str, &'a str)>, u16);
    let rows: Vec<Row<'_>> = vec![
        (&["authorization: Bearer own-token"], vec![("x-api-key", KEY), ("authorization", "Bearer own-token")], 200),
        (&["x-api-key: own-key"], vec![("authorization", &bearer), ("x-api-key", "own-key")], 200),
        // Both variables of Claude Code are set to the key of the proxy: nothing of the client's own is left.
        (&[], vec![("authorization", &bearer), ("x-api-key", KEY)], 401),
        (&[], vec![("x-api-key", KEY)], 401),
        (&[], vec![("authorization", &bearer)], 401),
        (&["x-api-key: own-key"], vec![("x-api-key", KEY), ("x-api-key", "own-key")], 200),
    ];
    for (number, (kept, sent, status)) in rows.into_iter().enumerate() {
        for model in ["p-model", "k-model"] {
            let headers = [sent.as_slice(), &[("content-type", "application/json")]].concat();
            let reply = running.send("POST", "/v1/messages", &headers, ask_for(model)).await;
            let expected = if model == "p-model" { status } else { 200 };
            assert_eq!(reply.status, expected, "row {number} {model}: {}", reply.text());
        }
        if status == 200 {
            let request = passthrough.requests().pop().unwrap();
            let credentials: Vec<_> = request
                .headers
                .iter()
                .filter(|(name, _)| matches!(name.to_lowercase().as_str(), "x-api-key" | "authorization"))
                .map(|(name, value)| format!("{}: {value}", name.to_lowercase()))
                .collect();
            assert_eq!(credentials, kept, "row {number}");
        }
        let request = keyed.requests().pop().unwrap();
        assert_eq!((request.header("x-api-key"), request.header("authorization")), (Some("key-K"), None));
    }
    for request in [passthrough.requests(), keyed.requests()].concat() {
        let bytes = [&request.head[..], &request.body[..]].concat();
        assert!(!String::from_utf8_lossy(&bytes).contains(KEY), "{}", String::from_utf8_lossy(&bytes));
    }
}

#[tokio::test]
async fn encoded_and_oversized_bodies_are_refused_before_they_are_read() {
    let (lab, running) = lab_and("").await;
    for (coding, status) in [("gzip", 415), ("br", 415), ("zstd, gzip", 415), ("identity", 200)] {
        let reply = running.send("POST", "/v1/messages", &[("content-encoding", coding)], ask_for("m")).await;
        assert_eq!(reply.status, status, "{coding}: {}", reply.text());
        if status == 415 {
            assert_is_our_error(&reply, 415, "invalid_request_error", coding);
        }
    }
    assert_eq!(lab.requests().len(), 1);

    // Only the head is sent: the answer cannot depend on the body.
    for path in ["/v1/messages", "/v1/messages/count_tokens"] {
        let reply = running.send("POST", path, &[("content-length", "33554433")], "").await;
        assert_is_our_error(&reply, 413, "request_too_large", path);
    }

    let host = running.host();
    let mut client = running.connect().await;
    client.send("POST", "/v1/messages", &[("host", &host), ("transfer-encoding", "chunked")], "").await.unwrap();
    let piece = vec![b' '; 1 << 20];
    let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat();
    let mut sent = 0;
    // It may close while we are still sending.
    while sent < 40 && client.send_raw(&chunk).await.is_ok() {
        sent += 1;
    }
    assert!(sent >= 32, "{sent} MiB were taken");
    let reply = soon("the refusal", client.read_to_end()).await.unwrap();
    assert_is_our_error(&reply, 413, "request_too_large", "chunked");
    assert_eq!(lab.requests().len(), 1);
}

#[tokio::test]
async fn bodies_that_two_readers_might_understand_differently_are_refused() {
    let (lab, running) = lab_and("").await;
    for body in [
        r#"{"model":"a","model":"b"}"#,
        r#"{"model":"a","mod\u0065l":"a"}"#,
        r#"{"model":"a","stream":true,"stream":false}"#,
        r#"["model"]"#,
        r#""model""#,
        "null",
        "",
        "model=a",
        r#"{"model":"a""#,
        r#"{"model":"a"} x"#,
        r#"{"messages":[]}"#,
        r#"{"model":7}"#,
        r#"{"model":""}"#,
    ] {
        for path in ["/v1/messages", "/v1/messages/count_tokens"] {
            let reply = running.send("POST", path, &[("content-type", "application/json")], body).await;
            assert_is_our_error(&reply, 400, "invalid_request_error", &format!("{path} {body}"));
        }
    }
    assert_eq!(lab.connections(), 0);
}

#[tokio::test]
async fn what_a_provider_grants_an_origin_does_not_pass() {
    let (lab, running) = lab_and("").await;
    let generous = |script: Script| {
        script
            .header("access-control-allow-origin", "*")
            .header("access-control-allow-private-network", "true")
            .header("set-cookie", "a=b")
    };
    for script in [Script::message("hi"), Script::error(400, "invalid_request_error", "no")] {
        lab.next(generous(script));
        let reply = running.message(ask_for("m")).await;
        assert_grants_no_origin(&reply, "a provider's answer");
        assert_eq!(reply.header("set-cookie"), None);
    }
}

#[tokio::test]
async fn targets_have_a_limit() {
    let (lab, running) = lab_and("").await;
    let target = format!("/v1/messages?{}", "q".repeat(9000));
    let reply = running.send("POST", &target, &[], ask_for("m")).await;
    assert_is_our_error(&reply, 400, "invalid_request_error", "a target over 8 KiB");
    assert_eq!(lab.connections(), 0);
}

#[tokio::test]
async fn nobody_is_asked_for_a_body_that_will_be_refused() {
    let lab = Lab::start().await.unwrap();
    let running = Running::start(&with_key(&lab, &lab)).await;
    let host = running.host();
    let expect = ("expect", "100-continue");
    for (what, headers, status) in [
        ("no key", vec![("content-length", "100")], 401),
        ("too large", vec![("content-length", "99999999"), ("x-api-key", KEY)], 413),
        ("encoded", vec![("content-length", "100"), ("x-api-key", KEY), ("content-encoding", "gzip")], 415),
    ] {
        let mut client = running.connect().await;
        client.send("POST", "/v1/messages", &[headers, vec![("host", &host), expect]].concat(), "").await.unwrap();
        assert_eq!(soon(what, client.any_head()).await.unwrap().status, status, "{what}");
    }
    let body = ask_for("k-model");
    let length = body.len().to_string();
    let mut client = running.connect().await;
    let headers = [("host", host.as_str()), ("content-length", &length), ("x-api-key", KEY), expect];
    client.send("POST", "/v1/messages", &headers, "").await.unwrap();
    assert_eq!(soon("the invitation", client.any_head()).await.unwrap().status, 100);
    client.send_raw(body.as_bytes()).await.unwrap();
    assert_eq!(soon("the answer", client.read_to_end()).await.unwrap().status, 200);
    assert_eq!(lab.requests()[0].header("expect"), None);
}

/// However it comes: a client that does not wait for the permission may have sent all when it would be due.
#[tokio::test]
async fn nobody_is_asked_for_a_body_behind_the_answer() {
    let (_lab, running) = lab_and("").await;
    let host = running.host();
    for length in 8180..8200 {
        let head = format!(
            "POST /v1/messages HTTP/1.1\r\nhost: {host}\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: \
             8\r\nx: "
        );
        let head = format!("{head}{}\r\n\r\n", "y".repeat(length - head.len() - 4));
        let mut client = tokio::net::TcpStream::connect(running.address).await.unwrap();
        let mut said = String::new();
        tokio::io::AsyncWriteExt::write_all(&mut client, format!("{head}nonsense").as_bytes()).await.unwrap();
        soon("the end", tokio::io::AsyncReadExt::read_to_string(&mut client, &mut said)).await.unwrap();
        let heads: Vec<_> =
            said.lines().filter_map(|line| line.split_once("HTTP/1.1 ")).map(|(_, rest)| rest).collect();
        assert!(matches!(heads[..], ["400 Bad Request"] | ["100 Continue", "400 Bad Request"]), "{length}: {said}");
    }
}

#[tokio::test]
async fn heads_have_a_limit() {
    let (lab, running) = lab_and("").await;
    let long = "x".repeat(30_000);
    let reply = running.send("POST", "/v1/messages", &[("x-long", &long)], ask_for("m")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(lab.requests()[0].header("x-long"), Some(long.as_str()));
    let reply =
        running.send("POST", "/v1/messages", &[("x-a", &long), ("x-b", &long), ("x-c", &long)], ask_for("m")).await;
    assert_eq!(reply.status, 431, "{}", reply.text());
    let names: Vec<_> = (0..120).map(|number| format!("x-{number}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
    assert_eq!(running.send("POST", "/v1/messages", &many, ask_for("m")).await.status, 431);
    assert_eq!(lab.requests().len(), 1);
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let lab = Lab::start().await.unwrap();
    let running = Running::start(&with_key(&lab, &lab)).await;
    let host = running.host();
    let body = vec![b' '; 8 << 20];
    for _ in 0..5 {
        for (headers, status) in [(vec![], 401), (vec![("x-api-key", KEY), ("content-encoding", "gzip")], 415)] {
            let mut client = running.connect().await;
            // It may close while we are still sending; its answer must have come before.
            let _ =
                client.send("POST", "/v1/messages", &[headers, vec![("host", host.as_str())]].concat(), &body).await;
            let reply = soon("the refusal", client.read_to_end()).await;
            let reply = reply.unwrap_or_else(|error| panic!("the answer {status} was lost: {error}"));
            assert_eq!(reply.status, status, "{}", reply.text());
        }
    }
    assert_eq!(lab.connections(), 0);
}

#[tokio::test]
async fn a_provider_that_leads_back_here_costs_one_hop_and_says_so() {
    let (lab, running) = lab_and("").await;
    let here = format!("http://127.0.0.1:{}", running.address.port());
    let loops = |more: &str| format!("providers:\n  - {{ name: Self, base_url: \"{here}\", auth_value: k }}\n{more}");
    running.write(&loops(""));
    assert_eq!(running.reload().await.status, 200);
    for (method, path) in [("POST", "/v1/messages"), ("GET", "/v1/models"), ("POST", "/v1/files")] {
        let before = requests(&running).await;
        let reply = running.send(method, path, &[("content-type", "application/json")], body_for(method)).await;
        assert_is_our_error(&reply, 502, "api_error", path);
        assert!(reply.text().contains("leads here"), "{path}: {}", reply.text());
        assert_eq!(requests(&running).await, before + 2, "{path}: the request and its one hop");
    }
    // Another provider serves instead.
    running.write(&loops(&format!("  - {{ name: B, base_url: \"{}\", auth_value: k }}\n", lab.url())));
    assert_eq!(running.reload().await.status, 200);
    assert_eq!(running.message(ask_for("m")).await.header("x-provider-used"), Some("B"));
    // Two balancers in a row are no loop.
    let front = Running::start(&format!("providers: [{{ name: F, base_url: \"{here}\", auth_value: k }}]\n")).await;
    assert_eq!(front.message(ask_for("m")).await.status, 200);
}

/// All requests so far, however they ended.
async fn requests(running: &Running) -> u64 {
    let metrics = running.get("/metrics").await.text();
    let counts = metrics.lines().filter(|line| line.starts_with("balancer_requests_total{"));
    counts.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn each_named_key_opens_the_proxy_and_its_name_is_in_the_log() {
    let lab = Lab::start().await.unwrap();
    let binary = Binary::new();
    let (laptop, desk, nameless) = ("laptop-key-0123456789", "desk-key-0123456789ab", "plain-key-0123456789ab");
    let config = binary.file(
        "config.yaml",
        &format!(
            "{}settings:\n  auth:\n    enabled: true\n    api_key: {nameless}\n    keys:\n      \
             - {{ name: laptop, key: {laptop} }}\n      - {{ name: \"the desk\", key: \"file:desk\" }}\n",
            providers(&[("A", &lab)])
        ),
    );
    binary.file("desk", &format!("{desk}\n"));
    let (mut service, address) = binary.serve(&["--config", config.to_str().unwrap()]).await;
    for (key, name) in [(laptop, "key=laptop"), (desk, "key=\"the desk\""), (nameless, "POST /v1/messages")] {
        let headers = [("content-type", "application/json"), ("x-api-key", key)];
        let reply = ask(address, "POST", "/v1/messages", &headers, &ask_for("m")).await;
        assert_eq!(reply.status, 200, "{name}: {}", reply.text());
        let line = service.line("POST /v1/messages").await;
        assert!(line.contains(name) && line.contains("key=") == (key != nameless), "{line}");
        assert!(!line.contains(key), "{line}");
    }
    for wrong in ["laptop", "the desk", &laptop[1..]] {
        let headers = [("content-type", "application/json"), ("x-api-key", wrong)];
        assert_eq!(ask(address, "POST", "/v1/messages", &headers, &ask_for("m")).await.status, 401, "{wrong}");
    }
}

#[tokio::test]
async fn a_named_key_needs_both_parts() {
    for (keys, wanted) in [
        ("[{ name: a }]", "has no name or no key"),
        ("[{ key: the-secret-key-of-a-test }]", "has no name or no key"),
        ("[{ name: \"\", key: the-secret-key-of-a-test }]", "is not a name"),
        ("[{ name: a, key: the-secret-key-of-a-test, more: 1 }]", "more"),
        ("[the-secret-key-of-a-test]", "settings.auth.keys"),
        ("the-secret-key-of-a-test", "settings.auth.keys"),
        ("[]", "no key is given"),
    ] {
        let binary = Binary::new();
        let text = format!(
            "providers: [{{ name: A, auth_value: k }}]\nsettings: {{ auth: {{ enabled: true, keys: {keys} }} }}\n"
        );
        let file = binary.file("config.yaml", &text);
        let said = binary.run(&["check", file.to_str().unwrap()]).await;
        assert_eq!(said.status, Some(1), "{keys}: {}{}", said.out, said.err);
        let told = format!("{}{}", said.out, said.err);
        assert!(told.contains(wanted) && !told.contains("secret-key"), "{keys}: {told}");
    }
}
