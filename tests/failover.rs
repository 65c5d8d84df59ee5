//! Before the commit point: whatever the first provider does, the next one answers, and the client sees one clean 200
//! with nothing of the first. What is the request's own fault goes to the client and to nobody else.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use claude_code_balancer::lab::{Hole, Lab, Script, Welcome, closed_port, event};
use serde_json::{Value, json};

use crate::support::Reply;
use crate::support::balancer::{Balancer, fleet, request};

/// How the first provider fails.
#[expect(clippy::large_enum_variant, reason = "one for each row")]
enum First {
    /// The same for streams and plain requests.
    Says(Script),
    /// One for streams, one for plain requests.
    Either(Box<[Script; 2]>),
    Welcomes(Welcome),
    Refuses,
    Swallows,
}

/// What is to be read of it in `/providers` afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    /// One failure, no cooldown yet.
    Failure,
    /// The whole entry cools.
    Cooling,
    /// The whole entry is limited.
    Limited,
    /// Nothing of the whole entry.
    Well,
}

use First::{Refuses, Says, Swallows, Welcomes};
use Health::{Cooling, Failure, Limited, Well};

fn either(stream: Script, plain: Script) -> First {
    First::Either(Box::new([stream, plain]))
}

const TIMES: &str =
    "timeouts: { connect: \"300ms\", first_byte_stream: \"300ms\", first_byte: \"300ms\", idle: \"300ms\" }";
/// Between pieces that must arrive one by one.
const TICK: Duration = Duration::from_millis(2);
const CANARY: &str = "canary-of-the-first";

fn error(status: u16, kind: &str) -> Script {
    Script::error(status, kind, CANARY).header("x-canary", CANARY)
}

fn events() -> Script {
    Script::stream(&[CANARY]).header("x-canary", CANARY)
}

fn message() -> Script {
    Script::message(CANARY).header("x-canary", CANARY)
}

fn in_seconds(seconds: u64) -> String {
    let at = SystemTime::now() + Duration::from_secs(seconds);
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().to_string()
}

fn json_error(kind: &str) -> Value {
    json!({"type": "error", "error": {"type": kind, "message": CANARY}})
}

/// A valid head with this many fields and a body that would do.
fn crowded(fields: usize) -> Script {
    (0..fields).fold(message(), |script, index| script.header(&format!("x-field-{index}"), "1"))
}

/// An `error` event behind a comment and pings.
fn late_error(kind: &str) -> Script {
    events().first_event_error(kind).behind(vec![event::comment("hello"), event::ping(), event::ping()])
}

