//! What passes through is the same bytes on the other side: bodies, streams, heads, in both directions, and an event
//! is there before the next one is made.

use bytes::Bytes;
use claude_code_balancer::lab::{Gate, Lab, Script, event};
use serde_json::json;

use crate::support::balancer::{Balancer, JSON, request};
use crate::support::{Reply, soon};

/// 5 MiB of JSON as no library would write it.
fn odd_body(model: &str) -> String {
    let mut body = String::from("\r\n\t { \"max_tokens\" : 1.0e3,\"\\u006dessages\":[ ");
    let mut number = 0;
    while body.len() < 5 << 20 {
        body.push_str(&format!(
            "{{\"role\":\"user\" ,\n \"content\":\"\\u00e9\\/\u{e9}\\\"model\\\":\\\"no\\\" \u{1f980}\\ud83e\\udd80 {number}\",\"model\":\"inner\",\"n\":[-0.0,1E+2,{number}.50,12345678901234567890123]}},\t"
        ));
        number += 1;
    }
    body.push_str("null\n], \"stream\"  : false , \"mod\\u0065l\"\n:\n");
    body.push_str(model);
    body.push_str(", \"metadata\":{\"provider\":\"inner\"} , \"provider\" :\t\"A\"  ,\"z\":{} } \r\n ");
    body
}

async fn one(settings: &str) -> (Lab, Balancer) {
    let lab = Lab::start().await.unwrap();
    let balancer = Balancer::before(&[&lab], settings).await;
    (lab, balancer)
}

/// The same bytes; megabytes are not printed.
fn same(found: &[u8], wanted: &[u8], name: &str) {
    let differs = found.iter().zip(wanted).position(|(a, b)| a != b);
    assert!(found == wanted, "{name}: {} bytes for {}, different at {differs:?}", found.len(), wanted.len());
}

#[tokio::test]
async fn a_large_odd_body_arrives_byte_for_byte_but_for_the_pin_and_a_replaced_model() {
    let a = Lab::start().await.unwrap();
    let client = odd_body("\"claude\\u002dx\"");
    let cut = "\"provider\" :\t\"A\"  ,";
    assert_eq!(client.matches(cut).count(), 1);
    for (model, wanted) in [("passthrough", "\"claude\\u002dx\""), ("other \\\"é", "\"other \\\"é\"")] {
        let balancer = Balancer::start(&format!(
            r#"providers:
  - {{ name: A, base_url: "{}", auth_value: k }}
model_routes:
  claude-x:
    - {{ provider: A, model: "{model}" }}
"#,
            a.url()
        ))
        .await;
        for chunked in [false, true] {
            let reply = if chunked {
                let mut client_body = Vec::new();
                for piece in client.as_bytes().chunks(70_001) {
                    client_body.extend_from_slice(format!("{:X};x=y\r\n", piece.len()).as_bytes());
                    client_body.extend_from_slice(piece);
                    client_body.extend_from_slice(b"\r\n");
                }
                client_body.extend_from_slice(b"0\r\n\r\n");
                balancer.fetch("POST", "/v1/messages", &[JSON, ("transfer-encoding", "chunked")], client_body).await
            } else {
                balancer.post(&client).await
            };
            assert_eq!(reply.status, 200, "{}", reply.text());
            let wanted = odd_body(wanted).replace(cut, "");
            let received = a.requests().pop().unwrap();
            same(&received.body, wanted.as_bytes(), model);
            assert_eq!(received.header("content-length"), Some(wanted.len().to_string().as_str()));
            assert_eq!(received.header("transfer-encoding"), None);
        }
    }
    assert!(a.complaints().is_empty(), "{:?}", a.complaints());
}

