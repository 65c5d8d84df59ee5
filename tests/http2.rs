//! Providers that are offered HTTP/2: one connection for many requests, and above it the same contract as in HTTP/1.1.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use claude_code_balancer::lab::{Allowance, Gate, Lab, Received, Script, Tunnel, Welcome, event};
use claude_code_balancer::provider::{Auth, BaseUrl, Egress, Kind, Provider, ProviderKey};
use claude_code_balancer::upstream::{DialLimits, Payload, Request, Upstream};
use http::{HeaderValue, Method};
use tokio::task::JoinSet;

use crate::support::balancer::{Balancer, request, request_for};
use crate::support::binary::Binary;
use crate::support::egress::trust;
use crate::support::tls::Authority;
use crate::support::{Client, Reply, soon, sse};

/// Entries A, B … with `http2: true`, and these lines of `settings`.
fn offering(urls: &[String], settings: &str) -> String {
    let entry = |(url, name): (&String, char)| {
        let key = name.to_ascii_lowercase();
        format!("  - {{ name: {name}, base_url: \"{url}\", auth_value: key-{key}, http2: true }}\n")
    };
    let entries: String = urls.iter().zip('A'..='Z').map(entry).collect();
    let settings: String = settings.lines().map(|line| format!("  {}\n", line.trim())).collect();
    format!("providers:\n{entries}settings:\n  log_file_path: \"\"\n{settings}")
}

/// Labs that choose HTTP/2, and a balancer in front of them.
async fn before(count: usize, settings: &str) -> (Vec<Lab>, Balancer) {
    let authority = Authority::new();
    let mut labs = Vec::new();
    for _ in 0..count {
        labs.push(Lab::start_tls(authority.server_http2()).await.unwrap());
    }
    let urls: Vec<String> = labs.iter().map(Lab::url).collect();
    let balancer = Balancer::start_trusting(&offering(&urls, settings), &authority).await;
    (labs, balancer)
}

async fn one() -> (Lab, Balancer) {
    let (mut labs, balancer) = before(1, "").await;
    (labs.remove(0), balancer)
}

async fn two(settings: &str) -> (Lab, Lab, Balancer) {
    let (mut labs, balancer) = before(2, settings).await;
    let (a, b) = (labs.remove(0), labs.remove(0));
    (a, b, balancer)
}

/// Says the model's name back.
fn echo(request: &Received) -> Script {
    let body = request.json();
    let model = body["model"].as_str().unwrap_or_default();
    if body["stream"] == true { Script::stream(&[model]) } else { Script::message(model) }
}

async fn answer(client: &mut Client) -> Reply {
    soon("the answer", client.read_to_end()).await.unwrap()
}

fn assert_answered(reply: &Reply, provider: &str, attempts: &str) {
    assert_eq!(
        (reply.status, reply.header("x-provider-used"), reply.header("x-balancer-attempts"), reply.clean_end),
        (200, Some(provider), Some(attempts), true),
        "{}",
        reply.text()
    );
}

