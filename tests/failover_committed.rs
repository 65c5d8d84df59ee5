//! After the commit point: what was sent stays as it was, nothing is replayed, and a stream that breaks says so by
//! exactly one `event: error` and a clean end.

use bytes::Bytes;
use claude_code_balancer::lab::{Gate, Lab, Script, event};
use serde_json::json;

use crate::support::balancer::{Balancer, request};
use crate::support::{Reply, soon, sse};

const IDLE: &str = "timeouts: { idle: \"200ms\" }";

fn stream() -> Script {
    Script::stream(&["one", "two", "three"])
}

fn crlf(text: &[u8]) -> Bytes {
    String::from_utf8_lossy(text).replace('\n', "\r\n").into()
}

/// The answer of a balancer in front of a provider with this script and one that is well.
async fn answer(script: &Script, settings: &str, streaming: bool) -> (Reply, Balancer, [Lab; 2]) {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    a.always(script.clone());
    let balancer = Balancer::before(&[&a, &b], settings).await;
    let reply = balancer.ask(streaming).await;
    (reply, balancer, [a, b])
}

/// What follows the provider's own bytes must be our error event, readable by the strictest reader, and nothing else.
fn ends_in_our_error(reply: &Reply, sent: &[u8], kind: &str, name: &str) {
    assert_eq!((reply.status, reply.clean_end), (200, true), "{name}");
    assert!(reply.body.starts_with(sent), "{name}: {}", reply.text());
    let events = sse::events(&reply.body);
    let last = events.last().unwrap();
    assert_eq!(last.event, "error", "{name}: {}", reply.text());
    let data = last.json();
    assert_eq!((&data["type"], &data["error"]["type"]), (&json!("error"), &json!(kind)), "{name}");
    assert!(data["error"]["message"].as_str().unwrap().starts_with("A: "), "{name}: {data}");
    assert!(data["request_id"].as_str().unwrap().starts_with("req_"), "{name}: {data}");
    assert_eq!(events.iter().filter(|event| event.event == "error").count(), 1, "{name}");
}

#[tokio::test]
async fn a_committed_stream_that_breaks_ends_with_one_error_event_and_is_not_replayed() {
    let rows = [
        ("FIN after a delta", stream().cut_after(4), "", "api_error"),
        ("FIN before message_stop", stream().cut_after(8), "", "api_error"),
        ("FIN inside an event", stream().cut_at_byte(700), "", "api_error"),
        (
            "FIN after an event's last line",
            stream().cut_at_byte(stream().end_after(4).body_bytes().len() - 1),
            "",
            "api_error",
        ),
        ("RST", stream().reset_after(4), "", "api_error"),
        ("RST inside an event", stream().reset_at_byte(700), "", "api_error"),
        ("clean end without message_stop", stream().end_after(8), "", "api_error"),
        ("clean end inside an event", Script::events(vec![stream().cut_at_byte(700).body_bytes()]), "", "api_error"),
        ("close-delimited", stream().close_delimited().end_after(5), "", "api_error"),
        ("with a length, cut", stream().with_length().cut_at_byte(700), "", "api_error"),
        (
            "broken chunk",
            stream()
                .end_after(4)
                .without_header("transfer-encoding")
                .header("transfer-encoding", "chunked")
                .surplus("x"),
            "",
            "api_error",
        ),
        ("silence", stream().stall_after(5), IDLE, "timeout_error"),
        ("silence inside an event", stream().stall_at_byte(700), IDLE, "timeout_error"),
        ("CRLF", Script::events(vec![crlf(&stream().end_after(4).body_bytes())]), "", "api_error"),
    ];
    for (name, script, settings, kind) in rows {
        let (reply, balancer, [a, b]) = answer(&script, settings, true).await;
        let sent = script.body_bytes();
        ends_in_our_error(&reply, &sent, kind, name);
        assert_eq!(reply.header("x-balancer-attempts"), Some("1"), "{name}");
        assert_eq!((a.requests().len(), b.requests().len()), (1, 0), "{name}");
        assert_eq!(balancer.failures("A").await, 1, "{name}");
    }
}