#[tokio::test]
async fn every_attempt_sends_the_same_body_with_its_own_model() {
    let (a, b, c) = (Lab::start().await.unwrap(), Lab::start().await.unwrap(), Lab::start().await.unwrap());
    a.always(Script::html(502));
    b.always(Script::close());
    let entries: String = [("A", &a), ("B", &b), ("C", &c)]
        .map(|(name, lab)| format!("  - {{ name: {name}, base_url: \"{}\", auth_value: k }}\n", lab.url()))
        .concat();
    let balancer = Balancer::start(&format!(
        r#"providers:
{entries}model_routes:
  "*":
    - {{ provider: A, model: first }}
    - {{ provider: B }}
    - {{ provider: C, model: third }}
"#
    ))
    .await;
    assert_eq!(balancer.ask(true).await.status, 200);
    let original = request(true);
    for (lab, model) in [(&a, "first"), (&b, "claude-lab"), (&c, "third")] {
        assert_eq!(lab.requests()[0].body, original.replace("claude-lab", model).as_bytes());
    }
}

/// Streams in every dress.
fn streams() -> Vec<(&'static str, Script)> {
    let base = || Script::stream(&["one", "two \u{1f980}"]);
    let crlf = String::from_utf8(base().body_bytes().to_vec()).unwrap();
    let unknown =
        vec![event::event("of_the_future", &json!({"type": "of_the_future", "x": [1.50]})), event::comment("c")];
    let bom = |text: &str| Script::events(vec![Bytes::from(format!("\u{feff}{text}"))]);
    let large = "l".repeat(3 << 20);
    vec![
        ("plain", base()),
        ("in one write", base().one_write()),
        ("close-delimited", base().close_delimited()),
        ("with a length", base().with_length()),
        ("in one-byte writes", base().split_writes(1)),
        ("in one-byte chunks", base().rechunk(1)),
        ("in seven-byte chunks", base().rechunk(7).split_writes(3)),
        ("with CRLF", Script::events(vec![crlf.replace('\n', "\r\n").into()]).rechunk(5)),
        ("with CR", Script::events(vec![crlf.replace('\n', "\r").into()]).rechunk(4)),
        ("with a BOM", bom(&crlf)),
        (
            "behind pings and comments",
            base().behind(vec![event::comment("hi"), event::ping(), event::ping(), ": x\n".into()]),
        ),
        ("with unknown events", base().behind(unknown)),
        ("with id and retry", base().behind(vec!["id: 7\nretry: 100\n\n".into()])),
        ("with extensions and trailers", base().chunk_extension("a=b").trailer("x-sum", "1")),
        ("behind 103", base().interim(103, &[("link", "</x>")])),
        ("that closes", base().connection_close()),
        ("with a large event", Script::stream(&[large.as_str()])),
        ("with a large first event", base().behind(vec![event::event("x", &json!({ "x": large }))])),
        ("under no name", base().without_header("content-type")),
        ("of HTTP/1.0", base().close_delimited().http10()),
    ]
}

#[tokio::test]
async fn a_stream_arrives_byte_for_byte() {
    let (lab, balancer) = one("").await;
    for (name, script) in streams() {
        lab.next(script.clone());
        let reply = balancer.ask(true).await;
        assert_eq!((reply.status, reply.clean_end), (200, true), "{name}");
        same(&reply.body, &script.body_bytes(), name);
        assert!(reply.header("content-type").unwrap().starts_with("text/event-stream"), "{name}");
        assert_eq!(balancer.failures("A").await, 0, "{name}");
    }
}

#[tokio::test]
async fn each_event_arrives_before_the_next_is_produced() {
    let (lab, balancer) = one("").await;
    let gate = Gate::new();
    lab.always(Script::stream(&["one", "two", "three"]).gate(gate.clone()).gate_end(gate.clone()));
    let mut client = balancer.asking(true).await;
    soon("the head, with the first event", client.head()).await.unwrap();
    let frames = event::message("claude-lab", &["one", "two", "three"]);
    for (index, wanted) in frames.iter().enumerate() {
        let frame = soon("an event", client.frame()).await.unwrap();
        assert_eq!(frame, wanted, "event {index}");
        assert_eq!(client.leftover(), b"");
        soon("the provider waits", gate.reached(index + 1)).await;
        gate.let_one();
    }
    assert_eq!(soon("the end", client.frame()).await, None);
    assert!(client.clean_end());
}

