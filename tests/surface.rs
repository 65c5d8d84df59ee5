//! The paths of the balancer's own, as a client sees them: every row of the table in the README that exists.

use claude_code_balancer::lab::{Gate, Lab, Script, closed_port};
use serde_json::{Value, json};

use crate::support::running::{Running, ask_for, assert_grants_no_origin, assert_is_our_error, providers, stream_of};
use crate::support::{Reply, soon, sse};

/// A reset so far away that the test is over before it.
const FAR: &str = "3600";

fn assert_is_protected(reply: &Reply, what: &str) {
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(reply.header(name), Some(value), "{what}");
    }
    let policy = reply.header("content-security-policy").unwrap_or_default();
    assert!(policy.contains("default-src 'none'"), "{what}: {policy}");
    assert_grants_no_origin(reply, what);
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn the_index_tells_who_is_here_and_the_probes_get_their_200() {
    let lab = Lab::start().await.unwrap();
    let running = Running::start(&providers(&[("A", &lab), ("B", &lab)])).await;
    let index = running.get("/").await;
    assert_eq!(index.header("content-type"), Some("application/json"));
    let expected = json!({
        "service": "Claude Code Provider Balancer", "version": env!("CARGO_PKG_VERSION"),
        "status": "healthy", "providers_available": 2,
    });
    assert_eq!(index.json(), expected);
    for (method, path) in [("HEAD", "/"), ("HEAD", "/api/hello"), ("HEAD", "/health"), ("HEAD", "/providers")] {
        let reply = running.send(method, path, &[], "").await;
        assert_eq!(reply.status, 200, "{method} {path}");
        assert_is_protected(&reply, path);
    }
    assert_eq!(lab.connections(), 0);
}

#[tokio::test]
async fn health_is_503_once_no_enabled_provider_can_serve() {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let running = Running::start(&providers(&[("A", &a), ("B", &b)])).await;
    assert_eq!(running.get("/health").await.json(), json!({ "status": "healthy" }));
    let limited = Script::error(429, "rate_limit_error", "slow down").header("retry-after", FAR);
    a.always(limited.clone());
    running.message(ask_for("m")).await;
    let half = running.get("/health").await;
    assert_eq!((half.status, half.json()), (200, json!({ "status": "healthy" })), "one can serve");
    b.always(limited);
    running.message(ask_for("m")).await;
    let none = running.get("/health").await;
    assert_is_our_error(&none, 503, "api_error", "nobody can serve");
    assert_eq!(none.json()["status"], "unhealthy");
    assert_eq!(none.json()["message"], "No healthy providers available");
    assert_eq!(running.get("/").await.json()["providers_available"], 0);
}

#[tokio::test]
async fn health_is_503_where_everything_is_switched_off() {
    let lab = Lab::start().await.unwrap();
    let config = format!("providers:\n  - {{ name: A, base_url: \"{}\", auth_value: k, enabled: false }}\n", lab.url());
    let running = Running::start(&config).await;
    assert_eq!(running.get("/health").await.status, 503);
    assert_eq!(running.provider("A").await["status"], "disabled");
    let refused = running.message(ask_for("m")).await;
    assert_is_our_error(&refused, 503, "api_error", "nobody is there");
}

