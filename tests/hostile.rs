//! Those who wish the user ill: pages in the browser, requests that name a destination, words that would forge a log,
//! providers that send elsewhere. Each reaches nobody and changes nothing.

use claude_code_balancer::lab::{Lab, Script, Whim};
use serde_json::{Value, json};

use crate::support::balancer::fleet;
use crate::support::binary::{Binary, ask};
use crate::support::endpoints::{JSON, World};
use crate::support::running::{Running, ask_for, assert_is_our_error, providers, stream_of};
use crate::support::{Client, Reply, soon};

const MAIN: &str = "main@example.com";

/// Every path that changes something, and whether it takes a body.
const CHANGES: [(&str, &str, bool); 6] = [
    ("GET", "/oauth/generate-url", false),
    ("POST", "/oauth/exchange-code", true),
    ("POST", "/oauth/refresh/main@example.com", true),
    ("DELETE", "/oauth/tokens/main@example.com", true),
    ("DELETE", "/oauth/tokens", true),
    ("POST", "/providers/reload", true),
];

/// T2
#[tokio::test]
async fn no_page_and_no_form_changes_anything() {
    let world = World::signed_in(&["main"]).await;
    let code = world.code(Some(MAIN), MAIN).await;
    let generation = world.running.app.admin.live.load().generation;
    let (calls, port) = (world.calls(), world.running.address.port());
    let rebound = format!("http://evil.test:{port}");
    let kinds = [Some("application/json"), Some("text/plain"), Some("application/x-www-form-urlencoded"), None];
    let kinds = kinds.into_iter().chain([Some("multipart/form-data; boundary=x")]);
    for kind in kinds {
        for origin in [None, Some("https://evil.test"), Some("null"), Some(rebound.as_str())] {
            for site in [None, Some("none"), Some("cross-site"), Some("same-site")] {
                for (method, path, body) in CHANGES {
                    let page = origin.is_some() || matches!(site, Some("cross-site" | "same-site"));
                    let form = body && kind != Some("application/json");
                    let Some(wanted) = page.then_some(403).or(form.then_some(415)) else { continue };
                    let mut headers: Vec<(&str, &str)> = Vec::new();
                    headers.extend(origin.map(|origin| ("origin", origin)));
                    headers.extend(site.map(|site| ("sec-fetch-site", site)));
                    headers.extend(kind.filter(|_| body).map(|kind| ("content-type", kind)));
                    let text = json!({ "code": code, "account_email": MAIN }).to_string();
                    let sent = if body { text.as_str() } else { "" };
                    let reply = world.running.send(method, path, &headers, sent).await;
                    let kind = if wanted == 403 { "permission_error" } else { "invalid_request_error" };
                    assert_is_our_error(&reply, wanted, kind, &format!("{method} {path} {headers:?}"));
                }
            }
        }
    }
    assert_eq!(world.calls(), calls, "nobody was asked for a token");
    assert_eq!(world.running.app.admin.live.load().generation, generation, "nothing was read again");
    assert_eq!(world.token("main").await.unwrap()["state"], "healthy");
    // Of the 32 logins that may be pending one is.
    for _ in 0..31 {
        assert_eq!(world.running.get("/oauth/generate-url").await.status, 200);
    }
    assert_eq!(world.exchange(&json!({ "code": code })).await.status, 200);
}

/// T3
#[tokio::test]
async fn ten_thousand_pictures_of_the_link_leave_the_first_login_alone() {
    let world = World::new().await;
    let first = world.code(Some(MAIN), MAIN).await;
    let host = world.running.host();
    let mut client = Client::connect(world.running.address).await.unwrap();
    let mut begun = 1;
    for _ in 0..10_000 {
        client.send("GET", "/oauth/generate-url", &[("host", &host)], "").await.unwrap();
        let reply = soon("an answer", client.read_to_end()).await.unwrap();
        assert!(matches!(reply.status, 200 | 429), "{}", reply.text());
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        begun += usize::from(reply.status == 200);
    }
    assert_eq!(begun, 32, "logins at once: what they take is bounded");
    assert_eq!(world.exchange(&json!({ "code": first })).await.status, 200);
}

