//! What the request or the client's own credential is to blame for stays with the client; the settings that bend the
//! rules.

use claude_code_balancer::lab::{Gate, Lab, Script};
use serde_json::json;

use crate::support::balancer::{Balancer, JSON, MODEL, request};
use crate::support::{Reply, soon};

/// The answer must be the script's: status, body and headers.
fn is_unmodified(reply: &Reply, script: &Script, status: u16, name: &str) {
    assert_eq!((reply.status, reply.clean_end), (status, true), "{name}: {}", reply.text());
    assert_eq!(reply.body, script.body_bytes(), "{name}");
    assert_eq!(reply.header("request-id"), Some("req_lab"), "{name}");
    assert_eq!(reply.header("content-type"), Some("application/json"), "{name}");
    assert_eq!(reply.header("x-of-theirs"), Some("kept"), "{name}");
    assert_eq!(reply.header("x-balancer-attempts"), Some("1"), "{name}");
    assert_eq!(reply.header("x-provider-used"), Some("A"), "{name}");
}

async fn two(settings: &str) -> (Lab, Lab, Balancer) {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let balancer = Balancer::before(&[&a, &b], settings).await;
    (a, b, balancer)
}

/// A and B with the client's own credential.
async fn two_passthrough() -> (Lab, Lab, Balancer) {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let entry = |name: &str, lab: &Lab| {
        format!("  - {{ name: \"{name}\", base_url: \"{}\", auth_value: passthrough }}\n", lab.url())
    };
    let balancer = Balancer::start(&format!("providers:\n{}{}", entry("A", &a), entry("B", &b))).await;
    (a, b, balancer)
}

#[tokio::test]
async fn an_error_about_the_request_reaches_the_client_unmodified_and_no_other_provider() {
    let (a, b, balancer) = two("").await;
    for status in [400, 405, 406, 409, 410, 413, 415, 418, 422, 424, 431, 451, 499] {
        for stream in [true, false] {
            let script = Script::error(status, "invalid_request_error", "max_tokens:  required \u{e9}")
                .header("x-of-theirs", "kept");
            a.next(if stream { script.clone() } else { script.clone().chunked() });
            is_unmodified(&balancer.ask(stream).await, &script, status, &format!("{status}, stream: {stream}"));
        }
    }
    let script = Script::error(404, "not_found_error", "no such beta").header("x-of-theirs", "kept");
    a.next(script.clone());
    is_unmodified(&balancer.ask(true).await, &script, 404, "404 that names no model");
    assert_eq!((b.requests().len(), balancer.failures("A").await), (0, 0));
    assert_eq!(balancer.provider("A").await["healthy"], true);
}