#[tokio::test]
async fn an_event_is_not_held_because_it_is_not_yet_complete() {
    let (lab, balancer) = one("").await;
    let gate = Gate::new();
    let mut frames = event::message("m", &["x"]);
    frames.splice(3..4, [Bytes::from("event: content_block_delta\nda"), Bytes::from("ta: {\"type\":\"x\"}\n\n")]);
    lab.always(Script::events(frames).gate_before(4, gate.clone()));
    let mut client = balancer.asking(true).await;
    soon("the head", client.head()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\nda") {
        seen.extend_from_slice(&soon("half an event", client.frame()).await.unwrap());
    }
    gate.open();
    assert!(soon("the rest", client.rest()).await.1);
}

#[tokio::test]
async fn a_large_plain_reply_arrives_intact() {
    let (lab, balancer) = one("").await;
    let large = format!("{{ \"type\" : \"message\",\r\n\"x\":\"{}\" , \"n\":1.0e0 }}\n", "\u{1f980}é".repeat(900_000));
    assert!(large.len() > 5 << 20);
    let script = Script::body(200, "application/json; charset=utf-8", large);
    for script in [script.clone(), script.clone().chunked(), script.close_delimited()] {
        lab.next(script.clone());
        let reply = balancer.ask(false).await;
        assert_eq!((reply.status, reply.clean_end), (200, true));
        same(&reply.body, &script.body_bytes(), "plain");
        assert_eq!(reply.header("content-type"), Some("application/json; charset=utf-8"));
        assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
    }
}