#[tokio::test]
async fn providers_shows_every_key_of_the_predecessor_and_the_new_ones() {
    let lab = Lab::start().await.unwrap();
    let config = format!(
        r#"providers:
  - {{ name: A, base_url: "{url}/pre/", auth_value: key-A, account_email: Main@Example.com, proxy: "http://us:pw@127.0.0.1:1" }}
  - {{ name: B, base_url: "{url}", auth_value: key-B, enabled: false }}
  - {{ name: O, auth_type: auth_token, auth_value: oauth, account_email: o@example.com }}
model_routes:
  "*sonnet*":
    - {{ provider: B, model: other, priority: 2 }}
    - {{ provider: A, priority: 1, account_email: main@example.com }}
    - {{ provider: A, priority: 3, account_email: main@example.com, enabled: false }}
  "*": [{{ provider: O }}]
settings: {{ selection_strategy: round_robin }}
"#,
        url = lab.url()
    );
    let running = Running::start(&config).await;
    let reply = running.get("/providers").await;
    assert_is_protected(&reply, "/providers");
    let all = reply.json();
    assert_eq!(
        keys(&all),
        ["config", "healthy_providers", "providers", "selection_strategy", "total_model_routes", "total_providers"]
    );
    assert_eq!((&all["total_providers"], &all["healthy_providers"]), (&json!(3), &json!(1)));
    assert_eq!((&all["selection_strategy"], &all["total_model_routes"]), (&json!("round_robin"), &json!(2)));
    let a = &all["providers"][0];
    assert_eq!(
        keys(a),
        [
            "account_email",
            "account_state",
            "base_url",
            "cooldown_until",
            "enabled",
            "failure_count",
            "healthy",
            "last_error",
            "last_failure_time",
            "login_required",
            "models",
            "name",
            "proxy",
            "rate_limited_until",
            "status",
            "type",
        ]
    );
    let expected = json!({
        "name": "A", "type": "anthropic", "base_url": format!("{}/pre", lab.url()), "account_email": "Main@Example.com",
        "enabled": true, "healthy": true, "status": "healthy", "login_required": false, "account_state": null,
        "failure_count": 0, "last_failure_time": 0, "last_error": null,
        "cooldown_until": null, "rate_limited_until": null, "proxy": "http://127.0.0.1:1",
        "models": [{ "pattern": "*sonnet*", "model": "passthrough", "priority": 1 }],
    });
    assert_eq!(*a, expected);
    let (b, o) = (&all["providers"][1], &all["providers"][2]);
    assert_eq!((&b["status"], &b["healthy"], &b["proxy"]), (&json!("disabled"), &json!(false), &Value::Null));
    assert_eq!(b["models"], json!([{ "pattern": "*sonnet*", "model": "other", "priority": 2 }]));
    assert_eq!((&o["login_required"], &o["healthy"], &o["status"]), (&json!(true), &json!(false), &json!("unhealthy")));
    assert_eq!(o["account_state"], "login_required");
    let config = &all["config"];
    assert_eq!(keys(config), ["file", "generation", "loaded_at", "rejected"]);
    assert_eq!(config["file"], running.file().display().to_string());
    assert_eq!((&config["generation"], &config["rejected"]), (&json!(1), &Value::Null));
    assert!(config["loaded_at"].as_f64().is_some_and(|at| at > 1.7e9), "{config}");
}

#[tokio::test]
async fn a_provider_is_not_healthy_while_it_cools_or_is_limited() {
    let (failing, limited, refused, good) = (
        Lab::start().await.unwrap(),
        Lab::start().await.unwrap(),
        Lab::start().await.unwrap(),
        Lab::start().await.unwrap(),
    );
    let all = [("F", &failing), ("L", &limited), ("R", &refused), ("G", &good)];
    let running = Running::start(&format!("{}settings: {{ unhealthy_threshold: 2 }}\n", providers(&all))).await;
    failing.always(Script::error(500, "api_error", "the secret inside"));
    limited.always(Script::error(429, "rate_limit_error", "slow").header("retry-after", FAR));
    refused.always(Script::error(401, "authentication_error", "bad key"));
    assert_eq!(running.message(ask_for("m")).await.header("x-provider-used"), Some("G"));
    let f = running.provider("F").await;
    assert_eq!((&f["healthy"], &f["failure_count"], &f["cooldown_until"]), (&json!(true), &json!(1), &Value::Null));
    assert!(f["last_failure_time"].as_f64().is_some_and(|at| at > 1.7e9), "{f}");
    assert_eq!(f["last_error"], "500 api_error");
    running.message(ask_for("m")).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    for (name, until, seconds) in [
        ("F", "cooldown_until", 40.0..80.0),
        ("L", "rate_limited_until", 3500.0..3700.0),
        ("R", "cooldown_until", 200.0..700.0),
    ] {
        let entry = running.provider(name).await;
        assert_eq!((&entry["healthy"], &entry["status"]), (&json!(false), &json!("unhealthy")), "{entry}");
        let left = entry[until].as_f64().unwrap_or_else(|| panic!("{entry}")) - now;
        assert!(seconds.contains(&left), "{name}: {left}");
    }
    assert_eq!(running.provider("G").await["healthy"], true);
    assert_eq!(running.get("/providers").await.json()["healthy_providers"], 1);
}