/// T7
#[tokio::test]
async fn an_edit_opens_nothing_to_the_world() {
    let lab = Lab::start().await.unwrap();
    let running = Running::start(&providers(&[("A", &lab)])).await;
    let open = |auth: &str| format!("{}settings: {{ host: 0.0.0.0{auth} }}\n", providers(&[("A", &lab)]));
    running.write(&open(""));
    assert_eq!(running.reload().await.status, 400, "without a key");
    running.write(&open(", auth: { enabled: true, api_key: a-good-key-0123456789 }"));
    let reply = running.reload().await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(reply.text().contains("needs a restart"), "{}", reply.text());
    // The key holds at once, the address stays.
    assert_is_our_error(&running.get("/providers").await, 401, "authentication_error", "the key");
    let Some(outside) = outside() else { return };
    let refused = Client::connect((outside, running.address.port()).into()).await;
    assert!(refused.is_err(), "{outside} is listened on");
}

/// An address of this machine that is not loopback. Nothing is sent to find it.
fn outside() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

/// T7, T8
#[cfg(unix)]
#[tokio::test]
async fn management_is_not_served_to_who_comes_from_outside() {
    let Some(outside) = outside() else { return };
    let lab = Lab::start().await.unwrap();
    let binary = Binary::new();
    let key = "a-good-key-0123456789";
    let config = format!(
        "{}settings: {{ host: 0.0.0.0, auth: {{ enabled: true, api_key: {key} }} }}\n",
        providers(&[("A", &lab)])
    );
    let file = binary.file("config.yaml", &config);
    let mut service = binary.start(&["--config", file.to_str().unwrap(), "--port", "0"]);
    let line = service.line("listening on http://0.0.0.0:").await;
    let port: u16 = line.rsplit(':').next().unwrap().trim().parse().unwrap();
    service.line("export ANTHROPIC_BASE_URL=").await;
    for (method, path, status) in [
        ("GET", "/providers", 403),
        ("POST", "/providers/reload", 403),
        ("GET", "/metrics", 403),
        ("GET", "/oauth/status", 403),
        ("GET", "/oauth/generate-url", 403),
        ("DELETE", "/oauth/tokens", 403),
        ("POST", "/v1/messages", 200),
    ] {
        let mut client = Client::connect((outside, port).into()).await.unwrap();
        let host = format!("localhost:{port}");
        let headers = [("host", host.as_str()), ("x-api-key", key), ("connection", "close")];
        let body = if status == 200 { ask_for("m") } else { String::new() };
        client.send(method, path, &headers, body).await.unwrap();
        let reply = soon(path, client.read_to_end()).await.unwrap();
        assert_eq!(reply.status, status, "{method} {path}: {}", reply.text());
    }
}

/// T10
#[tokio::test]
async fn a_missing_and_a_wrong_key_get_the_same_answer() {
    let lab = Lab::start().await.unwrap();
    let auth = "settings: { auth: { enabled: true, api_key: [first-key-0123456789, second-key-0123456789] } }\n";
    let running = Running::start(&format!("{}{auth}", providers(&[("A", &lab)]))).await;
    let told = async |headers: &[(&str, &str)]| {
        let reply = running.send("POST", "/v1/messages", headers, ask_for("m")).await;
        assert_is_our_error(&reply, 401, "authentication_error", "no key");
        let names: Vec<String> = reply.headers.iter().map(|(name, _)| name.clone()).collect();
        (reply.text().replace(reply.header("request-id").unwrap(), ""), names)
    };
    let missing = told(&[]).await;
    for wrong in ["x", "first-key-012345678", "first-key-01234567890", "Bearer first-key-012345678"] {
        assert_eq!(told(&[("x-api-key", wrong)]).await, missing, "{wrong}");
        assert_eq!(told(&[("authorization", wrong)]).await, missing, "{wrong}");
    }
    // Each of them opens.
    for key in ["first-key-0123456789", "second-key-0123456789"] {
        assert_eq!(running.send("POST", "/v1/messages", &[("x-api-key", key)], ask_for("m")).await.status, 200);
    }
}

