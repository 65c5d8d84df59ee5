//! Providers that break the rules of HTTP/2, frame by frame: each costs itself the request, and nothing else.

use std::sync::Arc;

use claude_code_balancer::lab::Lab;

use crate::support::balancer::Balancer;
use crate::support::frames::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PUSH_PROMISE, Peer, RST_STREAM, SETTINGS, Wire, fields, frame,
};
use crate::support::tls::Authority;
use crate::support::{Reply, soon};

/// A balancer before this peer and, behind it, a provider that always answers.
async fn before(peer: &Peer, authority: &Authority, settings: &str) -> (Lab, Balancer) {
    let good = Lab::start_tls(authority.server()).await.unwrap();
    let config = format!(
        "providers:\n  - {{ name: A, base_url: \"{}\", auth_value: key-a, http2: true }}\n  \
         - {{ name: B, base_url: \"{}\", auth_value: key-b }}\nsettings: {{ log_file_path: \"\", {settings} }}\n",
        peer.url(),
        good.url()
    );
    let balancer = Balancer::start_trusting(&config, authority).await;
    (good, balancer)
}

fn used(reply: &Reply) -> (u16, Option<&str>, Option<&str>) {
    (reply.status, reply.header("x-provider-used"), reply.header("x-balancer-attempts"))
}

const JSON: (&str, &str) = ("content-type", "application/json");

/// A whole answer.
fn message(stream: u32) -> Vec<u8> {
    let head = fields(&[(":status", "200"), JSON]);
    let body = br#"{"type":"message","content":[]}"#;
    [frame(HEADERS, END_HEADERS, stream, &head), frame(DATA, END_STREAM, stream, body)].concat()
}

async fn answer(mut wire: Wire) {
    if let Some(stream) = wire.greet().await {
        wire.send_all(&message(stream)).await;
        wire.drain().await;
    }
}

#[tokio::test]
async fn a_request_that_a_provider_went_away_from_is_sent_again_for_free() {
    let authority = Authority::new();
    let peer = Peer::start(&authority, async |mut wire: Wire| {
        if wire.number > 0 {
            return answer(wire).await;
        }
        // The last stream that was looked at: none.
        wire.greet().await;
        wire.send(GOAWAY, 0, 0, &[0; 8]).await;
        wire.drain().await;
    })
    .await;
    let (good, balancer) = before(&peer, &authority, "replay_after_send: false").await;
    assert_eq!(used(&balancer.ask(false).await), (200, Some("A"), Some("1")));
    assert_eq!((peer.connections(), good.requests().len(), balancer.failures("A").await), (2, 0, 0));
}

#[tokio::test]
async fn a_connection_that_ends_under_a_request_may_have_taken_it_along() {
    let authority = Authority::new();
    let peer = Peer::start(&authority, async |mut wire: Wire| {
        wire.greet().await;
    })
    .await;
    let (good, balancer) = before(&peer, &authority, "replay_after_send: false").await;
    assert_eq!(balancer.ask(false).await.status, 503);
    assert_eq!((peer.connections(), good.requests().len()), (1, 0));
}

#[tokio::test]
async fn what_is_no_answer_in_http_2_is_a_failure_and_the_next_provider_answers() {
    let head = |list: &[(&str, &str)]| frame(HEADERS, END_HEADERS, 1, &fields(list));
    let ok = (":status", "200");
    let large = "x".repeat(12_000);
    let cases: [(&str, Vec<u8>); 12] = [
        ("no status", head(&[JSON])),
        ("a status that is none", head(&[(":status", "2000"), JSON])),
        ("two of them", head(&[ok, ok, JSON])),
        ("a field of a connection", head(&[ok, ("connection", "close"), JSON])),
        ("chunks", head(&[ok, ("transfer-encoding", "chunked"), JSON])),
        ("a name with capitals", head(&[ok, ("X-A", "b")])),
        ("a length that is none", head(&[ok, ("content-length", "3x"), JSON])),
        ("two lengths", head(&[ok, ("content-length", "3"), ("content-length", "4")])),
        (
            "less than was announced",
            [head(&[ok, ("content-length", "9"), JSON]), frame(DATA, END_STREAM, 1, b"{}")].concat(),
        ),
        (
            "more than was announced",
            [head(&[ok, ("content-length", "1"), JSON]), frame(DATA, END_STREAM, 1, b"{}")].concat(),
        ),
        ("a push", frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &fields(&[(":method", "GET")])].concat())),
        (
            "a head that is too large",
            [
                frame(HEADERS, 0, 1, &fields(&[ok, ("a", &large)])),
                (0..6)
                    .flat_map(|n| frame(9, if n == 5 { END_HEADERS } else { 0 }, 1, &fields(&[("a", &large)])))
                    .collect(),
            ]
            .concat(),
        ),
    ];
    let authority = Authority::new();
    for (what, frames) in cases {
        let frames = Arc::new(frames);
        let peer = Peer::start(&authority, move |mut wire: Wire| {
            let frames = frames.clone();
            async move {
                wire.greet().await;
                wire.send_all(&frames).await;
                wire.drain().await;
            }
        })
        .await;
        let (_good, balancer) = before(&peer, &authority, "").await;
        assert_eq!(used(&balancer.ask(false).await), (200, Some("B"), Some("2")), "{what}");
        assert_eq!((peer.connections(), balancer.failures("A").await), (1, 1), "{what}");
    }
}

