//! The other paths under `/v1/`: models, token counts, and what is streamed both ways to the first provider.

use claude_code_balancer::lab::{Lab, Script};
use serde_json::json;

use crate::support::balancer::{Balancer, JSON, request};
use crate::support::{soon, sse};

async fn two() -> (Lab, Lab, Balancer) {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let balancer = Balancer::before(&[&a, &b], "").await;
    (a, b, balancer)
}

#[tokio::test]
async fn models_come_from_the_first_usable_provider_with_failover() {
    let (a, b, balancer) = two().await;
    let list = Script::json(200, &json!({"data": [{"type": "model", "id": "claude-x"}], "has_more": false}));
    for lab in [&a, &b] {
        lab.always(list.clone());
    }
    for target in ["/v1/models", "/v1/models?limit=2&after_id=x", "/v1/models/claude-x"] {
        a.next(Script::html(502));
        for (attempts, provider) in [("2", "B"), ("1", "A")] {
            let reply = balancer.fetch("GET", target, &[("x-api-key", "canary")], "").await;
            assert_eq!((reply.status, &reply.body), (200, &list.body_bytes()), "{target}");
            assert_eq!(reply.header("x-balancer-attempts"), Some(attempts), "{target}");
            assert_eq!(reply.header("x-provider-used"), Some(provider), "{target}");
        }
        let received = b.requests().pop().unwrap();
        assert_eq!((received.method.as_str(), received.target.as_str()), ("GET", target));
        assert_eq!((received.header("x-api-key"), received.header("content-length")), (Some("key-b"), None));
    }
    let missing = Script::error(404, "not_found_error", "model: nope");
    a.next(missing.clone());
    let reply = balancer.fetch("GET", "/v1/models/nope", &[], "").await;
    assert_eq!((reply.status, &reply.body), (404, &missing.body_bytes()));
}

#[tokio::test]
async fn a_head_request_for_models_is_answered_without_a_body() {
    let (a, _b, balancer) = two().await;
    a.always(Script::json(200, &json!({"data": []})));
    let mut client = balancer.send("HEAD", "/v1/models", &[], "").await;
    let head = soon("the head", client.head()).await.unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("11")));
    // The next answer on the connection begins where the head ended.
    balancer.send_on(&mut client, "GET", "/health", &[], "").await;
    assert_eq!(soon("the next answer", client.read_to_end()).await.unwrap().status, 200);
    assert_eq!(a.requests()[0].method, "HEAD");
}

fn upload() -> Vec<u8> {
    let mut body = b"--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n".to_vec();
    body.extend((0..4_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8));
    body.extend_from_slice(b"\r\n--x--\r\n");
    body
}