#[tokio::test]
async fn a_reload_applies_what_is_valid_and_shows_what_is_not_until_it_is_mended() {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let first = providers(&[("A", &a)]);
    let running = Running::start(&first).await;
    assert_eq!(running.message(ask_for("m")).await.header("x-provider-used"), Some("A"));

    running.write(&providers(&[("B", &b), ("A", &a)]));
    let dry = running.send("POST", "/providers/reload?dry_run=1", &[], "").await.json();
    assert_eq!((&dry["status"], &dry["dry_run"], &dry["generation"]), (&json!("success"), &json!(true), &json!(1)));
    assert!(dry["changes"].to_string().contains("provider \\\"B\\\" added"), "{dry}");
    assert_eq!(running.message(ask_for("m")).await.header("x-provider-used"), Some("A"), "a dry run changes nothing");
    assert_eq!(running.get("/providers").await.json()["config"]["generation"], 1);

    let done = running.reload().await;
    assert_is_protected(&done, "reload");
    let done = done.json();
    assert_eq!((&done["status"], &done["generation"]), (&json!("success"), &json!(2)));
    assert_eq!(done["message"], "Provider configuration reloaded successfully");
    assert_eq!((&done["providers_count"], &done["healthy_providers"]), (&json!(2), &json!(2)));
    assert_eq!(running.message(ask_for("m")).await.header("x-provider-used"), Some("B"));

    running.write("providers:\n  - { nam: A, auth_value: key-canary }\n  - { name: B, auth_valeu: key-canary }\nmodel_route: {}\n");
    for dry in [true, false] {
        let target = if dry { "/providers/reload?dry_run=1" } else { "/providers/reload" };
        let bad = running.send("POST", target, &[], "").await;
        assert_is_our_error(&bad, 400, "invalid_request_error", target);
        let text = bad.text();
        let bad = bad.json();
        assert_eq!((&bad["status"], &bad["error"]["type"]), (&json!("error"), &json!("invalid_request_error")));
        let problems = bad["problems"].as_array().unwrap();
        assert!(problems.len() >= 3, "{bad}");
        for problem in problems {
            assert_eq!(keys(problem), ["column", "cure", "line", "message", "path", "severity"]);
            assert!(problem["line"].as_u64().is_some_and(|line| (1..=4).contains(&line)), "{problem}");
        }
        assert!(!text.contains("key-canary"), "{text}");
        let rejected = running.get("/providers").await.json()["config"]["rejected"].clone();
        assert_eq!(rejected.is_null(), dry, "{rejected}");
    }
    let shown = running.get("/providers").await;
    assert!(!shown.text().contains("key-canary"), "{}", shown.text());
    let config = &shown.json()["config"];
    assert_eq!(config["generation"], 2);
    assert_eq!(keys(&config["rejected"]), ["at", "file", "problems"]);
    assert!(config["rejected"]["problems"].as_array().is_some_and(|problems| problems.len() >= 3), "{config}");
    assert_eq!(running.message(ask_for("m")).await.header("x-provider-used"), Some("B"), "what was in force stays");

    running.write(&first);
    assert_eq!(running.reload().await.status, 200);
    let config = &running.get("/providers").await.json()["config"];
    assert_eq!((&config["rejected"], &config["generation"]), (&Value::Null, &json!(3)));
    std::fs::remove_file(running.file()).unwrap();
    assert_eq!(running.reload().await.status, 400, "a file that is gone");
    assert_eq!(running.message(ask_for("m")).await.header("x-provider-used"), Some("A"));
}