/// `x-api-key` in the code of RFC 7541 Appendix B, behind the mark of a literal that is never indexed (§6.2.3).
const KEY: [u8; 9] = [0x10, 0x87, 0xf2, 0xb0, 0xeb, 0x32, 0xdd, 0x4b, 0xeb];

#[tokio::test]
async fn a_credential_is_kept_in_no_table_of_the_connection() {
    let authority = Authority::new();
    let (tell, mut heads) = tokio::sync::mpsc::unbounded_channel();
    let peer = Peer::start(&authority, move |mut wire: Wire| {
        let tell = tell.clone();
        async move {
            wire.send(SETTINGS, 0, 0, &[]).await;
            while let Some(frame) = wire.frame().await {
                if frame.kind == HEADERS {
                    tell.send(frame.payload).unwrap();
                    wire.send_all(&message(frame.stream)).await;
                }
            }
        }
    })
    .await;
    let (_good, balancer) = before(&peer, &authority, "").await;
    for _ in 0..3 {
        assert_eq!(used(&balancer.ask(false).await), (200, Some("A"), Some("1")));
        let head = soon("a head", heads.recv()).await.unwrap();
        assert!(head.windows(KEY.len()).any(|bytes| bytes == KEY), "{head:02x?}");
    }
}

#[tokio::test]
async fn no_flood_of_frames_outlasts_its_connection_or_keeps_an_answer_back() {
    let authority = Authority::new();
    let ok = fields(&[(":status", "200"), JSON]);
    for (what, head, piece, survives) in [
        ("settings", None, frame(SETTINGS, 0, 0, &[]), true),
        ("pings", None, frame(PING, 0, 0, &[0; 8]), true),
        ("empty data", Some(ok.clone()), frame(DATA, 0, 1, &[]), false),
        ("resets of streams that are none", None, frame(RST_STREAM, 0, 3, &[0; 4]), false),
    ] {
        let head = head.map_or(Vec::new(), |head| frame(HEADERS, END_HEADERS, 1, &head));
        let flood = Arc::new([head, piece.repeat(5_000)].concat());
        let peer = Peer::start(&authority, move |mut wire: Wire| {
            let flood = flood.clone();
            async move {
                let stream = wire.greet().await.unwrap();
                wire.send_all(&flood).await;
                wire.send_all(&message(stream)).await;
                wire.drain().await;
            }
        })
        .await;
        let (_good, balancer) = before(&peer, &authority, "").await;
        let provider = if survives { ("A", "1") } else { ("B", "2") };
        let reply = soon(what, balancer.ask(false)).await;
        assert_eq!(used(&reply), (200, Some(provider.0), Some(provider.1)), "{what}");
    }
}

#[tokio::test]
async fn a_provider_that_does_not_begin_is_passed_over_with_nothing_sent() {
    let authority = Authority::new();
    for (silent, error) in [
        (true, "no HTTP/2 connection with localhost within 200ms"),
        (false, "HTTP/2 with localhost failed: unexpected end of file"),
    ] {
        let peer = Peer::start(&authority, move |mut wire: Wire| async move {
            if silent {
                wire.drain().await;
            } else {
                // What the balancer said so far is read, so that the end is no reset.
                wire.frame().await;
                wire.frame().await;
            }
        })
        .await;
        let (_good, balancer) = before(&peer, &authority, "replay_after_send: false, timeouts: { tls: 200ms }").await;
        assert_eq!(used(&balancer.ask(false).await), (200, Some("B"), Some("2")));
        assert_eq!(balancer.provider("A").await["last_error"], error);
    }
}