#[tokio::test]
async fn an_upload_is_streamed_to_the_first_provider_byte_for_byte() {
    let (a, b, balancer) = two().await;
    a.always(Script::json(200, &json!({"id": "file_1"})));
    let multipart = ("content-type", "multipart/form-data; boundary=x");
    let body = upload();
    let reply = balancer.fetch("POST", "/v1/files?beta=true", &[multipart], &body).await;
    assert_eq!((reply.status, reply.header("x-provider-used")), (200, Some("A")));
    let mut chunked = Vec::new();
    for piece in body.chunks(65_537) {
        chunked.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        chunked.extend_from_slice(piece);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let reply = balancer.fetch("POST", "/v1/files", &[multipart, ("transfer-encoding", "chunked")], chunked).await;
    assert_eq!(reply.status, 200);
    let received = a.requests();
    for request in &received {
        assert!(request.body == body, "the upload arrives as it was");
        assert_eq!(request.header("content-type"), Some(multipart.1));
        assert_eq!((request.header("x-api-key"), request.header("authorization")), (Some("key-a"), None));
    }
    let framing = |i: usize| (received[i].header("content-length"), received[i].header("transfer-encoding"));
    assert_eq!(framing(0), (Some(body.len().to_string().as_str()), None));
    assert_eq!(framing(1), (None, Some("chunked")));
    assert_eq!((received[0].target.as_str(), b.connections()), ("/v1/files?beta=true", 0));
}

#[tokio::test]
async fn an_upload_reaches_the_provider_while_it_is_still_being_sent() {
    let (a, _b, balancer) = two().await;
    a.always(Script::json(200, &json!({})).early());
    let headers = [("content-type", "application/octet-stream"), ("content-length", "1000000")];
    let mut client = balancer.send("POST", "/v1/files", &headers, "the beginning").await;
    soon("the provider has the head", a.received(1)).await;
    assert_eq!(soon("the early answer", client.read_to_end()).await.unwrap().status, 200);
}

#[tokio::test]
async fn other_paths_never_fail_over_and_pass_errors_and_redirects_unmodified() {
    let (a, b, balancer) = two().await;
    let scripts = [
        Script::error(500, "api_error", "x"),
        Script::error(529, "overloaded_error", "x"),
        Script::error(429, "rate_limit_error", "x").header("retry-after", "3600"),
        Script::error(401, "authentication_error", "x"),
        Script::error(404, "not_found_error", "x"),
        Script::redirect(302, "https://elsewhere.test/x"),
        Script::body(206, "application/pdf", "%PDF"),
        Script::html(200),
        Script::events(vec!["data: x\n\n".into()]),
        Script::body(200, "application/x-jsonl", "{}\n{}\n").chunked(),
    ];
    for (method, target) in
        [("GET", "/v1/files/f/content"), ("POST", "/v1/messages/batches"), ("DELETE", "/v1/files/f")]
    {
        for script in &scripts {
            a.next(script.clone());
            let body = if method == "POST" { "{}" } else { "" };
            let reply = balancer.fetch(method, target, &[JSON, ("accept-encoding", "gzip")], body).await;
            let name = format!("{method} {script:?}");
            assert_eq!((&reply.body, reply.clean_end), (&script.body_bytes(), true), "{name}");
            assert_eq!((reply.header("x-provider-used"), reply.header("x-balancer-attempts")), (Some("A"), Some("1")));
            if reply.status == 302 {
                assert_eq!(reply.header("location"), Some("https://elsewhere.test/x"));
            }
            let received = a.requests().pop().unwrap();
            assert_eq!((received.method.as_str(), received.target.as_str()), (method, target), "{name}");
            assert_eq!(received.header("accept-encoding"), Some("gzip"), "{name}");
        }
        a.next(Script::empty(204));
        assert_eq!(balancer.fetch(method, target, &[], "").await.status, 204);
    }
    assert_eq!(b.connections(), 0);
    assert_eq!(balancer.provider("A").await["healthy"], true);
    // A provider that cannot be reached is no reason to ask another one either.
    a.always(Script::close());
    let reply = balancer.fetch("GET", "/v1/files", &[], "").await;
    assert_eq!((reply.status, reply.json()["error"]["type"].as_str(), b.connections()), (502, Some("api_error"), 0));
}

#[tokio::test]
async fn an_event_stream_of_another_path_needs_no_message_stop_but_a_cut_in_it_is_said() {
    let (a, _b, balancer) = two().await;
    // A clean end is an end: what the events mean is not known here.
    let whole = Script::stream(&["x", "y"]).end_after(4);
    a.next(whole.clone());
    let reply = balancer.fetch("GET", "/v1/results", &[], "").await;
    assert_eq!((reply.clean_end, &reply.body), (true, &whole.body_bytes()));
    let length = Script::stream(&["x", "y"]).body_bytes().len();
    for cut in (1..length).step_by(17) {
        let script = Script::stream(&["x", "y"]).cut_at_byte(cut);
        a.next(script.clone());
        let reply = balancer.fetch("GET", "/v1/results", &[], "").await;
        assert!(reply.clean_end && reply.body.starts_with(&script.body_bytes()), "cut at {cut}");
        let events = sse::events(&reply.body);
        let last = events.last().unwrap();
        assert_eq!((last.event.as_str(), last.json()["type"].as_str()), ("error", Some("error")), "cut at {cut}");
        assert_eq!(events.iter().filter(|event| event.event == "error").count(), 1, "cut at {cut}");
    }
}

#[tokio::test]
async fn token_counts_are_routed_and_forwarded_and_a_limit_there_concerns_nothing_else() {
    let (a, b, balancer) = two().await;
    let counted = Script::json(200, &json!({"input_tokens": 7}));
    a.next(Script::error(429, "rate_limit_error", "x").header("retry-after", "3600"));
    a.always(counted.clone());
    b.always(counted.clone());
    let target = "/v1/messages/count_tokens?beta=true";
    for (attempts, provider) in [("2", "B"), ("1", "B")] {
        let reply = balancer.fetch("POST", target, &[JSON], request(false)).await;
        assert_eq!((reply.status, &reply.body), (200, &counted.body_bytes()));
        assert_eq!(reply.header("x-balancer-attempts"), Some(attempts));
        assert_eq!(reply.header("x-provider-used"), Some(provider));
    }
    let received = b.requests().pop().unwrap();
    assert_eq!((received.target.as_str(), &received.body[..]), (target, request(false).as_bytes()));
    a.always(Script::message("x"));
    assert_eq!(balancer.ask(false).await.header("x-provider-used"), Some("A"), "messages are not limited");
    // A model that cannot be counted there can still be asked there.
    b.next(Script::error(404, "not_found_error", "model: claude-lab"));
    assert_eq!(balancer.fetch("POST", target, &[JSON], request(false)).await.status, 503, "limited, and not known");
    b.always(Script::message("x"));
    let pinned = request(false).replacen('{', r#"{"provider":"B","#, 1);
    assert_eq!(balancer.post(pinned).await.header("x-provider-used"), Some("B"));
}

#[tokio::test]
async fn many_token_counts_at_once_all_succeed() {
    let (a, b, balancer) = two().await;
    a.always(Script::json(200, &json!({"input_tokens": 7})));
    let mut clients = Vec::new();
    for _ in 0..25 {
        clients.push(balancer.send("POST", "/v1/messages/count_tokens", &[JSON], request(false)).await);
    }
    for mut client in clients {
        assert_eq!(soon("a count", client.read_to_end()).await.unwrap().status, 200);
    }
    assert_eq!((a.requests().len(), b.requests().len()), (25, 0));
}

#[tokio::test]
async fn other_paths_do_not_hang() {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let times = "timeouts: { before_commit: \"200ms\", idle: \"200ms\" }";
    let balancer = Balancer::before(&[&a, &b], times).await;
    a.next(Script::stall());
    let reply = balancer.fetch("GET", "/v1/files", &[], "").await;
    assert_eq!((reply.status, reply.json()["error"]["type"].as_str()), (504, Some("timeout_error")));
    let script = Script::body(200, "application/pdf", "%PDF and more").stall_at_byte(6);
    for script in [script.clone(), script.chunked()] {
        a.next(script.clone());
        let reply = balancer.fetch("GET", "/v1/files/f/content", &[], "").await;
        assert_eq!((reply.status, reply.clean_end, &reply.body), (200, false, &script.body_bytes()));
    }
    assert_eq!(b.connections(), 0);
}