#[tokio::test]
async fn request_heads_pass_but_for_what_is_listed() {
    let lab = Lab::start().await.unwrap();
    let yaml = format!("providers:\n  - {{ name: A, base_url: \"{}/pre/fix/\", auth_value: ours }}\n", lab.url());
    let balancer = Balancer::start(&yaml).await;
    let headers = [
        JSON,
        ("anthropic-beta", "oauth-2025-04-20,  b-1 ,c"),
        ("anthropic-version", "2026-10-21"),
        ("anthropic-of-the-future", "\u{fe}"),
        ("x-claude-code-session-id", "s"),
        ("X-Stainless-Retry-Count", "0"),
        ("x-app", "cli"),
        ("user-agent", "claude-cli/2.1.331 (external, cli)"),
        ("x-twice", "1"),
        ("x-twice", "2"),
        ("x-empty", ""),
        ("accept", "application/json"),
        ("x-api-key", "canary"),
        ("authorization", "Bearer canary"),
        ("cookie", "canary"),
        ("forwarded", "for=canary"),
        ("x-forwarded-for", "canary"),
        ("proxy-authorization", "canary"),
        ("connection", "keep-alive, x-private"),
        ("x-private", "canary"),
        ("keep-alive", "timeout=1"),
        ("te", "trailers"),
        ("accept-encoding", "gzip, br"),
        ("expect", "100-continue"),
    ];
    let target = "/v1/messages?beta=true&x=%2F%20+&&y";
    let reply = balancer.fetch("POST", target, &headers, request(true)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let received = &lab.requests()[0];
    assert_eq!(received.target, format!("/pre/fix{target}"));
    let length = request(true).len().to_string();
    let mut wanted = vec![
        ("host", lab.address().to_string()),
        ("x-api-key", "ours".into()),
        ("content-type", "application/json".into()),
        ("anthropic-beta", "oauth-2025-04-20,  b-1 ,c".into()),
        ("anthropic-version", "2026-10-21".into()),
        ("anthropic-of-the-future", "\u{fe}".into()),
        ("x-claude-code-session-id", "s".into()),
        ("x-stainless-retry-count", "0".into()),
        ("x-app", "cli".into()),
        ("user-agent", "claude-cli/2.1.331 (external, cli)".into()),
        ("x-twice", "1".into()),
        ("x-twice", "2".into()),
        ("x-empty", String::new()),
        ("accept", "application/json".into()),
        ("accept-encoding", "identity".into()),
        ("content-length", length),
        ("x-proxy-hop", balancer.app.proxy.hop.to_str().unwrap().to_owned()),
    ];
    let mut found: Vec<_> = received.headers.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    wanted.sort();
    found.sort();
    assert_eq!(found, wanted);
}

fn names(reply: &Reply) -> Vec<&str> {
    reply.headers.iter().map(|(name, _)| name.as_str()).collect()
}

#[tokio::test]
async fn response_heads_pass_but_for_what_is_listed() {
    let (lab, balancer) = one("").await;
    let dress = |script: Script| {
        [
            ("anthropic-ratelimit-unified-5h-utilization", "0.5"),
            ("anthropic-organization-id", "org"),
            ("retry-after", "3"),
            ("x-should-retry", "true"),
            ("X-Mixed", "a"),
            ("x-twice", "1"),
            ("x-twice", "2"),
            ("set-cookie", "c=canary"),
            ("access-control-allow-origin", "*"),
            ("alt-svc", "h3"),
            ("strict-transport-security", "max-age=1"),
            ("clear-site-data", "\"*\""),
            ("keep-alive", "timeout=5"),
            ("connection", "x-hop"),
            ("x-hop", "canary"),
            ("x-provider-used", "forged"),
            ("x-balancer-attempts", "99"),
            ("date", "Tue, 01 Jul 2025 00:00:00 GMT"),
            ("server", "cloudflare"),
        ]
        .into_iter()
        .fold(script, |script, (name, value)| script.header(name, value))
    };
    for (script, stream, status) in [
        (Script::stream(&["x"]), true, 200),
        (Script::message("x"), false, 200),
        (Script::error(400, "invalid_request_error", "x"), true, 400),
    ] {
        lab.next(dress(script));
        let reply = balancer.ask(stream).await;
        assert_eq!(reply.status, status);
        let mut wanted = vec![
            "anthropic-ratelimit-unified-5h-utilization",
            "anthropic-organization-id",
            "retry-after",
            "x-should-retry",
            "x-mixed",
            "x-twice",
            "x-twice",
            "date",
            "server",
            "content-type",
            "request-id",
            "x-provider-used",
            "x-balancer-attempts",
            if stream && status == 200 { "transfer-encoding" } else { "content-length" },
        ];
        if stream && status == 200 {
            wanted.push("cache-control");
        }
        let mut found = names(&reply);
        wanted.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, wanted, "{status}");
        assert_eq!(reply.header("date"), Some("Tue, 01 Jul 2025 00:00:00 GMT"));
        assert_eq!((reply.header("x-provider-used"), reply.header("x-balancer-attempts")), (Some("A"), Some("1")));
    }
}

#[tokio::test]
async fn an_encoded_answer_passes_untouched() {
    let gzip = |script: Script| script.header("content-encoding", "gzip");
    // What a gzip stream begins with, and nothing that anybody could read.
    let bytes: Vec<u8> = [0x1f, 0x8b, 8, 0].into_iter().chain((0..5000).map(|i| (i * 31 % 251) as u8)).collect();
    let (lab, balancer) = one("").await;
    for (script, stream, status) in [
        (gzip(Script::events(vec![bytes.clone().into(), "rest".into()])), true, 200),
        (gzip(Script::events(vec![bytes.clone().into()])).with_length(), true, 200),
        (gzip(Script::body(200, "application/json", bytes.clone())), false, 200),
        (gzip(Script::body(400, "application/json", bytes.clone())), false, 400),
        (gzip(Script::body(429, "application/json", bytes)).header("retry-after", "1"), false, 429),
    ] {
        lab.next(script.clone());
        let reply = balancer.ask(stream).await;
        assert_eq!((reply.status, reply.clean_end), (status, true), "{script:?}");
        same(&reply.body, &script.body_bytes(), "encoded");
        assert_eq!(reply.header("content-encoding"), Some("gzip"));
    }
}
