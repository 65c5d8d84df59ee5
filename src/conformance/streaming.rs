//! Points 23 to 35: streams pass as they are, at once, and never end as if nothing were missing.

use bytes::Bytes;

use super::bench::Bench;
use super::wire::Reply;
use super::{Fault, Point, Seen, ensure, failed, pace, shapes};
use crate::lab::{Gate, Script, event};

/// What streams say here.
pub(super) const TEXTS: [&str; 4] = ["Hello", ", wörld: ", "你好 🔐", " and goodbye."];

pub(super) const POINTS: [Point; 13] = [
    Point {
        number: 23,
        title: "the bytes of a stream",
        expected: "identical, however they were cut up",
        judge: |bench| Box::pin(bytes(bench)),
    },
    Point {
        number: 24,
        title: "the time an event takes",
        expected: "under 5 ms (median), nothing buffered",
        judge: |bench| Box::pin(pace::at_once(bench)),
    },
    Point {
        number: 25,
        title: "pings",
        expected: "forwarded, each before the next is sent",
        judge: |bench| Box::pin(pace::pings(bench)),
    },
    Point {
        number: 26,
        title: "content coding",
        expected: "identity asked upstream; an encoded stream passes unmodified, Content-Encoding kept",
        judge: |bench| Box::pin(coding(bench)),
    },
    Point {
        number: 27,
        title: "the upstream's own event: error",
        expected: "forwarded, no retry",
        judge: |bench| Box::pin(own_error(bench)),
    },
    Point {
        number: 28,
        title: "a stream that is cut, FIN or RST",
        expected: "event: error at its end; other bodies are aborted",
        judge: |bench| Box::pin(cut(bench)),
    },
    Point {
        number: 29,
        title: "a clean end without message_stop",
        expected: "event: error, counted as a failure",
        judge: |bench| Box::pin(short(bench)),
    },
    Point {
        number: 30,
        title: "a stream that ends with its connection",
        expected: "whole, with a clean end",
        judge: |bench| Box::pin(close_delimited(bench)),
    },
    Point { number: 31, title: "103, then 200", expected: "the whole answer", judge: |bench| Box::pin(hint(bench)) },
    Point {
        number: 32,
        title: "trailers",
        expected: "forwarded or dropped, the body whole",
        judge: |bench| Box::pin(trailers(bench)),
    },
    Point {
        number: 33,
        title: "8 s of silence, before the head and within the body",
        expected: "waited for",
        judge: |bench| Box::pin(pace::silence(bench)),
    },
    Point {
        number: 34,
        title: "a client that leaves",
        expected: "upstream closed within 100 ms (median)",
        judge: |bench| Box::pin(pace::departure(bench)),
    },
    Point {
        number: 35,
        title: "a client that does not read",
        expected: "the upstream is held back; then all of it arrives",
        judge: |bench| Box::pin(pace::back_pressure(bench)),
    },
];

/// Whether the client got this body, whole.
pub(super) fn whole(reply: &Reply, body: &[u8], what: &str) -> Result<(), Fault> {
    ensure(reply.status == 200, || format!("{what}: {}", reply.brief()))?;
    ensure(reply.body == body, || format!("{what}: {} bytes became {}", body.len(), reply.body.len()))?;
    ensure(reply.clean, || format!("{what}: the body did not end as it should"))
}

async fn bytes(bench: &Bench) -> Seen {
    let stream = || Script::stream(&TEXTS);
    let scripts = [
        ("as it is", stream()),
        ("in pieces of 1 byte", stream().rechunk(1)),
        ("in pieces of 7 bytes", stream().rechunk(7)),
        ("in writes of 7 bytes", stream().split_writes(7)),
        ("in one write", stream().one_write()),
        ("behind pings and a comment", stream().behind(vec![event::comment("hello"), event::ping(), event::ping()])),
        ("with a length", stream().with_length()),
        ("with unknown events", {
            let mut frames = event::message("claude-lab", &TEXTS);
            frames.insert(3, Bytes::from_static(b"event: of_the_future\r\ndata: {\"x\" : 1}\r\n\r\n"));
            Script::events(frames)
        }),
    ];
    let count = scripts.len();
    for (what, script) in scripts {
        let body = script.body_bytes();
        whole(&bench.streamed("stream", script).await?, &body, what)?;
    }
    Ok(format!("{count} streams, identical"))
}

async fn coding(bench: &Bench) -> Seen {
    let asked = bench.arrives(&bench.ask_for("stream")).await?;
    let coding = asked.headers_named("accept-encoding").join(", ");
    let script = Script::stream(&TEXTS).gzipped();
    let encoded = script.body_bytes();
    let reply = bench.streamed("stream", script).await?;
    whole(&reply, &encoded, "an encoded stream")?;
    ensure(reply.field("content-encoding") == Some("gzip"), || "Content-Encoding is gone".into())?;
    ensure(coding.is_empty() || coding.eq_ignore_ascii_case("identity"), || {
        format!("accept-encoding: {coding} (an encoded stream passes)")
    })?;
    Ok(format!("accept-encoding: {coding:?}; the encoded stream passes"))
}

