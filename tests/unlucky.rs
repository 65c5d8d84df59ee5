//! More than anybody sends, and the numbers of the specification: bodies that would break a parser, bodies that
//! together would fill the memory, credentials that chance might bring to the wrong place.

use std::collections::HashMap;
use std::time::Duration;

use claude_code_balancer::lab::{Gate, Lab, Script};
use claude_code_balancer::metrics::Metrics;
use claude_code_balancer::oauth::Storage;
use claude_code_balancer::proxy::intake::{BODY_LIMIT, BUFFER_LIMIT};
use claude_code_balancer::server::Limits;
use claude_code_balancer::{config, gate};

use crate::support::balancer::{Balancer, JSON, fleet, request_for};
use crate::support::endpoints::World;
use crate::support::running::{Running, ask_for, assert_is_our_error, providers};
use crate::support::{overhear, soon};

const MIB: usize = 1 << 20;

/// T36
#[tokio::test]
async fn bodies_that_would_break_a_parser_pass_or_are_refused_and_nothing_grows() {
    let lab = Lab::start().await.unwrap();
    let running = Running::start(&providers(&[("A", &lab)])).await;
    let body = |more: &str| format!(r#"{{"messages":[],{more},"model":"m"}}"#);
    let deep = |open: &str, close: &str| body(&format!("\"x\":{}{}", open.repeat(100_000), close.repeat(100_000)));
    let keys: String = (0..1_000_000).map(|number| format!("\"{number}\":0,")).collect();
    for (what, body) in [
        ("100,000 lists in each other", deep("[", "]")),
        ("100,000 objects in each other", deep("{\"model\":", "}").replace(":}", ":0}")),
        ("a million keys", body(keys.trim_end_matches(','))),
        ("a text of 30 MiB", body(&format!("\"x\":\"{}\"", "y".repeat(30 * MIB)))),
        ("8 MiB of escapes", body(&format!("\"x\":\"{}\"", "\\\"".repeat(4 * MIB)))),
        ("a model in every depth", body(r#""x":{"model":"a","stream":true,"y":[{"model":1}]}"#)),
        ("half a character", body(r#""x":"\ud800""#)),
        ("a large number", body(&format!("\"x\":{}", "9".repeat(100_000)))),
    ] {
        // A debug build on a busy machine takes its time.
        let mut client = running.connect().await;
        let host = running.host();
        client.send("POST", "/v1/messages", &[("host", host.as_str()), JSON], &body).await.unwrap();
        let reply = tokio::time::timeout(Duration::from_secs(60), client.read_to_end()).await;
        let reply = reply.unwrap_or_else(|_| panic!("{what}: no answer")).unwrap();
        assert_eq!(reply.status, 200, "{what}: {}", reply.text());
        assert!(lab.requests().pop().unwrap().body == body, "{what}: it is not the same any more");
    }
    let arrived = lab.requests().len();
    for (what, body) in [
        ("two models", body(r#""model":"b""#)),
        ("two models, one of them escaped", body(r#""\u006d\u006f\u0064\u0065\u006c":"m""#)),
        ("two streams", body(r#""stream":false,"stream":true"#)),
        ("two pins", body(r#""provider":"A","provider":"A""#)),
        ("no number", body(r#""x":NaN"#)),
        ("a comment", body(r#"/* */"x":1"#)),
        ("another encoding", "\u{feff}{\"model\":\"m\"}".into()),
        ("a model that is half a character", r#"{"model":"\ud800"}"#.into()),
        ("a model with a line end in 257 bytes", format!("{{\"model\":\"\\r\\n{}\"}}", "m".repeat(255))),
        ("depth without an end", format!("{{\"model\":\"m\",\"x\":{}", "[".repeat(100_000))),
    ] {
        assert_is_our_error(&running.message(&body).await, 400, "invalid_request_error", what);
    }
    assert_eq!(lab.requests().len(), arrived);
}

/// T34
#[cfg(target_os = "linux")]
#[tokio::test]
async fn twenty_of_the_largest_bodies_at_once_stay_within_400_mib() {
    use crate::support::Client;
    use crate::support::binary::{Binary, ask};
    let lab = Lab::start().await.unwrap();
    lab.remember(false);
    let gate = Gate::new();
    lab.always(Script::message("hi").hold_head(gate.clone()));
    let binary = Binary::new();
    let file = binary.file("config.yaml", &fleet(&[lab.url()], ""));
    let (service, address) = binary.serve(&["--config", file.to_str().unwrap()]).await;
    let frame = r#"{"model":"m","x":""}"#;
    let body = bytes::Bytes::from(frame.replace("\"\"", &format!("\"{}\"", "y".repeat(32 * MIB - frame.len()))));
    assert_eq!(body.len() as u64, BODY_LIMIT);
    let mut tasks = tokio::task::JoinSet::new();
    // There is room for seven. A build that is not optimised takes a second and a half for each.
    let count = if cfg!(debug_assertions) { 10 } else { 20 };
    for _ in 0..count {
        let body = body.clone();
        tasks.spawn(async move {
            let mut client = Client::connect(address).await.unwrap();
            let host = address.to_string();
            let length = body.len().to_string();
            let headers = [("host", host.as_str()), ("content-length", &length)];
            client.send("POST", "/v1/messages", &headers, "").await.unwrap();
            // Who is refused meanwhile is not read any further.
            let _ = client.send_raw(&body).await;
            client.read_to_end().await.map_or(503, |reply| reply.status)
        });
    }
    // All those for whom there is no room are told so; the others are with the provider, which has not answered yet.
    let mut refused = 0;
    while refused < count - 7 {
        let status = tokio::time::timeout(Duration::from_secs(60), tasks.join_next()).await.unwrap().unwrap().unwrap();
        assert_eq!(status, 503);
        refused += 1;
    }
    gate.open();
    while let Some(status) = tasks.join_next().await {
        assert!(matches!(status.unwrap(), 200 | 503));
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak <= 400 * 1024, "{} MiB", peak / 1024);
    assert_eq!(ask(address, "POST", "/v1/messages", &[], &ask_for("m")).await.status, 200);
}

/// T14
#[tokio::test]
async fn a_credential_reaches_no_other_place_than_the_one_it_stands_beside() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut dice = move |sides: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % sides
    };
    for round in 0..10 {
        let mut labs = Vec::new();
        for _ in 0..4 {
            labs.push(Lab::start().await.unwrap());
        }
        let count = 3 + dice(6);
        let (mut yaml, mut home) = (String::from("providers:\n"), HashMap::new());
        for number in 0..count {
            let place = usize::try_from(dice(4)).unwrap();
            let kind = ["api_key", "auth_token"][usize::from(dice(2) == 0)];
            // Several entries may share a name.
            let name = format!("P{}", dice(4));
            let account = format!("a{number}@example.com");
            yaml += &format!(
                "  - {{ name: {name}, base_url: \"{}\", auth_type: {kind}, auth_value: key-{number}-x, account_email: {account} }}\n",
                labs[place].url()
            );
            home.insert(format!("key-{number}-x"), place);
        }
        let strategy = ["priority", "round_robin", "random"][usize::try_from(dice(3)).unwrap()];
        yaml += &format!("settings:\n  log_file_path: \"\"\n  selection_strategy: {strategy}\n  failure_cooldown: 0\n");
        let balancer = Balancer::start(&yaml).await;
        for _ in 0..20 {
            for lab in &labs {
                match dice(5) {
                    0 => lab.next(Script::error(500, "api_error", "x")),
                    1 => lab.next(Script::error(529, "overloaded_error", "x")),
                    2 => lab.next(Script::close()),
                    _ => {}
                }
            }
            let stream = dice(2) == 0;
            let own = [JSON, ("authorization", "Bearer canary"), ("x-api-key", "canary")];
            balancer.fetch("POST", "/v1/messages", &own, request_for(&format!("m{}", dice(3)), stream)).await;
        }
        let mut seen = 0;
        for (place, lab) in labs.iter().enumerate() {
            for received in lab.requests() {
                let bearer = received.headers_named("authorization");
                let sent: Vec<_> = [bearer, received.headers_named("x-api-key")].concat();
                assert_eq!(sent.len(), 1, "round {round}: {sent:?}");
                let key = sent[0].strip_prefix("Bearer ").unwrap_or(sent[0]);
                assert_eq!(home.get(key), Some(&place), "round {round}: {key} is at a strange place\n{yaml}");
                seen += 1;
            }
        }
        assert!(seen >= 20, "round {round}: {seen}");
    }
}

/// Spec §12, as far as it is numbers that nobody waits for in a test.
#[test]
fn the_limits_are_those_of_the_specification() {
    let limits = Limits::default();
    let seconds = |time: Duration| time.as_secs_f64();
    assert_eq!(
        [limits.head_time, limits.body_time, limits.idle_time, limits.write_time, limits.drain_time].map(seconds),
        [10.0, 10.0, 60.0, 60.0, 30.0]
    );
    assert_eq!(limits.connections, 16_384);
    assert_eq!((BODY_LIMIT, BUFFER_LIMIT), (32 << 20, 256 << 20));
    assert_eq!((gate::head::HEAD_LIMIT, gate::head::FIELD_LIMIT), (64 * 1024, 100));
    assert_eq!(config::FILE_LIMIT, 1 << 20);
}

/// T39, spec §3: a file may have one mebibyte, and not a byte more.
#[test]
fn a_larger_file_is_no_configuration() {
    let plain = "providers: [{ name: A, auth_value: a-key }]\n#";
    let read = |size: usize| {
        let text = format!("{plain}{}", "x".repeat(size - plain.len()));
        config::parse(text.as_bytes(), "config.yaml", &config::Surroundings::pure(&|_| None))
    };
    assert!(read(MIB).is_ok());
    let report = read(MIB + 1).map(drop).unwrap_err().to_string();
    assert!(report.contains("at most 1024"), "{report}");
}

/// Spec §12: 32 idle connections for each peer, for 20 s.
#[tokio::test]
async fn so_many_idle_connections_are_kept_and_so_long() {
    let lab = Lab::start().await.unwrap();
    let balancer = Balancer::before(&[&lab], "").await;
    let gate = Gate::new();
    lab.always(Script::message("hi").hold_head(gate.clone()));
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(balancer.asking(false).await);
    }
    soon("all of them", lab.received(40)).await;
    gate.open();
    for client in &mut clients {
        assert_eq!(soon("an answer", client.read_to_end()).await.unwrap().status, 200);
    }
    let open = async |count: usize| {
        while lab.open_connections() != count {
            tokio::task::yield_now().await;
        }
    };
    soon("eight of forty are closed", open(32)).await;
    let later = async |time: Duration| {
        tokio::time::pause();
        tokio::time::advance(time).await;
        balancer.app.proxy.upstream.expire_idle();
        tokio::time::resume();
    };
    later(Duration::from_secs(19)).await;
    assert_eq!(balancer.ask(false).await.status, 200);
    assert_eq!((lab.connections(), lab.open_connections()), (40, 32), "one of them was used");
    later(Duration::from_secs(2)).await;
    soon("the other 31 are closed", open(1)).await;
}

/// Spec §11: streams under way, refreshes, and the words of a line; no label has an e-mail.
#[tokio::test]
async fn what_is_under_way_is_counted_and_a_finished_request_is_one_whole_line() {
    let (buffer, writer, guard) = overhear();
    let world = World::with("  unhealthy_threshold: 1", Storage::memory()).await;
    world.sign_in("main").await;
    let value = async |name: &str| {
        let text = world.running.get("/metrics").await.text();
        assert!(!text.contains('@') && !text.contains("Official"), "{text}");
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .unwrap_or_else(|| panic!("{name} in\n{text}"))
    };
    let gate = Gate::new();
    world.provider.next(Script::stream(&["x"]).gate_end(gate.clone()));
    let mut client = world.running.connect().await;
    let (host, body) = (world.running.host(), request_for("claude-main", true));
    client.send("POST", "/v1/messages?secret=canary", &[("host", host.as_str()), JSON], body).await.unwrap();
    soon("the head", client.head()).await.unwrap();
    assert_eq!(value("balancer_open_streams").await, 1.0);
    gate.open();
    assert!(soon("the rest", client.rest()).await.1);
    let over = async { while value("balancer_open_streams").await != 0.0 {} };
    soon("the end of the stream", over).await;
    assert_eq!(world.refresh("main@example.com").await.status, 200);
    assert_eq!(value("balancer_refreshes_total{kind=\"renewed\"}").await, 1.0);
    assert_eq!(value("balancer_dropped_log_lines_total").await, 0.0);
    drop(guard);
    writer.flush();
    let log = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
    let line = log.lines().find(|line| line.contains("ending=complete")).unwrap_or_else(|| panic!("{log}"));
    for word in [
        "INFO  POST /v1/messages id=req_",
        "model=claude-main",
        "route=claude-main",
        "provider=Official",
        "account=main@example.com",
        "attempts=1",
        "status=200",
        "ending=complete",
        "bytes=",
        "first_byte_ms=",
        "duration_ms=",
    ] {
        assert!(line.contains(word), "{word} in {line}");
    }
    // DEBUG shows the verdict of each attempt, and the flow of a refresh.
    assert!(log.contains("DEBUG attempt") && log.contains("verdict=Commit") && log.contains("DEBUG renewing"), "{log}");
    assert!(!log.contains("canary"), "{log}");
}

/// Lines that found the queue full are not forgotten: the counter is the one that `/metrics` shows.
#[test]
fn dropped_lines_are_counted_where_everything_is() {
    let metrics = Metrics::default();
    metrics.dropped_log_lines.inc_by(3);
    assert!(metrics.render().contains("balancer_dropped_log_lines_total 3\n"));
}