#[tokio::test]
async fn an_error_body_of_any_size_and_any_bytes_passes() {
    let (a, _b, balancer) = two("").await;
    let large =
        format!(r#"{{"type":"error","error":{{"type":"invalid_request_error","message":"{}"}}}}"#, "m".repeat(2 << 20));
    let bodies: [&[u8]; 4] = [b"", b"{", b"\x00\xff\x00", large.as_bytes()];
    for body in bodies {
        let script = Script::body(422, "application/octet-stream", body.to_vec());
        a.next(script.clone());
        let reply = balancer.ask(true).await;
        assert_eq!((reply.status, reply.clean_end, &reply.body), (422, true, &script.body_bytes()));
        assert_eq!(reply.header("content-type"), Some("application/octet-stream"));
    }
}

#[tokio::test]
async fn an_error_under_200_gets_the_status_of_its_type() {
    let (a, b, balancer) = two("").await;
    let error = json!({"type": "error", "error": {"type": "invalid_request_error", "message": "bad"}});
    for (script, stream) in [
        (Script::json(200, &error), false),
        (Script::json(200, &error), true),
        (Script::stream(&["x"]).first_event_error("invalid_request_error"), true),
    ] {
        a.next(script.clone());
        let reply = balancer.ask(stream).await;
        assert_eq!((reply.status, reply.clean_end), (400, true));
        assert_eq!(reply.header("content-type"), Some("application/json"));
        // Of an event, what it says.
        assert_eq!(
            (&reply.json()["type"], &reply.json()["error"]["type"]),
            (&"error".into(), &"invalid_request_error".into())
        );
    }
    assert_eq!((b.requests().len(), balancer.failures("A").await), (0, 0));
}

#[tokio::test]
async fn refusals_of_the_clients_own_credential_go_to_the_client_and_limits_of_it_to_the_next_without_health_effect() {
    let (a, b, balancer) = two_passthrough().await;
    let headers = [JSON, ("authorization", "Bearer own")];
    for (status, kind) in [(401, "authentication_error"), (403, "permission_error")] {
        let script = Script::error(status, kind, "refused").header("x-of-theirs", "kept");
        a.next(script.clone());
        let reply = balancer.fetch("POST", "/v1/messages", &headers, request(true)).await;
        is_unmodified(&reply, &script, status, kind);
        assert_eq!(reply.header("x-should-retry"), None, "{status}");
    }
    assert_eq!(b.requests().len(), 0);
    for status in [402, 429] {
        a.next(Script::error(status, "rate_limit_error", "limited").header("retry-after", "3600"));
        let reply = balancer.fetch("POST", "/v1/messages", &headers, request(true)).await;
        assert_eq!((reply.status, reply.header("x-balancer-attempts")), (200, Some("2")), "{status}");
        let told = balancer.provider("A").await;
        assert_eq!((&told["healthy"], &told["failure_count"]), (&json!(true), &json!(0)), "{status}: {told}");
    }
    assert_eq!(a.requests().len(), 4, "a limit of the client's own does not keep anybody away");
    assert!(
        a.requests().iter().chain(&b.requests()).all(|request| request.header("authorization") == Some("Bearer own"))
    );
}

#[tokio::test]
async fn without_a_credential_of_the_clients_own_nothing_is_sent_to_a_passthrough_provider() {
    let (a, b, balancer) = two_passthrough().await;
    let reply = balancer.ask(true).await;
    assert_eq!((reply.status, reply.header("x-should-retry")), (401, Some("false")));
    assert_eq!(reply.json()["error"]["type"], "authentication_error");
    assert_eq!((a.connections(), b.connections()), (0, 0));
}

#[tokio::test]
async fn a_key_never_reaches_another_provider() {
    let (a, b, balancer) = two("").await;
    a.always(Script::html(502));
    let headers = [JSON, ("authorization", "Bearer own"), ("x-api-key", "own")];
    balancer.fetch("POST", "/v1/messages", &headers, request(true)).await;
    for (lab, key) in [(&a, "key-a"), (&b, "key-b")] {
        let request = &lab.requests()[0];
        assert_eq!((request.headers_named("x-api-key"), request.header("authorization")), (vec![key], None));
    }
}

#[tokio::test]
async fn unhealthy_http_codes_add_to_what_fails_over_and_take_nothing_away() {
    let (a, _b, balancer) = two("unhealthy_http_codes: [409, 401, 529]").await;
    a.next(Script::error(409, "conflict_error", "x"));
    let reply = balancer.ask(true).await;
    assert_eq!((reply.status, reply.header("x-balancer-attempts")), (200, Some("2")));
    assert_eq!(balancer.failures("A").await, 1);
    a.next(Script::error(529, "overloaded_error", "x"));
    assert_eq!(balancer.ask(true).await.status, 200);
    assert_eq!(balancer.failures("A").await, 1, "529 keeps its own effect");
}

#[tokio::test]
async fn without_replay_what_may_have_been_processed_is_not_sent_again() {
    let settings = "replay_after_send: false\nfailure_cooldown: 0\ntimeouts: { first_byte: \"200ms\" }";
    let (a, b, balancer) = two(settings).await;
    for (script, status) in [(Script::close(), 503), (Script::reset(), 503), (Script::stall(), 504)] {
        a.next(script.clone());
        let reply = balancer.ask(false).await;
        assert_eq!((reply.status, reply.header("x-balancer-attempts")), (status, Some("1")), "{script:?}");
        assert_eq!(b.requests().len(), 0, "{script:?}");
    }
    a.next(Script::error(500, "api_error", "an answer is no doubt"));
    assert_eq!(balancer.ask(false).await.header("x-provider-used"), Some("B"));
}

#[tokio::test]
async fn a_replay_after_send_is_counted() {
    let (a, _b, balancer) = two("").await;
    for (script, replays) in [(Script::error(500, "api_error", "x").connection_close(), 0), (Script::close(), 1)] {
        a.next(script);
        assert_eq!(balancer.ask(true).await.status, 200);
        let metrics = balancer.fetch("GET", "/metrics", &[], "").await.text();
        let line = metrics.lines().find(|line| line.contains("replays_after_send") && !line.starts_with('#')).unwrap();
        assert!(line.ends_with(&format!(" {replays}")), "{line}");
    }
}

#[tokio::test]
async fn all_attempts_together_end_with_the_time_of_the_request() {
    for (stream, name) in [(true, "before_commit_stream"), (false, "before_commit")] {
        let (a, b, balancer) = two(&format!("timeouts: {{ {name}: \"300ms\" }}")).await;
        a.always(Script::stall());
        let reply = balancer.ask(stream).await;
        assert_eq!((reply.status, reply.json()["error"]["type"].as_str()), (504, Some("timeout_error")), "{name}");
        assert!(reply.header("request-id").is_some(), "{name}");
        assert_eq!((a.requests().len(), b.requests().len()), (1, 0), "{name}");
    }
}

#[tokio::test]
async fn the_last_usable_target_may_take_as_long_as_the_request_has() {
    let (a, b, balancer) = two("timeouts: { first_byte_stream: \"100ms\" }").await;
    let gate = Gate::new();
    a.always(Script::stall());
    b.always(Script::stream(&["late"]).hold_head(gate.clone()));
    let mut client = balancer.send("POST", "/v1/messages", &[JSON], request(true)).await;
    soon("the second provider is asked", b.received(1)).await;
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), client.head()).await;
    assert!(early.is_err(), "the second one's limit does not apply: {early:?}");
    gate.open();
    assert_eq!(soon("the answer", client.head()).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_pin_asks_that_provider_only() {
    let (a, b, balancer) = two("").await;
    b.always(Script::html(502));
    let reply = balancer.post(format!(r#"{{"model":"{MODEL}","provider":"B","stream":true}}"#)).await;
    assert_eq!((reply.status, a.requests().len(), b.requests().len()), (503, 0, 1));
    let reply = balancer.post(format!(r#"{{"model":"{MODEL}","provider":"Z","stream":true}}"#)).await;
    assert_eq!((reply.status, reply.json()["error"]["type"].as_str()), (404, Some("not_found_error")));
}