async fn own_error(bench: &Bench) -> Seen {
    let mark = bench.mark();
    let script = Script::stream(&TEXTS).error_after(5, "overloaded_error");
    let body = script.body_bytes();
    whole(&bench.streamed("stream", script).await?, &body, "the stream with its error")?;
    ensure(bench.counts(&mark) == (1, 0), || format!("requests upstream: {:?}", bench.counts(&mark)))?;
    Ok("byte for byte, one request upstream".into())
}

/// Whether a stream that broke after these bytes was ended honestly.
fn honest(reply: &Reply, sent: &[u8], what: &str) -> Result<(), Fault> {
    ensure(reply.status == 200, || format!("{what}: {}", reply.brief()))?;
    let Some(tail) = reply.body.strip_prefix(sent) else {
        return failed(format!("{what}: {} bytes that were sent are not all there", sent.len()));
    };
    let tail = String::from_utf8_lossy(tail);
    let data = tail.lines().rev().find_map(|line| line.strip_prefix("data:"));
    let data: serde_json::Value = data.and_then(|data| serde_json::from_str(data).ok()).unwrap_or_default();
    let error = tail.contains("event: error\n")
        && data.get("type").and_then(serde_json::Value::as_str) == Some("error")
        && data.pointer("/error/type").is_some();
    let end = if reply.clean { "a clean end" } else { "an aborted one" };
    ensure(error && reply.clean, || format!("{what}: {end} after {tail:?}"))
}

async fn cut(bench: &Bench) -> Seen {
    let script = Script::stream(&TEXTS).cut_after(5);
    let sent = script.body_bytes();
    honest(&bench.streamed("cut-1", script).await?, &sent, "FIN between events")?;
    let whole_body = Script::stream(&TEXTS).body_bytes();
    let middle = memchr::memmem::find(&whole_body, "好".as_bytes()).map_or(600, |at| at + 1);
    let script = Script::stream(&TEXTS).cut_at_byte(middle);
    let sent = script.body_bytes();
    honest(&bench.streamed("cut-2", script).await?, &sent, "FIN within a character")?;
    // A reset destroys what is still on its way: it waits until that has arrived.
    let gate = Gate::new();
    let script = Script::stream(&TEXTS).reset_after(5).gate_end(gate.clone());
    let sent = script.body_bytes();
    bench.first_plays(vec![script]);
    let mut wire = bench.open().await?;
    bench.send(&mut wire, &bench.ask_for("cut-3")).await?;
    let reply = pace::then(&mut wire, sent.len(), || gate.open()).await?;
    honest(&reply, &sent, "RST between events")?;
    // Anything but a stream has no room for an error.
    let file = Script::body(200, "application/octet-stream", vec![b'x'; 4096]).cut_at_byte(1000);
    bench.first_plays(vec![file]);
    let reply = bench.once(&bench.keyed(shapes::other("GET", "/v1/files/file_1/content"))).await;
    let aborted = !matches!(&reply, Ok(reply) if reply.clean && reply.status == 200);
    ensure(aborted, || "a file that was cut ended as if nothing were missing".into())?;
    bench.first_plays(vec![Script::message("A plain answer.").cut_at_byte(40)]);
    let reply = bench.once(&bench.plain("cut-plain")).await;
    let aborted = !matches!(&reply, Ok(reply) if reply.clean && reply.status == 200);
    ensure(aborted, || "a message that was cut ended as if nothing were missing".into())?;
    Ok("three streams end in event: error, two other bodies in no clean end".into())
}

async fn short(bench: &Bench) -> Seen {
    for events in [5, 7] {
        let script = Script::stream(&TEXTS).end_after(events);
        let sent = script.body_bytes();
        honest(&bench.streamed("short", script).await?, &sent, &format!("an end after {events} events"))?;
    }
    if !bench.setup.scenes {
        return Ok("event: error (whether it is counted cannot be seen from here)".into());
    }
    let mark = bench.mark();
    let reply = bench.once(&bench.ask_for("short")).await?;
    let counts = bench.counts(&mark);
    ensure(reply.status == 200 && counts == (0, 1), || {
        format!("event: error, but after two of them the requests to the two upstreams are {counts:?}")
    })?;
    Ok("event: error; after two of them the other upstream is preferred".into())
}

async fn close_delimited(bench: &Bench) -> Seen {
    let script = Script::stream(&TEXTS).close_delimited();
    let body = script.body_bytes();
    whole(&bench.streamed("stream", script).await?, &body, "the stream")?;
    Ok("whole".into())
}

async fn hint(bench: &Bench) -> Seen {
    let script = Script::stream(&TEXTS).interim(103, &[("link", "</style.css>; rel=preload")]);
    let body = script.body_bytes();
    whole(&bench.streamed("stream", script).await?, &body, "the stream")?;
    let script = Script::message("Hello").interim(103, &[]).interim(103, &[("x-hint", "2")]);
    let body = script.body_bytes();
    bench.first_plays(vec![script]);
    whole(&bench.once(&bench.plain("stream")).await?, &body, "the message")?;
    Ok("200 and whole, a stream and a message".into())
}

async fn trailers(bench: &Bench) -> Seen {
    let script = Script::stream(&TEXTS).trailer("x-checksum", "abc").trailer("server-timing", "a;dur=1");
    let body = script.body_bytes();
    let reply = bench.streamed("stream", script).await?;
    whole(&reply, &body, "the stream")?;
    ensure(reply.field("x-checksum").is_none(), || "a trailer was merged into the head".into())?;
    Ok("whole".into())
}