#[tokio::test]
async fn a_reload_keeps_health_and_lets_a_running_stream_end() {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let config = format!("{}settings: {{ unhealthy_threshold: 1 }}\n", providers(&[("A", &a), ("B", &b)]));
    let running = Running::start(&config).await;
    a.always(Script::error(500, "api_error", "x"));
    let gate = Gate::new();
    let script = Script::stream(&["one", "two"]).gate_before(4, gate.clone());
    b.next(script.clone());
    let host = running.host();
    let mut client = running.connect().await;
    client.send("POST", "/v1/messages", &[("host", &host)], stream_of("m")).await.unwrap();
    let head = soon("the head", client.head()).await.unwrap();
    assert_eq!((head.status, head.header("x-provider-used")), (200, Some("B")));
    gate.reached(1).await;
    assert_eq!(running.provider("A").await["healthy"], false);

    // B is gone from the file, A has another route; both cannot matter to what is under way.
    running.write(&format!("{}model_routes: {{ \"x*\": [{{ provider: A }}] }}\n", providers(&[("A", &a)])));
    assert_eq!(running.reload().await.status, 200);
    let kept = running.provider("A").await;
    assert_eq!((&kept["healthy"], &kept["last_error"]), (&json!(false), &json!("500 api_error")), "{kept}");
    gate.open();
    let (body, clean) = soon("the end of the stream", client.rest()).await;
    assert_eq!((body, clean), (script.body_bytes(), true));
}

#[tokio::test]
async fn metrics_are_prometheus_text_whose_counters_move() {
    let (bad, good) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let config = format!("{}settings: {{ unhealthy_threshold: 1 }}\n", providers(&[("Bad-name", &bad), ("G", &good)]));
    let running = Running::start(&config).await;
    let value = |text: &str, name: &str| -> f64 {
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{name} in\n{text}"))
    };
    let reply = running.get("/metrics").await;
    let kind = reply.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("application/openmetrics-text") || kind.starts_with("text/plain"), "{kind}");
    assert_is_protected(&reply, "/metrics");
    assert_eq!(value(&reply.text(), "balancer_failovers_total"), 0.0);

    bad.always(Script::error(500, "api_error", "x"));
    running.message(ask_for("m")).await;
    running.message(stream_of("m")).await;
    good.next(Script::error(400, "invalid_request_error", "x"));
    running.message(ask_for("m")).await;
    running.message("{").await;
    running.write("nonsense: [");
    running.reload().await;
    let text = running.get("/metrics").await.text();
    for (name, expected) in [
        ("balancer_requests_total{kind=\"ok\"}", 2.0),
        ("balancer_requests_total{kind=\"client_error\"}", 2.0),
        ("balancer_attempts_total{kind=\"failure\"}", 1.0),
        ("balancer_attempts_total{kind=\"commit\"}", 2.0),
        ("balancer_attempts_total{kind=\"forward\"}", 1.0),
        ("balancer_failovers_total", 1.0),
        ("balancer_cooldowns_total", 1.0),
        ("balancer_open_streams", 0.0),
        ("balancer_inflight_requests", 0.0),
        ("balancer_config_generation", 1.0),
        ("balancer_config_rejections_total", 1.0),
        ("balancer_time_to_first_byte_seconds_count", 4.0),
    ] {
        assert_eq!(value(&text, name), expected, "{name} in\n{text}");
    }
    assert!(text.ends_with("# EOF\n") && !text.contains("Bad-name"), "{text}");
}