/// T15
#[tokio::test]
async fn nothing_follows_a_redirect() {
    let (lab, canary) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let running = Running::start(&format!("{}settings: {{ failure_cooldown: 0 }}\n", providers(&[("A", &lab)]))).await;
    let elsewhere = format!("{}/v1/messages", canary.url());
    for status in [300, 301, 302, 303, 307, 308] {
        lab.always(Script::redirect(status, &elsewhere));
        for (method, path, body) in [
            ("POST", "/v1/messages", ask_for("m")),
            ("POST", "/v1/messages", stream_of("m")),
            ("POST", "/v1/messages/count_tokens", ask_for("m")),
            ("GET", "/v1/models", String::new()),
        ] {
            let reply = running.send(method, path, &[], body).await;
            assert_is_our_error(&reply, 503, "api_error", &format!("{status} {path}"));
            assert_eq!(reply.header("location"), None, "{status} {path}");
        }
        // Ids there belong to one account: its answer is the client's to judge.
        assert_eq!(running.send("POST", "/v1/files", &[], "x").await.status, status);
    }
    // The authorization server's two calls carry what is worth most.
    let world = World::signed_in(&["main"]).await;
    for (round, status) in [301, 302, 307, 308].into_iter().enumerate() {
        let code = world.code(Some(MAIN), MAIN).await;
        world.authority.next(Whim::Instead(Box::new(Script::redirect(status, &elsewhere))));
        assert_eq!(world.exchange(&json!({ "code": code })).await.status, 502, "{status}");
        if round == 0 {
            world.authority.next(Whim::Instead(Box::new(Script::redirect(status, &elsewhere))));
            assert_eq!(world.refresh(MAIN).await.status, 503, "{status}");
        }
    }
    assert_eq!(canary.connections(), 0);
}

/// T24
#[tokio::test]
async fn a_client_names_no_destination_and_no_credential() {
    let (lab, canary) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let running = Running::start(&providers(&[("A", &lab)])).await;
    let (url, address) = (canary.url(), canary.address().to_string());
    for fields in [
        json!({ "api_base": url, "api_key": "canary" }),
        json!({ "base_url": url, "baseURL": url }),
        json!({ "user_config": { "model_list": [{ "api_base": url }] }, "custom_llm_provider": "x" }),
        json!({ "provider": { "base_url": url, "only": ["B"] } }),
        json!({ "image_url": url, "proxy": url, "extra_headers": { "host": address } }),
    ] {
        let mut body: Value = serde_json::from_str(&ask_for("m")).unwrap();
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let body = body.to_string();
        for (path, headers) in [
            ("/v1/messages", vec![]),
            ("/v1/messages/count_tokens", vec![]),
            ("/v1/messages", vec![("x-upstream", url.as_str()), ("x-api-base", &url), ("x-target-url", &url)]),
            ("/v1/messages", vec![("x-original-url", "/oauth/tokens"), ("x-http-method-override", "DELETE")]),
            ("/v1/messages", vec![("x-forwarded-host", &address), ("x-host", &address)]),
        ] {
            let reply = running.send("POST", path, &[headers.as_slice(), &[JSON]].concat(), &body).await;
            assert_eq!((reply.status, reply.header("x-provider-used")), (200, Some("A")), "{body}");
            let request = lab.requests().pop().unwrap();
            assert_eq!((&request.body[..], request.header("x-api-key")), (body.as_bytes(), Some("key-A")));
            assert_eq!(request.headers_named("host"), [lab.address().to_string()]);
        }
    }
    assert_eq!(canary.connections(), 0);
}

