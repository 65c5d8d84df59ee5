//! When nothing worked: one honest answer that says what failed at whom, with the status and the fields by which
//! clients decide whether to try again.

use claude_code_balancer::lab::{Lab, Script, closed_port};
use serde_json::Value;

use crate::support::Reply;
use crate::support::balancer::{Balancer, JSON, fleet, request, request_for};

async fn before(scripts: &[Script], settings: &str) -> (Vec<Lab>, Balancer) {
    let mut labs = Vec::new();
    for script in scripts {
        let lab = Lab::start().await.unwrap();
        lab.always(script.clone());
        labs.push(lab);
    }
    let balancer = Balancer::before(&labs.iter().collect::<Vec<_>>(), settings).await;
    (labs, balancer)
}

fn error(status: u16, kind: &str) -> Script {
    Script::error(status, kind, "what the provider said")
}

fn limited(seconds: u64) -> Script {
    error(429, "rate_limit_error").header("retry-after", &seconds.to_string())
}

/// Ours, in Anthropic's shape; its message.
fn ours(reply: &Reply, status: u16, kind: &str, name: &str) -> String {
    assert_eq!((reply.status, reply.clean_end), (status, true), "{name}: {}", reply.text());
    assert_eq!(reply.header("content-type"), Some("application/json"), "{name}");
    let body = reply.json();
    assert_eq!((&body["type"], &body["error"]["type"]), (&"error".into(), &Value::from(kind)), "{name}");
    assert_eq!(body["request_id"].as_str(), reply.header("request-id"), "{name}");
    body["error"]["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_answer_of_an_only_target_passes_unmodified() {
    let rows = [
        (error(529, "overloaded_error"), None, None),
        (error(500, "api_error"), None, None),
        (error(503, "api_error").chunked(), None, None),
        (error(401, "authentication_error"), None, Some("false")),
        (error(403, "permission_error"), None, Some("false")),
        (error(402, "billing_error"), None, None),
        (error(404, "not_found_error"), None, None),
        (Script::error(404, "not_found_error", "model: claude-lab"), None, None),
        (limited(30), Some("30"), None),
        (limited(3600), Some("3600"), Some("false")),
        (limited(3600).header("x-should-retry", "true"), Some("3600"), Some("true")),
        (error(429, "rate_limit_error").header("anthropic-ratelimit-unified-status", "rejected"), None, None),
        (Script::body(520, "text/plain", "error code: 520"), None, None),
        (Script::empty(500), None, None),
    ];
    for (script, retry_after, should_retry) in rows {
        let (_labs, balancer) = before(std::slice::from_ref(&script), "").await;
        let reply = balancer.ask(true).await;
        assert_eq!((&reply.body, reply.clean_end), (&script.body_bytes(), true), "{script:?}");
        assert_eq!(reply.header("retry-after"), retry_after, "{script:?}");
        assert_eq!(reply.header("x-should-retry"), should_retry, "{script:?}");
        assert_eq!(reply.header("x-provider-used"), Some("A"), "{script:?}");
        assert_eq!(reply.header("x-balancer-attempts"), Some("1"), "{script:?}");
    }
}

#[tokio::test]
async fn an_only_target_without_a_presentable_answer_gets_ours() {
    let rows = [
        (Script::html(502), 503, "A: a web page under status 502"),
        (Script::html(403), 503, "A: a web page under status 403"),
        (Script::close(), 503, "A: the connection ended before an answer"),
        (error(529, "overloaded_error").cut_at_byte(3), 529, "A: an error whose body was cut off (status 529)"),
        (Script::stream(&["x"]).first_event_error("overloaded_error"), 529, "A: overloaded_error under status 200"),
        (Script::redirect(302, "http://elsewhere.test/secret"), 503, "A: 302"),
    ];
    for (script, status, what) in rows {
        let (_labs, balancer) = before(std::slice::from_ref(&script), "").await;
        let reply = balancer.ask(true).await;
        let kind = if status == 529 { "overloaded_error" } else { "api_error" };
        assert_eq!(ours(&reply, status, kind, what), format!("All providers failed: {what}"));
        assert!(!reply.text().contains("<h") && reply.header("location").is_none(), "{}", reply.text());
    }
    let place = closed_port().unwrap();
    let balancer = Balancer::start(&fleet(&[format!("http://{place}")], "")).await;
    let message = ours(&balancer.ask(false).await, 503, "api_error", "refused");
    assert_eq!(message, format!("All providers failed: A: cannot connect to {place}: connection refused"));
}

#[tokio::test]
async fn the_status_says_what_all_have_in_common_and_the_message_what_each_did() {
    struct Row {
        scripts: [Script; 2],
        status: u16,
        kind: &'static str,
        message: &'static str,
        retry_after: Option<&'static str>,
        should_retry: Option<&'static str>,
    }
    let row = |first, second, status, kind, message, retry_after, should_retry| Row {
        scripts: [first, second],
        status,
        kind,
        message,
        retry_after,
        should_retry,
    };
    let unknown = || Script::error(404, "not_found_error", "model: claude-lab");
    let rows = [
        row(
            error(401, "authentication_error"),
            error(403, "permission_error"),
            403,
            "permission_error",
            "A: 401 authentication_error; B: 403 permission_error",
            None,
            Some("false"),
        ),
        row(
            error(402, "billing_error"),
            error(401, "authentication_error"),
            403,
            "permission_error",
            "A: 402 billing_error; B: 401 authentication_error",
            None,
            Some("false"),
        ),
        row(unknown(), unknown(), 404, "not_found_error", "A: 404 not_found_error; B: 404 not_found_error", None, None),
        row(
            limited(50),
            limited(20),
            429,
            "rate_limit_error",
            "A: 429 rate_limit_error; B: 429 rate_limit_error",
            Some("20"),
            None,
        ),
        row(
            limited(5000),
            limited(7000),
            429,
            "rate_limit_error",
            "A: 429 rate_limit_error; B: 429 rate_limit_error",
            Some("5000"),
            Some("false"),
        ),
        row(
            error(529, "overloaded_error"),
            error(529, "overloaded_error"),
            529,
            "overloaded_error",
            "A: 529 overloaded_error; B: 529 overloaded_error",
            Some("10"),
            None,
        ),
        row(
            error(504, "timeout_error"),
            error(408, "timeout_error"),
            504,
            "timeout_error",
            "A: 504 timeout_error; B: 408 timeout_error",
            None,
            None,
        ),
        row(
            error(500, "api_error"),
            error(500, "api_error"),
            503,
            "api_error",
            "A: 500 api_error; B: 500 api_error",
            None,
            None,
        ),
        row(
            error(529, "overloaded_error"),
            error(500, "api_error"),
            503,
            "api_error",
            "A: 529 overloaded_error; B: 500 api_error",
            None,
            None,
        ),
        row(
            limited(3600),
            Script::html(502),
            503,
            "api_error",
            "A: 429 rate_limit_error; B: a web page under status 502",
            None,
            None,
        ),
        row(
            unknown(),
            error(401, "authentication_error"),
            503,
            "api_error",
            "A: 404 not_found_error; B: 401 authentication_error",
            None,
            None,
        ),
        row(
            Script::json(500, &serde_json::json!({"error": {"type": "Bad\r\nType <script>"}})),
            error(500, "api_error"),
            503,
            "api_error",
            "A: 500 error; B: 500 api_error",
            None,
            None,
        ),
    ];
    for row in rows {
        for stream in [true, false] {
            let (_labs, balancer) = before(&row.scripts, "").await;
            let reply = balancer.ask(stream).await;
            let message = ours(&reply, row.status, row.kind, row.message);
            assert_eq!(message, format!("All providers failed: {}", row.message));
            assert_eq!(reply.header("retry-after"), row.retry_after, "{}", row.message);
            assert_eq!(reply.header("x-should-retry"), row.should_retry, "{}", row.message);
            assert_eq!(reply.header("x-balancer-attempts"), Some("2"), "{}", row.message);
            assert!(!reply.text().contains("what the provider said"), "{}", reply.text());
        }
    }
}

#[tokio::test]
async fn all_timeouts_are_a_504() {
    let settings = "timeouts: { first_byte: \"150ms\", before_commit: \"400ms\" }";
    let (labs, balancer) = before(&[Script::stall(), Script::stall()], settings).await;
    let message = ours(&balancer.ask(false).await, 504, "timeout_error", "two that stall");
    assert!(message.starts_with("All providers failed: A: no answer in time; B: no answer before"), "{message}");
    assert_eq!(labs.iter().map(|lab| lab.requests().len()).collect::<Vec<_>>(), [1, 1]);
}

#[tokio::test]
async fn a_target_that_got_only_the_rest_of_the_time_is_not_to_blame() {
    let settings = "timeouts: { first_byte: \"300ms\", before_commit: \"400ms\" }";
    let (labs, balancer) = before(&[Script::stall(), Script::stall()], settings).await;
    assert_eq!(balancer.ask(false).await.status, 504);
    assert_eq!((balancer.failures("A").await, balancer.failures("B").await), (1, 0));
    // One that had all of it is.
    let alone = Balancer::before(&[&labs[0]], settings).await;
    assert_eq!(alone.ask(false).await.status, 504);
    assert_eq!(alone.failures("A").await, 1);
}

#[tokio::test]
async fn limits_of_the_clients_own_credential_say_when_they_end() {
    let labs = [Lab::start().await.unwrap(), Lab::start().await.unwrap()];
    let entry = |name: &str, lab: &Lab| {
        format!("  - {{ name: {name}, base_url: \"{}\", auth_value: passthrough }}\n", lab.url())
    };
    let balancer = Balancer::start(&format!("providers:\n{}{}", entry("A", &labs[0]), entry("B", &labs[1]))).await;
    for (seconds, should_retry) in [(40, None), (4000, Some("false"))] {
        labs[0].next(limited(seconds + 1000));
        labs[1].next(limited(seconds));
        let headers = [JSON, ("authorization", "Bearer own")];
        let reply = balancer.fetch("POST", "/v1/messages", &headers, request(true)).await;
        ours(&reply, 429, "rate_limit_error", "own");
        assert_eq!(reply.header("retry-after"), Some(seconds.to_string().as_str()));
        assert_eq!(reply.header("x-should-retry"), should_retry);
    }
}

#[tokio::test]
async fn what_is_known_to_be_hopeless_is_answered_at_once_and_no_provider_is_touched() {
    for (scripts, should_retry) in [
        (vec![limited(50), limited(40)], None),
        (vec![limited(7000), limited(5000)], Some("false")),
        (vec![limited(45)], None),
    ] {
        let (labs, balancer) = before(&scripts, "").await;
        let first = balancer.ask(true).await;
        assert_eq!(first.status, 429);
        let told: u64 = first.header("retry-after").unwrap().parse().unwrap();
        for stream in [true, false] {
            let reply = balancer.ask(stream).await;
            let message = ours(&reply, 429, "rate_limit_error", "known");
            assert!(message.starts_with("All providers failed: A: rate limited until "), "{message}");
            let again: u64 = reply.header("retry-after").unwrap().parse().unwrap();
            assert!(again <= told && again + 20 > told, "{told}, then {again}");
            assert_eq!(reply.header("x-should-retry"), should_retry);
            assert_eq!(reply.header("x-balancer-attempts"), Some("0"));
        }
        assert!(labs.iter().all(|lab| lab.requests().len() == 1 && lab.connections() == 1));
        // Another model of the same account is no better off.
        assert_eq!(balancer.post(request_for("another", false)).await.status, 429);
        let health = balancer.fetch("GET", "/health", &[], "").await;
        assert_eq!(health.status, 503);
    }
}

#[tokio::test]
async fn where_all_need_a_login_the_client_is_told_how_to_sign_in() {
    let lab = Lab::start().await.unwrap();
    let entry = |email: &str| {
        format!("  - {{ name: P, base_url: \"{}\", auth_value: oauth, account_email: {email} }}\n", lab.url())
    };
    let balancer = Balancer::start(&format!("providers:\n{}{}", entry("one@x.y"), entry("two@x.y"))).await;
    let reply = balancer.ask(true).await;
    let message = ours(&reply, 401, "authentication_error", "login");
    assert!(message.contains(&format!("{}/oauth/generate-url?account_email=one@x.y", balancer.url)), "{message}");
    assert_eq!(reply.header("x-should-retry"), Some("false"));
    assert_eq!(lab.connections(), 0);
}

#[tokio::test]
async fn a_route_without_an_enabled_target_and_a_model_without_a_route_say_so() {
    let lab = Lab::start().await.unwrap();
    let balancer = Balancer::start(&format!(
        r#"providers:
  - {{ name: A, base_url: "{}", auth_value: k }}
model_routes:
  claude-off:
    - {{ provider: A, enabled: false }}
  claude-on:
    - {{ provider: A }}
"#,
        lab.url()
    ))
    .await;
    let reply = balancer.post(request_for("claude-off", true)).await;
    ours(&reply, 503, "api_error", "off");
    assert_eq!(reply.header("x-should-retry"), Some("false"));
    let message = ours(&balancer.post(request_for("other", true)).await, 404, "not_found_error", "no route");
    assert!(message.contains("other") && message.contains("claude-on"), "{message}");
    assert_eq!(lab.connections(), 0);
}