#[tokio::test]
async fn a_wrong_method_is_405_with_allow_and_an_unknown_path_404() {
    let lab = Lab::start().await.unwrap();
    let running = Running::start(&providers(&[("A", &lab)])).await;
    for (path, allow) in [
        ("/", "GET, HEAD"),
        ("/health", "GET, HEAD"),
        ("/providers", "GET, HEAD"),
        ("/metrics", "GET, HEAD"),
        ("/api/hello", "HEAD"),
        ("/providers/reload", "POST"),
        ("/oauth/generate-url", "GET, HEAD"),
        ("/oauth/status", "GET, HEAD"),
        ("/oauth/exchange-code", "POST"),
        ("/oauth/refresh/a@b.test", "POST"),
        ("/oauth/tokens", "DELETE"),
        ("/oauth/tokens/a@b.test", "DELETE"),
        ("/v1/messages", "POST"),
        ("/v1/messages/count_tokens", "POST"),
    ] {
        for method in ["GET", "POST", "DELETE", "HEAD"] {
            if allow.split(", ").any(|allowed| allowed == method) {
                continue;
            }
            let reply = running.send(method, path, &[], "").await;
            assert_eq!((reply.status, reply.header("allow")), (405, Some(allow)), "{method} {path}");
            if method != "HEAD" {
                assert_is_our_error(&reply, 405, "invalid_request_error", &format!("{method} {path}"));
            }
        }
    }
    for path in [
        "/nowhere",
        "/v1",
        "/V1/messages",
        "/health/",
        "/providers/",
        "/providers/reload/x",
        "/oauth",
        "/oauth/refresh/",
        "/oauth/tokens/a/b",
        "/oauth/callback",
        "/docs",
        "/openapi.json",
        "/favicon.ico",
        "/metrics/x",
    ] {
        for method in ["GET", "POST"] {
            assert_is_our_error(&running.send(method, path, &[], "").await, 404, "not_found_error", path);
        }
    }
    assert_eq!(lab.connections(), 0);
}

#[tokio::test]
async fn routed_listed_and_passed_paths_reach_their_providers() {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let config = format!(
        "{}model_routes: {{ \"b-*\": [{{ provider: B }}], \"*\": [{{ provider: A }}] }}\n",
        providers(&[("A", &a), ("B", &b)])
    );
    let running = Running::start(&config).await;
    let target = "/v1/messages?beta=true&x=%2F..";
    let reply = running.send("POST", target, &[], ask_for("b-1")).await;
    assert_eq!(
        (reply.status, reply.header("x-provider-used"), reply.header("x-balancer-attempts")),
        (200, Some("B"), Some("1"))
    );
    assert_eq!(b.requests()[0].target, target);
    let reply = running.send("POST", "/v1/messages/count_tokens", &[], ask_for("b-1")).await;
    assert_eq!((reply.status, reply.header("x-provider-used")), (200, Some("B")));
    for path in ["/v1/models", "/v1/models/claude-x", "/v1/models?limit=2"] {
        assert_eq!(running.get(path).await.header("x-provider-used"), Some("A"), "{path}");
    }
    for (method, path) in
        [("GET", "/v1/files"), ("POST", "/v1/files"), ("DELETE", "/v1/files/f_1"), ("POST", "/v1/messages/batches")]
    {
        a.next(Script::json(418, &json!({ "odd": true })).header("request-id", "req_theirs"));
        let reply = running.send(method, path, &[], if method == "POST" { "bytes" } else { "" }).await;
        assert_eq!((reply.status, reply.header("x-provider-used")), (418, Some("A")), "{method} {path}");
        assert_eq!((reply.header("request-id"), reply.json()), (Some("req_theirs"), json!({ "odd": true })));
    }
}

#[tokio::test]
async fn a_provider_that_is_gone_is_named_in_an_error_of_ours() {
    let gone = closed_port().unwrap();
    let running =
        Running::start(&format!("providers:\n  - {{ name: Gone, base_url: \"http://{gone}\", auth_value: k }}\n"))
            .await;
    let reply = running.message(ask_for("m")).await;
    assert_is_our_error(&reply, 503, "api_error", "gone");
    let message = reply.json()["error"]["message"].to_string();
    assert!(message.contains("All providers failed: Gone: cannot connect"), "{message}");
    assert_eq!(reply.header("x-balancer-attempts"), Some("1"));
    let other = running.get("/v1/files").await;
    assert_eq!(other.status, 502, "{}", other.text());
    assert_is_our_error(&other, 502, "api_error", "gone");
    running.stop().await;
}

#[tokio::test]
async fn a_stream_passes_whole_and_is_signed() {
    let lab = Lab::start().await.unwrap();
    let running = Running::start(&providers(&[("A", &lab)])).await;
    let reply = running.message(stream_of("m")).await;
    assert_eq!((reply.status, reply.header("x-provider-used"), reply.clean_end), (200, Some("A"), true));
    assert_eq!(sse::text(&reply.body), "Hello from the lab.");
}