/// T24: what a client calls its request is no name of ours.
#[tokio::test]
async fn a_client_does_not_name_our_answers() {
    let lab = Lab::start().await.unwrap();
    let running = Running::start(&providers(&[("A", &lab)])).await;
    let long = "x".repeat(10_000);
    let mut seen = std::collections::HashSet::new();
    for id in ["req_0123456789abcdef", "canary", &long] {
        for name in ["request-id", "x-request-id"] {
            let reply = running.send("POST", "/v1/messages", &[(name, id)], "{").await;
            assert_is_our_error(&reply, 400, "invalid_request_error", name);
            let ours = reply.header("request-id").unwrap().to_owned();
            assert_eq!((ours.len(), ours != id), (20, true), "{ours}");
            assert!(!reply.text().contains(id), "{}", reply.text());
            assert!(seen.insert(ours), "given twice");
        }
    }
}

/// T25 and the second to fourth line of the framing table, each with its verdict.
#[tokio::test]
async fn odd_targets_and_methods_have_exact_verdicts() {
    let lab = Lab::start().await.unwrap();
    let running = Running::start(&providers(&[("A", &lab)])).await;
    let host = running.host();
    let long = format!("/v1/messages?{}", "q".repeat(9000));
    for (method, target, status) in [
        ("CONNECT", host.as_str(), 405),
        ("CONNECT", "evil.test:443", 400),
        ("OPTIONS", "*", 405),
        ("OPTIONS", "/v1/messages", 405),
        ("TRACE", "/v1/messages", 405),
        ("get", "/health", 405),
        ("GET", "v1", 400),
        ("GET", "evil.test", 400),
        ("GET", "//evil.test/v1/models", 400),
        ("GET", "http://evil.test/v1/models", 400),
        ("GET", "http://user:pw@localhost/v1/models", 400),
        ("GET", "/v1/../oauth/status", 400),
        ("GET", "/v1/%2e%2e/oauth/status", 400),
        ("GET", "/v1/x/%2E%2e%2f..%2foauth/status", 400),
        ("GET", "/v1/..;/oauth/status", 400),
        ("GET", "/v1\\..\\oauth", 400),
        ("GET", "/v1/%5c..%5coauth", 400),
        ("GET", "/v1/x%00", 400),
        ("GET", "/v1/x%0d%0ahost:%20evil", 400),
        ("GET", "/v1/x#fragment", 400),
        ("GET", "/v1/\u{e4}", 400),
        ("GET", &long, 400),
        ("GET", "/V1/models", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1%2fmodels", 404),
        ("GET", "/api/event_logging/batch", 404),
    ] {
        let mut client = running.connect().await;
        client.send_raw(format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await.unwrap();
        let reply = soon(target, client.read_to_end()).await.unwrap();
        assert_eq!(reply.status, status, "{method} {target:.60}: {}", reply.text());
        assert_eq!(lab.connections(), 0, "{method} {target:.60}");
    }
}

/// The framing table: `Upgrade` is no way round the gate, and what follows it is a request like any other.
#[tokio::test]
async fn an_upgrade_is_not_heard() {
    let lab = Lab::start().await.unwrap();
    let running = Running::start(&providers(&[("A", &lab)])).await;
    let (host, body) = (running.host(), ask_for("m"));
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let first =
        format!("POST /v1/messages HTTP/1.1\r\nhost: {host}\r\n{upgrade}content-length: {}\r\n\r\n{body}", body.len());
    let second = "GET /providers HTTP/1.1\r\nhost: evil.test\r\n\r\n";
    let mut client = running.connect().await;
    client.send_raw(format!("{first}{second}").as_bytes()).await.unwrap();
    assert_eq!(soon("the first", client.read_to_end()).await.unwrap().status, 200);
    assert_eq!(soon("the second", client.read_to_end()).await.unwrap().status, 421);
    let request = &lab.requests()[0];
    assert_eq!((request.header("upgrade"), request.header("connection")), (None, None), "{:?}", request.headers);
    // A body where none can be.
    for framing in ["content-length: 3\r\n\r\nabc", "transfer-encoding: chunked\r\n\r\n0\r\n\r\n"] {
        let mut client = running.connect().await;
        client.send_raw(format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\n{framing}").as_bytes()).await.unwrap();
        let reply: Reply = soon(framing, client.read_to_end()).await.unwrap();
        assert_is_our_error(&reply, 400, "invalid_request_error", framing);
    }
    assert_eq!(lab.requests().len(), 1);
}

/// T28, and the last line of the framing table: who speaks TLS cannot read our answer, so the log says it.
#[cfg(unix)]
#[tokio::test]
async fn words_from_outside_forge_no_line_of_the_log() {
    let lab = Lab::start().await.unwrap();
    let binary = Binary::new();
    let places = [lab.url(), lab.url()];
    let config = fleet(&places, "log_level: debug\nfailure_cooldown: 0").replace("  log_file_path: \"\"\n", "");
    let file = binary.file("config.yaml", &config);
    let (mut service, address) = binary.serve(&["--config", file.to_str().unwrap()]).await;
    let evil = "\u{1b}]0;x\u{7}\u{202e}\n12:00:00.000 ERROR forged\r\u{9b}31m";
    let model = ask_for(&Value::from(format!("m{evil}")).to_string().replace('"', ""));
    lab.next(Script::error(500, &format!("kind{evil}"), &evil.repeat(100)));
    assert_eq!(
        ask(address, "POST", "/v1/messages", &[("user-agent", &"\u{ff}".repeat(20_000))], &model).await.status,
        200
    );
    lab.next(Script::raw(format!("HTTP/1.1 200 OK\r\n{evil}\r\n\r\n")));
    assert_eq!(ask(address, "POST", "/v1/messages", &[], &model).await.status, 200);
    let mut tls = Client::connect(address).await.unwrap();
    tls.send_raw(b"\x16\x03\x01\x02\x00").await.unwrap();
    assert_eq!(soon("the answer", tls.read_to_end()).await.unwrap().status, 400);
    let hint = service.line("spoken to in TLS").await;
    assert!(hint.contains("WARN"), "{hint}");
    service.signal("TERM");
    assert_eq!(service.end().await, Some(0));
    let own = |line: &&String| line.chars().next().is_some_and(|c| c.is_ascii_digit());
    for line in service.seen.iter().filter(own) {
        assert_ne!(line.split(' ').nth(1), Some("ERROR"), "{line}");
        assert!(!line.chars().any(|c| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}')), "{line:?}");
    }
    assert_eq!(service.seen.iter().filter(|line| line.contains("ending=")).count(), 2, "{:#?}", service.seen);
    let written = std::fs::read_to_string(binary.home().join("logs/logs.jsonl")).unwrap();
    assert!(written.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert!(written.contains("forged") && !written.contains('\u{1b}'), "the model is in it, escaped");
}

/// T57: what belongs to Claude Code is not ours to read or to renew.
#[cfg(unix)]
#[tokio::test]
async fn the_credentials_of_claude_code_are_left_alone() {
    let binary = Binary::new();
    let own = r#"{"claudeAiOauth":{"accessToken":"canary-access","refreshToken":"canary-refresh","expiresAt":1}}"#;
    let theirs = binary.file(".claude/.credentials.json", own);
    let lab = Lab::start().await.unwrap();
    let config = format!(
        "providers:\n  - {{ name: A, base_url: \"{0}\", auth_value: oauth, account_email: a@example.com }}\n\
         settings: {{ oauth: {{ storage: file, token_url: \"{0}/token\" }} }}\n",
        lab.url()
    );
    binary.file("config.yaml", &config);
    let (mut service, address) = binary.serve(&[]).await;
    assert_eq!(ask(address, "POST", "/v1/messages", &[], &ask_for("m")).await.status, 401);
    let status = ask(address, "GET", "/oauth/status", &[], "").await;
    assert_eq!(status.json()["summary"]["total_tokens"], 0, "{}", status.text());
    service.signal("TERM");
    assert_eq!(service.end().await, Some(0));
    assert_eq!(std::fs::read_to_string(&theirs).unwrap(), own);
    assert_eq!(lab.connections(), 0);
    let mut folders = vec![binary.home().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if entry.path() != theirs {
                let bytes = std::fs::read(entry.path()).unwrap();
                assert!(memchr::memmem::find(&bytes, b"canary").is_none(), "{}", entry.path().display());
            }
        }
    }
}