#[tokio::test]
async fn nothing_is_added_where_nothing_is_missing() {
    let own_error = stream().error_after(4, "overloaded_error");
    let late = stream().behind(vec![event::comment("x")]);
    let mut after_stop = event::message("m", &["x"]);
    after_stop.push(": good bye\n\n".into());
    let rows = [
        ("complete", stream(), 0),
        ("complete, then FIN without a terminator", stream().cut_after(9), 0),
        ("complete, then RST", stream().reset_after(9), 0),
        ("complete, close-delimited", stream().close_delimited(), 0),
        ("complete, with a length", stream().with_length(), 0),
        ("complete, then a comment", Script::events(after_stop.clone()), 0),
        (
            "complete, then a comment that is cut",
            Script::events(after_stop).cut_at_byte(stream().body_bytes().len() + 3),
            0,
        ),
        ("behind a comment", late, 0),
        ("complete, then silence", stream().stall_after(9), 0),
        ("an error of the provider's own", own_error.clone(), 1),
        ("an error of the provider's own, then FIN", own_error.clone().cut_after(5), 1),
        ("an error of the provider's own, then silence", own_error.stall_after(5), 1),
    ];
    for (name, script, failures) in rows {
        let (reply, balancer, [_a, b]) = answer(&script, IDLE, true).await;
        assert_eq!((reply.status, reply.clean_end), (200, true), "{name}");
        assert_eq!(reply.body, script.body_bytes(), "{name}: {}", reply.text());
        assert_eq!((b.requests().len(), balancer.failures("A").await), (0, failures), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_cut_at_any_byte_is_answered_by_another_or_says_that_it_was_cut() {
    let small = Script::stream(&["é"]).one_write();
    let second = Script::stream(&["from the second"]);
    let first_event = event::message_start("claude-lab").len();
    let whole = small.body_bytes();
    // Where only the end of the last event is missing, it gets that end.
    let stop = whole.len() - 2;
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    b.always(second.clone());
    let balancer = Balancer::before(&[&a, &b], "failure_cooldown: 0").await;
    for framing in ["chunked", "close-delimited", "tiny frames"] {
        // The framing that the API uses at every byte, the others at every seventh, counted from an end that matters.
        for cut in (0..=whole.len()).rev().step_by(if framing == "chunked" { 1 } else { 7 }) {
            let script = small.clone().cut_at_byte(cut);
            a.next(match framing {
                "chunked" => script,
                "close-delimited" => script.close_delimited(),
                _ => small.clone().rechunk(7).cut_at_byte(cut),
            });
            let name = format!("{framing}, cut at {cut} of {}", whole.len());
            let reply = balancer.ask(true).await;
            assert_eq!((reply.status, reply.clean_end), (200, true), "{name}");
            if cut < first_event {
                assert_eq!(reply.body, second.body_bytes(), "{name}");
            } else if cut > stop {
                assert_eq!(reply.body, whole, "{name}");
            } else {
                ends_in_our_error(&reply, &whole[..cut], "api_error", &name);
                // Every event before the error is one that the provider meant; half ones became pings, which clients ignore.
                let (meant, got) = (sse::events(&whole), sse::events(&reply.body));
                for event in &got[..got.len() - 1] {
                    assert!(meant.contains(event) || event.event == "ping", "{name}: {event:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_plain_answer_cut_at_any_byte_is_answered_by_another() {
    let small = Script::message("é");
    let whole = small.body_bytes();
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    b.always(Script::message("from the second"));
    let balancer = Balancer::before(&[&a, &b], "failure_cooldown: 0").await;
    for (framing, script) in
        [("length", small.clone()), ("chunked", small.clone().chunked()), ("close", small.close_delimited())]
    {
        for cut in 0..whole.len() {
            a.next(script.clone().cut_at_byte(cut));
            let reply = balancer.ask(false).await;
            assert_eq!(reply.json()["content"][0]["text"], "from the second", "{framing}, {cut}");
        }
    }
}

#[tokio::test]
async fn a_plain_answer_too_large_to_be_held_is_aborted_without_its_end_when_it_breaks() {
    let large = format!(r#"{{"type":"message","x":"{}"}}"#, "y".repeat(33 * 1024 * 1024));
    let script = Script::body(200, "application/json", large).cut_at_byte(33 * 1024 * 1024);
    for script in [script.clone(), script.chunked()] {
        let (reply, balancer, [_a, b]) = answer(&script, "", false).await;
        assert_eq!((reply.status, reply.clean_end), (200, false));
        assert_eq!(reply.body, script.body_bytes());
        assert_eq!((b.requests().len(), balancer.failures("A").await), (0, 1));
    }
}

#[tokio::test]
async fn an_encoded_stream_that_breaks_is_aborted_without_its_end() {
    let script = stream().header("content-encoding", "gzip").cut_after(4);
    let (reply, balancer, [_a, b]) = answer(&script, "", true).await;
    assert_eq!((reply.status, reply.clean_end), (200, false));
    assert_eq!(reply.body, script.body_bytes());
    assert_eq!((b.requests().len(), balancer.failures("A").await), (0, 1));
}

#[tokio::test]
async fn a_stream_is_released_after_five_seconds_without_an_event() {
    let gate = Gate::new();
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    a.always(stream().behind(vec![event::ping()]).gate_before(1, gate.clone()));
    let balancer = Balancer::before(&[&a, &b], "").await;
    let mut client = balancer.send("POST", "/v1/messages", &[], request(true)).await;
    let head = soon("the head, although no event has come", client.head()).await.unwrap();
    assert_eq!((head.status, head.header("x-provider-used")), (200, Some("A")));
    assert_eq!(client.frame().await.unwrap(), event::ping());
    gate.open();
    let (rest, clean) = soon("the rest", client.rest()).await;
    assert_eq!((rest, clean, b.requests().len()), (stream().body_bytes(), true, 0));
}

/// A stream with every kind of line, short enough to be cut everywhere.
const DENSE: &str = concat!(
    "event: message_start\ndata: {\"type\":\"message_start\"}\n\n",
    ": note\n\n",
    "id: 1\nevent: content_block_delta\ndata: {\"a\":\ndata:  \"\u{e9}\"}\nretry: 5\n\n",
    "event: ping\ndata: {}\n\n",
    "data: {\"type\":\"x\"}\n\n",
    "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
);

#[tokio::test]
async fn whatever_its_line_ends_a_cut_stream_shows_no_event_that_the_provider_did_not_mean() {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let second = Script::stream(&["from the second"]);
    b.always(second.clone());
    let balancer = Balancer::before(&[&a, &b], "failure_cooldown: 0").await;
    let dresses =
        [DENSE.to_owned(), DENSE.replace('\n', "\r\n"), DENSE.replace('\n', "\r"), format!("\u{feff}{DENSE}")];
    for dress in dresses {
        let meant = sse::events(dress.as_bytes());
        assert_eq!(meant.len(), 5);
        for cut in 0..dress.len() {
            let sent = &dress.as_bytes()[..cut];
            let cut_off = Script::events(vec![dress.clone().into()]).cut_at_byte(cut);
            let ended = Script::events(if cut == 0 { vec![] } else { vec![Bytes::copy_from_slice(sent)] });
            a.next(if cut % 2 == 0 { cut_off } else { ended });
            let name = format!("{:?}", dress[..dress.floor_char_boundary(cut)].to_owned());
            let reply = balancer.ask(true).await;
            if reply.header("x-provider-used") == Some("B") {
                assert!(sse::events(sent).is_empty(), "{name}: an event was complete");
                assert_eq!(reply.body, second.body_bytes(), "{name}");
            } else if reply.body == sent {
                assert_eq!(sse::names(sent).last().map(String::as_str), Some("message_stop"), "{name}");
                assert!(reply.clean_end, "{name}");
            } else if sse::events(&reply.body) == meant {
                // Only the end of the last event was missing, and it got it.
                assert!(reply.clean_end && dress.len() - cut <= 3, "{name}");
            } else {
                ends_in_our_error(&reply, sent, "api_error", &name);
                let got = sse::events(&reply.body);
                for event in &got[..got.len() - 1] {
                    assert!(meant.contains(event) || event.event == "ping", "{name}: {event:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_is_told_of_a_cut_too() {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let balancer = Balancer::before(&[&a, &b], "").await;
    for (script, last) in [(stream(), "message_stop"), (stream().cut_after(4), "error")] {
        a.next(script.clone());
        let body = request(true);
        let mut client = balancer.connect().await;
        let head = format!(
            "POST /v1/messages HTTP/1.0\r\nhost: {}\r\ncontent-length: {}\r\n\r\n{body}",
            balancer.address,
            body.len()
        );
        client.send_raw(head.as_bytes()).await.unwrap();
        let head = soon("the head", client.head()).await.unwrap();
        assert_eq!((head.status, head.header("transfer-encoding")), (200, None));
        let (body, clean) = soon("the body", client.rest()).await;
        assert!(clean && body.starts_with(&script.body_bytes()));
        assert_eq!(sse::names(&body).last().map(String::as_str), Some(last));
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_not_taken_for_a_silent_provider() {
    let (a, b) = (Lab::start().await.unwrap(), Lab::start().await.unwrap());
    let balancer = Balancer::before(&[&a, &b], "timeouts: { idle: \"150ms\" }").await;
    let script = Script::stream(&vec!["l".repeat(1 << 20); 20]);
    a.next(script.clone());
    let mut client = balancer.asking(true).await;
    soon("the head", client.head()).await.unwrap();
    // Longer than the provider may be silent.
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    let (body, clean) = soon("the body", client.rest()).await;
    assert!(clean && body == script.body_bytes());
    assert_eq!(balancer.failures("A").await, 0);
}

#[tokio::test]
async fn a_stream_that_ends_in_the_providers_own_error_is_counted_as_one() {
    let script = stream().error_after(4, "overloaded_error");
    let (reply, balancer, [a, b]) = answer(&script, "", true).await;
    assert_eq!((reply.status, &reply.body, reply.clean_end), (200, &script.body_bytes(), true));
    assert_eq!((a.requests().len(), b.requests().len()), (1, 0));
    balancer.inflight(0).await;
    let metrics = balancer.fetch("GET", "/metrics", &[], "").await.text();
    assert!(metrics.contains("balancer_requests_total{kind=\"upstream_error\"} 1\n"), "{metrics}");
    assert!(metrics.contains("balancer_requests_total{kind=\"ok\"} 0\n"), "{metrics}");
}