#[tokio::test]
async fn requests_follow_each_other_on_one_connection_as_they_would_in_http_1() {
    let (lab, balancer) = one().await;
    for _ in 0..3 {
        assert_answered(&balancer.ask(false).await, "A", "1");
        let script = Script::stream(&["a", "b"]).interim(103, &[]).trailer("x-late", "dropped");
        lab.next(script.clone());
        let reply = balancer.ask(true).await;
        assert_answered(&reply, "A", "1");
        assert_eq!((&reply.body, reply.header("x-late")), (&script.body_bytes(), None));
    }
    let host = format!("localhost:{}", lab.address().port());
    for (index, received) in lab.requests().iter().enumerate() {
        let body = request(index % 2 == 1);
        assert!(received.is_http2());
        assert_eq!(
            (received.method.as_str(), received.target.as_str(), &received.body[..]),
            ("POST", "/v1/messages", body.as_bytes())
        );
        assert_eq!(received.headers_named("host"), [&host], "`:authority`, and no `host` beside it");
        assert_eq!((received.header("x-api-key"), received.header("authorization")), (Some("key-a"), None));
        assert_eq!(received.header("content-length"), Some(body.len().to_string().as_str()));
        for name in ["connection", "keep-alive", "te", "transfer-encoding", "upgrade"] {
            assert_eq!(received.header(name), None);
        }
    }
    assert_eq!((lab.connections(), lab.requests().len(), lab.complaints()), (1, 6, vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_first_requests_wait_for_one_connection_and_do_not_mix() {
    let (lab, balancer) = one().await;
    lab.answer(echo);
    let balancer = Arc::new(balancer);
    let mut tasks = JoinSet::new();
    for number in 0..20 {
        let balancer = balancer.clone();
        tasks.spawn(async move {
            let model = format!("model-{number}");
            let reply = balancer.post(request_for(&model, number % 2 == 0)).await;
            assert_answered(&reply, "A", "1");
            let text = if number % 2 == 0 {
                sse::text(&reply.body)
            } else {
                reply.json()["content"][0]["text"].as_str().unwrap().to_owned()
            };
            assert_eq!(text, model);
        });
    }
    soon("all answers", tasks.join_all()).await;
    assert_eq!((lab.connections(), lab.requests().len()), (1, 20));
}

#[tokio::test]
async fn all_threads_of_the_program_share_a_connection() {
    let authority = Authority::new();
    let lab = Lab::start_tls(authority.server_http2()).await.unwrap();
    lab.answer(echo);
    let binary = Binary::new();
    let pem = binary.file("ca.pem", &authority.pem());
    let file = binary.file("config.yaml", &offering(&[lab.url()], ""));
    let binary = Binary::new().with("SSL_CERT_FILE", pem.to_str().unwrap());
    let (_service, address) = binary.serve(&["--config", file.to_str().unwrap()]).await;
    let mut tasks = JoinSet::new();
    for number in 0..16 {
        tasks.spawn(async move {
            let host = address.to_string();
            let mut client = Client::connect(address).await.unwrap();
            for turn in 0..10 {
                let model = format!("model-{number}-{turn}");
                client.send("POST", "/v1/messages", &[("host", &host)], request_for(&model, true)).await.unwrap();
                let reply = answer(&mut client).await;
                assert_answered(&reply, "A", "1");
                assert_eq!(sse::text(&reply.body), model);
            }
        });
    }
    soon("all answers", tasks.join_all()).await;
    assert_eq!((lab.connections(), lab.requests().len(), lab.departures()), (1, 160, 0));
}

#[tokio::test]
async fn those_who_wait_for_a_connection_that_fails_share_the_failure() {
    let authority = Authority::new();
    let lab = Lab::start_tls(authority.server_http2()).await.unwrap();
    let balancer = Arc::new(Balancer::start_trusting(&offering(&[lab.url()], ""), &Authority::new()).await);
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let balancer = balancer.clone();
        tasks.spawn(async move { balancer.ask(false).await });
    }
    for reply in soon("all answers", tasks.join_all()).await {
        assert_eq!(reply.status, 503, "{}", reply.text());
        assert!(reply.text().contains("A: TLS with localhost failed"), "{}", reply.text());
    }
    assert!(lab.connections() < 8, "{}", lab.connections());
}

#[tokio::test]
async fn whoever_waits_for_a_connection_gets_one_when_the_one_who_dialled_has_left() {
    let (lab, balancer) = one().await;
    lab.welcome(Welcome::Mute);
    let first = balancer.asking(false).await;
    soon("the first connection", lab.connected(1)).await;
    lab.welcome(Welcome::Serve);
    let mut second = balancer.asking(false).await;
    balancer.inflight(2).await;
    assert_eq!(lab.connections(), 1, "it waits");
    drop(first);
    assert_answered(&answer(&mut second).await, "A", "1");
    assert_eq!((lab.connections(), lab.requests().len()), (2, 1));
}

#[tokio::test]
async fn a_provider_that_chooses_http_1_is_spoken_to_in_it() {
    let authority = Authority::new();
    let secure = Lab::start_tls(authority.server()).await.unwrap();
    let plain = Lab::start().await.unwrap();
    for lab in [&secure, &plain] {
        let balancer = Balancer::start_trusting(&offering(&[lab.url()], ""), &authority).await;
        for stream in [false, true, false] {
            assert_answered(&balancer.ask(stream).await, "A", "1");
        }
        assert_eq!((lab.connections(), lab.requests().len()), (1, 3), "kept alive");
        let gate = Gate::new();
        lab.always(Script::stream(&["a"]).gate_before(1, gate.clone()));
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(balancer.asking(true).await);
        }
        soon("four requests at a time", lab.received(7)).await;
        gate.open();
        for client in &mut clients {
            assert_answered(&answer(client).await, "A", "1");
        }
        assert_eq!(lab.connections(), 4, "one for each");
        assert!(lab.requests().iter().all(|request| !request.is_http2()));
        assert_eq!(lab.complaints(), [""; 0]);
    }
}

#[tokio::test]
async fn where_no_stream_is_left_another_connection_is_opened() {
    let (lab, balancer) = one().await;
    lab.allow(Allowance { streams: Some(1), ..Allowance::default() });
    let gate = Gate::new();
    lab.always(Script::stream(&["a"]).gate_before(1, gate.clone()));
    let (mut first, mut second) = (balancer.asking(true).await, balancer.asking(true).await);
    soon("both requests", lab.received(2)).await;
    assert_eq!(lab.connections(), 2);
    gate.open();
    for client in [&mut first, &mut second] {
        assert_answered(&answer(client).await, "A", "1");
    }
    // Both have room again.
    for _ in 0..4 {
        assert_answered(&balancer.ask(true).await, "A", "1");
    }
    assert_eq!((lab.connections(), balancer.failures("A").await), (2, 0));
}

#[tokio::test]
async fn a_refused_stream_is_sent_once_more_and_then_the_next_provider_is_asked() {
    const REFUSED_STREAM: u32 = 7;
    let (a, b, balancer) = two("replay_after_send: false").await;
    a.next(Script::refuse(REFUSED_STREAM));
    assert_answered(&balancer.ask(false).await, "A", "1");
    assert_eq!((a.requests().len(), balancer.failures("A").await), (2, 0));
    a.next(Script::refuse(REFUSED_STREAM));
    a.next(Script::refuse(REFUSED_STREAM));
    assert_answered(&balancer.ask(false).await, "B", "2");
    assert_eq!((a.requests().len(), b.requests().len(), a.connections()), (4, 1, 1));
    let entry = balancer.provider("A").await;
    assert_eq!(entry["last_error"], "the provider refused to take the request (REFUSED_STREAM)");
}

#[tokio::test]
async fn a_stream_that_is_reset_may_have_been_processed() {
    const ENHANCE_YOUR_CALM: u32 = 11;
    for (settings, status, asked) in [("replay_after_send: false", 503, 0), ("replay_after_send: true", 200, 1)] {
        let (a, b, balancer) = two(settings).await;
        a.next(Script::refuse(ENHANCE_YOUR_CALM));
        let reply = balancer.ask(false).await;
        assert_eq!((reply.status, b.requests().len()), (status, asked), "{}", reply.text());
        assert_eq!(a.requests().len(), 1, "never twice");
        let entry = balancer.provider("A").await;
        assert_eq!(entry["last_error"], "the provider reset the request (ENHANCE_YOUR_CALM)");
        assert_eq!(a.open_connections(), 1, "the connection has done nothing wrong");
    }
}

#[tokio::test]
async fn a_provider_that_goes_away_ends_what_runs_and_gets_nothing_new() {
    let (lab, balancer) = one().await;
    let gate = Gate::new();
    let script = Script::stream(&["a", "b"]).gate_before(2, gate.clone());
    lab.next(script.clone());
    let mut running = balancer.asking(true).await;
    soon("the first request", lab.received(1)).await;
    lab.next(Script::message("the last").connection_close());
    assert_answered(&balancer.ask(false).await, "A", "1");
    // The answer may be here before the farewell; a request that meets it is sent again.
    while lab.connections() == 1 {
        assert_answered(&balancer.ask(false).await, "A", "1");
    }
    gate.open();
    let reply = answer(&mut running).await;
    assert_answered(&reply, "A", "1");
    assert_eq!(reply.body, script.body_bytes());
    assert_answered(&balancer.ask(false).await, "A", "1");
    assert_eq!((lab.connections(), balancer.failures("A").await), (2, 0));
}

#[tokio::test]
async fn an_answer_that_breaks_after_content_ends_with_an_error_event() {
    let (lab, balancer) = one().await;
    for (script, connections) in [
        (Script::stream(&["a"]).reset_after(4), 1),
        (Script::stream(&["a"]).cut_after(4), 1),
        (Script::stream(&["a"]), 2),
    ] {
        lab.next(script.clone());
        let reply = balancer.ask(true).await;
        assert_eq!((reply.status, reply.clean_end), (200, true), "{}", reply.text());
        assert!(reply.body.starts_with(&script.body_bytes()), "{}", reply.text());
        let ending = if connections == 2 { "message_stop" } else { "error" };
        assert_eq!(sse::names(&reply.body).last().map(String::as_str), Some(ending));
        assert_eq!(lab.connections(), connections, "a reset ends a stream, a cut all of them");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_before_content_is_replaced_by_the_next_providers() {
    for script in [
        Script::error(529, "overloaded_error", "Overloaded"),
        Script::stream(&["a"]).cut_after(0),
        Script::stream(&["a"]).reset_after(0),
        Script::close(),
        (0..17).fold(Script::stream(&["a"]), |script, _| script.interim(103, &[])),
        (0..101).fold(Script::stream(&["a"]), |script, number| script.header(&format!("x-{number}"), "y")),
        Script::stream(&["a"]).header("x-large", &"y".repeat(64 << 10)),
    ] {
        let (a, b, balancer) = two("").await;
        a.next(script);
        assert_answered(&balancer.ask(true).await, "B", "2");
        assert_eq!((a.requests().len(), b.requests().len()), (1, 1));
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_stream_along_and_not_the_connection() {
    let (lab, balancer) = one().await;
    let gate = Gate::new();
    lab.next(Script::stream(&["other"]).gate_before(3, gate.clone()));
    let mut other = balancer.asking(true).await;
    soon("the other's request", lab.received(1)).await;
    // Before the head, and inside the body.
    for (number, script) in [Script::stall(), Script::stream(&["a"]).stall_after(4)].into_iter().enumerate() {
        lab.next(script);
        let mut client = balancer.asking(true).await;
        soon("the request", lab.received(number + 2)).await;
        if number == 1 {
            assert_eq!(soon("the head", client.head()).await.unwrap().status, 200);
        }
        drop(client);
        soon("the reset", lab.departed(number + 1)).await;
    }
    gate.open();
    assert_eq!(sse::text(&answer(&mut other).await.body), "other");
    assert_answered(&balancer.ask(false).await, "A", "1");
    assert_eq!((lab.connections(), lab.open_connections()), (1, 1));
}

#[tokio::test]
async fn bodies_larger_than_any_window_pass_whole_in_both_directions() {
    let (lab, balancer) = one().await;
    lab.allow(Allowance { window: Some(999), ..Allowance::default() });
    let piece = Bytes::from(format!(": {}\n\n", "y".repeat(99_991)));
    for pieces in [1, 40] {
        let script = Script::stream(&["a"]).behind(vec![piece.clone(); pieces]);
        lab.next(script.clone());
        let large = request(true).replace("hi", &"x".repeat(if pieces == 1 { 999 } else { 1 << 20 }));
        let reply = balancer.post(&large).await;
        assert_answered(&reply, "A", "1");
        assert!(reply.body == script.body_bytes(), "{} bytes", reply.body.len());
        assert!(lab.requests().last().unwrap().body == large);
    }
    let script = Script::message(&"z".repeat(3 << 20)).rechunk(7_777);
    lab.next(script.clone());
    let reply = balancer.ask(false).await;
    assert!(reply.clean_end && reply.body == script.body_bytes(), "{} bytes", reply.body.len());
    assert_eq!(lab.connections(), 1);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_the_provider_and_no_other_client() {
    let (lab, balancer) = one().await;
    let gate = Gate::new();
    gate.open();
    let piece = event::comment(&"y".repeat(1 << 20));
    let mut frames = event::message("m", &["a"]);
    frames.splice(6..6, vec![piece; 24]);
    let script = Script::events(frames).gate_before(26, gate.clone());
    lab.next(script.clone());
    let mut idle = balancer.asking(true).await;
    assert_eq!(soon("the head", idle.head()).await.unwrap().status, 200);
    for _ in 0..50 {
        assert_answered(&balancer.ask(true).await, "A", "1");
    }
    let far = tokio::select! {
        biased;
        () = gate.reached(1) => true,
        () = std::future::ready(()) => false,
    };
    assert!(!far, "20 MiB went somewhere");
    assert_eq!(lab.connections(), 1);
    let (rest, clean) = soon("the rest", idle.rest()).await;
    assert!(clean && rest == script.body_bytes(), "{} bytes", rest.len());
}

#[tokio::test]
async fn it_is_spoken_through_a_tunnel_and_not_with_the_proxy() {
    let authority = Authority::new();
    let lab = Lab::start_tls(authority.server_http2()).await.unwrap();
    // The second proxy would choose HTTP/2 for its own connection.
    for tunnel in [Tunnel::start().await.unwrap(), Tunnel::start_tls(authority.server_http2()).await.unwrap()] {
        let config = offering(&[lab.url()], "").replace("http2:", &format!("proxy: \"{}\", http2:", tunnel.url()));
        let balancer = Balancer::start_trusting(&config, &authority).await;
        for stream in [false, true] {
            assert_answered(&balancer.ask(stream).await, "A", "1");
        }
        assert_eq!((tunnel.connections(), tunnel.targets().len()), (1, 1));
    }
    assert_eq!((lab.connections(), lab.requests().iter().filter(|one| one.is_http2()).count()), (2, 4));
}

#[tokio::test]
async fn other_methods_and_bodies_of_any_size_pass() {
    let (lab, balancer) = one().await;
    lab.always(Script::json(200, &serde_json::json!({"id": "batch"})));
    let reply = balancer.fetch("GET", "/v1/messages/batches?limit=2", &[], "").await;
    assert_eq!((reply.status, reply.json()["id"].as_str()), (200, Some("batch")));
    assert_eq!(lab.requests()[0].target, "/v1/messages/batches?limit=2");
    lab.next(Script::empty(204));
    assert_eq!(balancer.fetch("DELETE", "/v1/files/f", &[], "").await.status, 204);
    let mut client = balancer.send("HEAD", "/v1/files/f", &[("connection", "close")], "").await;
    assert_eq!(soon("a head", client.head()).await.unwrap().status, 200);
    // What is passed on as it arrives cannot be sent twice: it has a connection of its own.
    let file = "f".repeat(3 << 20);
    assert_eq!(balancer.fetch("POST", "/v1/files", &[("content-type", "text/plain")], &file).await.status, 200);
    let requests = lab.requests();
    assert_eq!(requests.iter().map(Received::is_http2).collect::<Vec<_>>(), [true, true, true, false]);
    assert!(requests[3].body == file);
}

#[tokio::test]
async fn an_answer_whose_length_is_reached_before_its_end_is_not_reset() {
    let (lab, balancer) = one().await;
    let gate = Gate::new();
    let script = Script::message("whole").gate_end(gate.clone());
    lab.next(script.clone());
    let mut client = balancer.send("GET", "/v1/files/f/content", &[], "").await;
    soon("all but the end", gate.reached(1)).await;
    for _ in 0..10 {
        assert_answered(&balancer.ask(false).await, "A", "1");
    }
    assert_eq!((lab.departures(), lab.connections()), (0, 1));
    gate.open();
    let reply = answer(&mut client).await;
    assert_eq!((reply.status, &reply.body), (200, &script.body_bytes()));
}

#[tokio::test]
async fn a_connection_is_closed_when_it_has_been_idle_and_not_before_its_last_stream_ends() {
    let authority = Authority::new();
    let lab = Lab::start_tls(authority.server_http2()).await.unwrap();
    let key = ProviderKey { name: "A".into(), account: None };
    let base = BaseUrl::parse(&lab.url()).unwrap();
    let mut provider = Provider::new(key, Kind::Anthropic, base, Auth::Passthrough, Egress::Direct);
    provider.offer_http2();
    let upstream = Upstream::new(trust(&authority));
    let limits = DialLimits { connect: Duration::from_secs(5), tls: Duration::from_secs(5) };
    for (number, drop_idle) in [true, false].into_iter().enumerate() {
        let gate = Gate::new();
        lab.next(Script::stream(&["a"]).gate_before(3, gate.clone()));
        let ask = async || {
            let host = HeaderValue::try_from(provider.base.authority()).unwrap();
            let headers = vec![("host", Cow::Owned(host))];
            let request = Request { method: &Method::GET, target: "/".into(), headers, payload: Payload::Empty };
            soon("the head", upstream.send(&provider, request, limits)).await.unwrap()
        };
        let mut response = ask().await;
        // What is idle goes, or what no provider uses any longer.
        if drop_idle {
            upstream.drop_idle();
            drop(ask().await);
        } else {
            upstream.retain(&[]);
        }
        assert_eq!((lab.open_connections(), lab.connections()), (1, number + 1), "it has a stream");
        gate.open();
        while let Some(frame) = soon("a frame", response.body.frame()).await {
            frame.unwrap();
        }
        assert!(response.body.is_end());
        if drop_idle {
            upstream.drop_idle();
        }
        soon("the end of the connection", lab.deserted()).await;
    }
}