fn rows() -> Vec<(&'static str, First, Health)> {
    let unified = error(429, "rate_limit_error")
        .header("anthropic-ratelimit-unified-status", "rejected")
        .header("anthropic-ratelimit-unified-reset", &in_seconds(3600));
    let window = error(429, "rate_limit_error")
        .header("anthropic-ratelimit-unified-status", "rejected")
        .header("anthropic-ratelimit-unified-5h-status", "rejected")
        .header("anthropic-ratelimit-unified-5h-reset", &in_seconds(600));
    let unknown = Script::error(404, "not_found_error", "model: claude-lab").header("x-canary", CANARY);
    let credit = Script::error(400, "invalid_request_error", "Your credit balance is too low to access the API");
    let both = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    let whole = events().first_event_error("api_error").body_bytes();
    vec![
        ("529", Says(error(529, "overloaded_error")), Well),
        ("500", Says(error(500, "api_error")), Failure),
        ("500 in chunks", Says(error(500, "api_error").chunked()), Failure),
        ("500 that closes", Says(error(500, "api_error").connection_close()), Failure),
        ("500 without a body", Says(Script::empty(500).header("x-canary", CANARY)), Failure),
        ("502 with HTML", Says(Script::html(502)), Failure),
        ("503", Says(error(503, "api_error")), Failure),
        ("504", Says(error(504, "timeout_error")), Failure),
        ("520", Says(Script::html(520)), Failure),
        ("530 without HTML", Says(Script::body(530, "text/plain", "error code: 1016")), Failure),
        ("599", Says(error(599, "api_error")), Failure),
        ("999", Says(error(999, "api_error")), Failure),
        ("408", Says(error(408, "timeout_error")), Failure),
        ("429 bare", Says(error(429, "rate_limit_error")), Well),
        ("429 with retry-after", Says(error(429, "rate_limit_error").header("retry-after", "30")), Limited),
        ("429 with a unified reset", Says(unified), Limited),
        ("429 with a window", Says(window), Limited),
        ("401", Says(error(401, "authentication_error")), Cooling),
        ("403", Says(error(403, "permission_error")), Cooling),
        ("403 with HTML", Says(Script::html(403)), Failure),
        ("402", Says(error(402, "billing_error")), Cooling),
        ("400 about credit", Says(credit), Cooling),
        ("404 naming the model", Says(unknown), Well),
        ("redirect", Says(Script::redirect(302, "http://127.0.0.1:9/canary")), Failure),
        ("permanent redirect", Says(Script::redirect(308, "/v1/messages")), Failure),
        ("304", Says(Script::empty(304)), Failure),
        ("HTML under 200", Says(Script::html(200)), Failure),
        ("HTML under 400", Says(Script::html(400)), Failure),
        (
            "HTML under another name, in small pieces",
            Says(Script::body(400, "text/plain", "\n<!doctype HTML><p>").rechunk(3).pause(TICK)),
            Failure,
        ),
        ("JSON error under 200", Says(Script::json(200, &json_error("overloaded_error"))), Well),
        ("JSON api_error under 200", Says(Script::json(200, &json_error("api_error"))), Failure),
        ("JSON rate limit under 200", Says(Script::json(200, &json_error("rate_limit_error"))), Well),
        ("error without a type under 200", Says(Script::json(200, &json!({"error": CANARY}))), Failure),
        (
            "error without a description under 200",
            either(
                Script::events(vec![event::event("error", &json!({"type": "error"}))]),
                Script::json(200, &json!({"type": "error", "message": CANARY})),
            ),
            Failure,
        ),
        ("empty body under 200", Says(Script::body(200, "application/json", "")), Failure),
        ("text under 200", Says(Script::body(200, "text/plain", "ok")), Failure),
        ("refused", Refuses, Failure),
        ("slow: black hole", Swallows, Failure),
        ("closed on arrival", Welcomes(Welcome::Close), Failure),
        ("reset on arrival", Welcomes(Welcome::Reset), Failure),
        ("slow: never reads", Welcomes(Welcome::Mute), Failure),
        ("closed before any byte", Says(Script::close()), Failure),
        ("reset before any byte", Says(Script::reset()), Failure),
        ("slow: no head in time", Says(Script::stall()), Failure),
        ("closed inside the head", Says(message().cut_at_wire_byte(30)), Failure),
        ("garbage head", Says(Script::raw("SSH-2.0-OpenSSH_9.9\r\n\r\n")), Failure),
        ("NUL in the head", Says(Script::raw("HTTP/1.1 200 OK\r\nx: \0\r\n\r\n")), Failure),
        ("HTTP/2 head", Says(Script::raw("HTTP/2 200\r\n\r\n")), Failure),
        ("CL and TE", Says(Script::raw(both)), Failure),
        ("two lengths", Says(message().header("content-length", "7")), Failure),
        (
            "gzip as transfer-encoding",
            Says(message().header("transfer-encoding", "gzip, chunked").without_header("content-length")),
            Failure,
        ),
        ("over 100 headers", Says(crowded(101)), Failure),
        ("a head over 64 KiB", Says(message().header("x-long", &"y".repeat(70_000))), Failure),
        ("seventeen interim answers", Says((0..17).fold(message(), |script, _| script.interim(103, &[]))), Failure),
        ("101", Says(Script::empty(101)), Failure),
        ("204", Says(Script::empty(204)), Failure),
        ("205", Says(Script::empty(205)), Failure),
        ("206", either(events().status(206), message().status(206)), Failure),
        ("body cut", either(events().cut_after(0), message().cut_at_byte(20)), Failure),
        ("body reset", either(events().reset_after(0), message().reset_at_byte(20)), Failure),
        (
            "body cut inside the first event",
            either(events().cut_at_byte(30), message().chunked().cut_at_byte(30)),
            Failure,
        ),
        (
            "close-delimited and cut",
            either(events().close_delimited().cut_at_byte(30), message().close_delimited().cut_at_byte(30)),
            Failure,
        ),
        (
            "chunk size that is none",
            Says(Script::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n")),
            Failure,
        ),
        (
            "invalid JSON",
            either(Script::events(vec![]), Script::body(200, "application/json", r#"{"type":"message",}"#)),
            Failure,
        ),
        ("JSON that is no object", either(Script::events(vec![]), Script::json(200, &json!([1]))), Failure),
        ("the other kind of answer", either(message(), events()), Failure),
        ("a stream of pings only", either(Script::events(vec![event::ping(), event::comment("x")]), events()), Failure),
        ("slow: body stalls", either(message().stall_at_byte(5), message().stall_at_byte(5)), Failure),
        ("error body cut", Says(error(429, "rate_limit_error").header("retry-after", "30").cut_at_byte(5)), Limited),
        ("slow: error body stalls", Says(error(529, "overloaded_error").stall_at_byte(5)), Well),
        ("400 with its body cut", Says(error(400, "invalid_request_error").cut_at_byte(5)), Failure),
        (
            "first event overloaded",
            either(events().first_event_error("overloaded_error"), error(529, "overloaded_error")),
            Well,
        ),
        ("first event api_error", either(events().first_event_error("api_error"), error(500, "api_error")), Failure),
        (
            "first event rate limit",
            either(events().first_event_error("rate_limit_error"), error(429, "rate_limit_error")),
            Well,
        ),
        (
            "first event authentication",
            either(events().first_event_error("authentication_error"), error(401, "x")),
            Cooling,
        ),
        ("first event of an unknown type", either(events().first_event_error("new_error"), error(500, "x")), Failure),
        (
            "first event error in tiny frames",
            either(late_error("overloaded_error").rechunk(3).split_writes(1), error(529, "x")),
            Well,
        ),
        (
            "first event error under another name",
            either(
                late_error("overloaded_error").with_header("content-type", "text/plain").rechunk(3).pause(TICK),
                error(529, "x"),
            ),
            Well,
        ),
        ("first event error behind pings", either(late_error("api_error"), error(500, "x")), Failure),
        (
            "first event error without a name",
            either(
                Script::events(vec![format!("data: {}\r\n\r\n", json_error("overloaded_error")).into()]),
                error(529, "x"),
            ),
            Well,
        ),
        (
            "slow: first event error then silence",
            either(events().first_event_error("api_error").stall_at_byte(whole.len()), error(500, "x")),
            Failure,
        ),
    ]
}

/// The second provider's answer, to the byte.
fn second(stream: bool) -> Script {
    if stream { Script::stream(&["from", " the second"]) } else { Script::message("from the second") }
}

fn is_clean(reply: &Reply, wanted: &Script, name: &str) {
    assert_eq!((reply.status, reply.clean_end), (200, true), "{name}: {}", reply.text());
    assert_eq!(reply.header("x-balancer-attempts"), Some("2"), "{name}");
    assert_eq!(reply.header("x-provider-used"), Some("B"), "{name}");
    assert_eq!(reply.header("x-canary"), None, "{name}");
    assert_eq!(reply.body, wanted.body_bytes(), "{name}: {}", reply.text());
}

async fn failed_over(name: &str, first: &First, health: Health, stream: bool) {
    let name = format!("{name}, stream: {stream}");
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    b.always(second(stream));
    let mut hole = None;
    let place = match first {
        Says(script) => {
            a.always(script.clone());
            a.url()
        }
        First::Either(scripts) => {
            a.always(scripts[usize::from(!stream)].clone());
            a.url()
        }
        Welcomes(welcome) => {
            a.welcome(*welcome);
            a.url()
        }
        Refuses => format!("http://{}", closed_port().unwrap()),
        Swallows => format!("http://{}", hole.insert(Hole::dig().await.unwrap()).address()),
    };
    let times = if name.starts_with("slow") { TIMES } else { "" };
    let balancer = Balancer::start(&fleet(&[place, b.url()], times)).await;
    is_clean(&balancer.ask(stream).await, &second(stream), &name);
    assert_eq!(b.requests()[0].body, request(stream).as_bytes(), "{name}");
    assert!(a.requests().len() <= 1, "{name}");
    let told = balancer.provider("A").await;
    let found = match (&told["failure_count"], &told["cooldown_until"], &told["rate_limited_until"]) {
        (Value::Number(one), Value::Null, Value::Null) if one.as_u64() == Some(1) => Failure,
        (Value::Number(none), Value::Number(_), Value::Null) if none.as_u64() == Some(0) => Cooling,
        (Value::Number(none), Value::Null, Value::Number(_)) if none.as_u64() == Some(0) => Limited,
        (Value::Number(none), Value::Null, Value::Null) if none.as_u64() == Some(0) => Well,
        _ => panic!("{name}: {told}"),
    };
    assert_eq!(found, health, "{name}: {told}");
    assert_eq!(balancer.failures("B").await, 0, "{name}");
    assert!(b.complaints().is_empty(), "{name}: {:?}", b.complaints());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_first_provider_does_the_next_one_answers_cleanly() {
    let mut faults = Vec::new();
    for stream in [true, false] {
        let (mut running, mut names) = (tokio::task::JoinSet::new(), HashMap::new());
        for (name, first, health) in rows() {
            let row = running.spawn(async move { failed_over(name, &first, health, stream).await });
            names.insert(row.id(), name);
        }
        while let Some(row) = running.join_next_with_id().await {
            if let Err(error) = row {
                faults.push(format!("{}, stream: {stream}", names[&error.id()]));
            }
        }
    }
    assert!(faults.is_empty(), "these rows failed: {faults:#?}");
}
