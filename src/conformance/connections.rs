//! Points 50 to 58: connections, framing, limits, and who may ask.

use std::time::Duration;

use bytes::Bytes;

use super::ask::Ask;
use super::bench::Bench;
use super::streaming::{TEXTS, whole};
use super::{Fault, Point, Seen, ensure, shapes};
use crate::lab::{IdleClose, Script};

/// Requests of the points that try a connection again and again.
const TIMES: usize = 20;

pub(super) const POINTS: [Point; 9] = [
    Point {
        number: 50,
        title: "keep-alive",
        expected: "connections used again on both sides; Connection: close obeyed",
        judge: |bench| Box::pin(keep_alive(bench)),
    },
    Point {
        number: 51,
        title: "an upstream that closes idle connections",
        expected: "no request is lost",
        judge: |bench| Box::pin(stale(bench)),
    },
    Point {
        number: 52,
        title: "framing that two readers understand differently",
        expected: "400 and a closed connection, nothing forwarded",
        judge: |bench| Box::pin(smuggling(bench)),
    },
    Point {
        number: 53,
        title: "HEAD and 204",
        expected: "no body, and the connection goes on",
        judge: |bench| Box::pin(bodiless(bench)),
    },
    Point {
        number: 54,
        title: "Expect: 100-continue",
        expected: "100, then the answer",
        judge: |bench| Box::pin(expectation(bench)),
    },
    Point {
        number: 55,
        title: "large bodies",
        expected: "a prompt over 32 MiB: 413 (or passed whole); an upload of 40 MiB: streamed",
        judge: |bench| Box::pin(large(bench)),
    },
    Point {
        number: 56,
        title: "HTTP/1.0, and requests in one write",
        expected: "answered in a form that each understands, in order",
        judge: |bench| Box::pin(old_and_pipelined(bench)),
    },
    Point {
        number: 57,
        title: "redirects of an upstream",
        expected: "not followed",
        judge: |bench| Box::pin(redirects(bench)),
    },
    Point {
        number: 58,
        title: "a foreign Host, a foreign Origin",
        expected: "refused, nothing forwarded",
        judge: |bench| Box::pin(strangers(bench)),
    },
];

async fn keep_alive(bench: &Bench) -> Seen {
    bench.arrives(&bench.ask_for("keep")).await?;
    let before = bench.first.connections();
    let mut wire = bench.open().await?;
    for number in 0..TIMES {
        let ask = if number % 2 == 0 { bench.ask_for("keep") } else { bench.plain("keep") };
        bench.send(&mut wire, &ask).await?;
        let reply = wire.reply().await?;
        ensure(reply.status == 200 && reply.clean, || format!("request {number}: {}", reply.brief()))?;
    }
    let new = bench.first.connections() - before;
    ensure(new <= 2, || format!("one connection of the client, {new} new ones upstream for {TIMES} requests"))?;
    // An upstream that says close, or closes without a word.
    let closing = |number: usize| {
        let script = Script::stream(&TEXTS);
        if number.is_multiple_of(2) { script.connection_close() } else { script.close_after_reply() }
    };
    bench.first_plays((0..6).map(closing).collect());
    for number in 0..6 {
        bench.send(&mut wire, &bench.ask_for("keep-close")).await?;
        let reply = wire.reply().await?;
        whole(&reply, &Script::stream(&TEXTS).body_bytes(), &format!("closing answer {number}"))?;
    }
    // A client that says so.
    bench.send(&mut wire, &bench.ask_for("keep").set("Connection", "close")).await?;
    let reply = wire.reply().await?;
    ensure(reply.status == 200 && wire.closes().await, || "Connection: close of the client was not obeyed".into())?;
    Ok(format!("{TIMES} requests: one connection of the client, {new} new upstream"))
}

async fn stale(bench: &Bench) -> Seen {
    for (scene, policy, pause) in [
        ("stale", IdleClose::After(Duration::from_millis(100)), Duration::from_millis(97)),
        ("stale-race", IdleClose::OnNextRequest, Duration::ZERO),
    ] {
        bench.first.idle_close(policy);
        let mut wire = bench.open().await?;
        for number in 0..TIMES {
            bench.send(&mut wire, &bench.ask_for(scene)).await?;
            let reply = wire.reply().await?;
            ensure(reply.status == 200 && reply.clean, || format!("{policy:?}, request {number}: {}", reply.brief()))?;
            tokio::time::sleep(pause).await;
        }
    }
    Ok(format!("{} of {} answered", 2 * TIMES, 2 * TIMES))
}

async fn smuggling(bench: &Bench) -> Seen {
    let body = bench.ask_for("one").body;
    let (length, host) = (body.len(), &bench.gateway.host);
    let chunks = format!("{length:x}\r\n{}\r\n0\r\n\r\n", String::from_utf8_lossy(&body));
    let plain = String::from_utf8_lossy(&body).into_owned();
    let vectors = [
        ("CL and TE", format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"), &chunks),
        ("TE and CL", format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"), &chunks),
        ("two CL", format!("Content-Length: {length}\r\nContent-Length: {}\r\n", length - 1), &plain),
        ("CL with a sign", format!("Content-Length: +{length}\r\n"), &plain),
        ("bare LF", format!("X-A: b\nContent-Length: {length}\r\n"), &plain),
        ("obs-fold", format!("X-A: b\r\n c\r\nContent-Length: {length}\r\n"), &plain),
        ("space before the colon", format!("Content-Length : {length}\r\n"), &plain),
        ("a coding that is none", "Transfer-Encoding: xchunked\r\n".to_owned(), &chunks),
    ];
    let count = vectors.len();
    let mut wrong = Vec::new();
    for (what, fields, rest) in vectors {
        let mark = bench.mark();
        let credential = bench.ask_for("one").field("authorization").unwrap_or_default().to_owned();
        let request = format!(
            "POST {}/v1/messages HTTP/1.1\r\nHost: {host}\r\nAuthorization: {credential}\r\n\
             Content-Type: application/json\r\n{fields}\r\n{rest}",
            bench.gateway.prefix
        );
        let mut wire = bench.open().await?;
        // It may close while we are still sending.
        let _ = wire.send(request.as_bytes()).await;
        let status = wire.reply().await.map(|reply| reply.status);
        let forwarded = bench.counts(&mark) != (0, 0);
        if !matches!(status, Ok(400..=499 | 501)) || forwarded || !wire.closes().await {
            let status = status.map_or_else(|_| "closed without a word".to_owned(), |status| status.to_string());
            wrong.push(format!("{what}: {status}{}", if forwarded { ", forwarded" } else { "" }));
        }
    }
    ensure(wrong.is_empty(), || wrong.join("; "))?;
    Ok(format!("{count} vectors, all refused"))
}

async fn bodiless(bench: &Bench) -> Seen {
    let mut wire = bench.open().await?;
    let next = async |wire: &mut super::Wire, what: &str| {
        bench.send(wire, &bench.plain("one")).await?;
        let reply = wire.reply().await?;
        ensure(reply.status == 200 && reply.clean, || format!("the request behind {what}: {}", reply.brief()))
    };
    bench.first_plays(vec![Script::json(200, &serde_json::json!({ "data": [] }))]);
    bench.send(&mut wire, &bench.keyed(shapes::other("HEAD", "/v1/models"))).await?;
    let reply = wire.reply().await?;
    ensure(reply.status == 200 && reply.body.is_empty(), || format!("HEAD: {}", reply.brief()))?;
    next(&mut wire, "HEAD").await?;
    bench.first_plays(vec![Script::empty(204)]);
    bench.send(&mut wire, &bench.keyed(shapes::other("DELETE", "/v1/files/file_1"))).await?;
    let reply = wire.reply().await?;
    let framed = reply.field("transfer-encoding").is_some();
    ensure(reply.status == 204 && !framed, || format!("204: {}, transfer-encoding {framed}", reply.brief()))?;
    next(&mut wire, "204").await?;
    Ok("both, on one connection".into())
}

async fn expectation(bench: &Bench) -> Seen {
    let ask = bench.ask_for("one").with("Expect", "100-continue");
    let mark = bench.mark();
    let mut wire = bench.open().await?;
    wire.send(&ask.head(&bench.gateway.host, &bench.gateway.prefix)).await?;
    let interim = wire.any_head().await?;
    ensure(interim.status == 100, || format!("{} before the body was sent", interim.status))?;
    wire.send(&ask.body).await?;
    let reply = wire.reply().await?;
    let arrived = bench.at_first(&mark);
    let same = arrived.first().is_some_and(|received| received.body == ask.body);
    ensure(reply.status == 200 && same, || reply.brief())?;
    Ok("100, then 200".into())
}

async fn large(bench: &Bench) -> Seen {
    let ask = bench.ask_for("one");
    let padding = "x".repeat(33 * 1024 * 1024);
    let body = String::from_utf8_lossy(&ask.body).replacen("Some words", &padding, 1);
    let prompt = ask.body(body);
    let mark = bench.mark();
    let mut wire = bench.open().await?;
    let reply = wire.ask_and_listen(&prompt, &bench.gateway.host, &bench.gateway.prefix).await?;
    let intact = bench.at_first(&mark).iter().any(|received| received.body == prompt.body);
    ensure(reply.status == 413 || (reply.status == 200 && intact), || format!("33 MiB: {}", reply.brief()))?;
    let size: usize = 40 * 1024 * 1024;
    let piece = Bytes::from((0..=255_u8).cycle().take(size).collect::<Vec<u8>>());
    let upload = bench.keyed(shapes::upload()).body(piece);
    let mark = bench.mark();
    let mut wire = bench.open().await?;
    let stored = wire.ask_and_listen(&upload, &bench.gateway.host, &bench.gateway.prefix).await?;
    let intact = bench.at_first(&mark).iter().any(|received| received.body == upload.body);
    ensure(stored.status == 200 && intact, || format!("an upload of 40 MiB: {}", stored.brief()))?;
    Ok(format!("a prompt of 33 MiB: {}; an upload of 40 MiB: whole", reply.status))
}

async fn old_and_pipelined(bench: &Bench) -> Seen {
    let script = Script::stream(&TEXTS);
    bench.first_plays(vec![script.clone()]);
    let mut wire = bench.open().await?;
    bench.send(&mut wire, &bench.ask_for("one").without("Connection").http10()).await?;
    let reply = wire.reply().await?;
    whole(&reply, &script.body_bytes(), "HTTP/1.0")?;
    ensure(reply.field("transfer-encoding").is_none(), || "chunks in an answer to HTTP/1.0".into())?;
    ensure(wire.closes().await, || "HTTP/1.0 without keep-alive was kept".into())?;
    // Three in one write; each answer names its own number of tokens.
    let model = bench.model("one");
    let asks: Vec<Ask> =
        [200, 300, 400].into_iter().map(|size| bench.keyed(shapes::count_tokens(&model, size))).collect();
    let mut bytes = Vec::new();
    for ask in &asks {
        bytes.extend(ask.head(&bench.gateway.host, &bench.gateway.prefix));
        bytes.extend_from_slice(&ask.body);
    }
    let mut wire = bench.open().await?;
    wire.send(&bytes).await?;
    for ask in &asks {
        let reply = wire.reply().await?;
        let wanted = format!("\"input_tokens\":{}", ask.body.len());
        ensure(reply.status == 200 && reply.text().contains(&wanted), || format!("pipelined: {}", reply.brief()))?;
    }
    Ok("no chunks for 1.0; three answers in order".into())
}

async fn redirects(bench: &Bench) -> Seen {
    let location = format!("{}/v1/messages", bench.second.url());
    for status in [302, 307] {
        let mark = bench.mark();
        let reply = bench.streamed("redirect", Script::redirect(status, &location)).await?;
        let followed = match (bench.setup.failover, bench.setup.scenes) {
            // Where the second is asked, it is as an upstream of its own.
            (true, false) => false,
            _ => bench.counts(&mark) != (1, 0),
        };
        ensure(!followed, || format!("{status} was followed: requests upstream {:?}", bench.counts(&mark)))?;
        ensure(reply.status != 200 || bench.setup.failover, || reply.brief())?;
        bench.calm().await;
    }
    bench.first_plays(vec![Script::redirect(302, &location)]);
    let mark = bench.mark();
    let reply = bench.once(&bench.keyed(shapes::other("GET", "/v1/files/file_1/content"))).await?;
    ensure(bench.counts(&mark) == (1, 0), || format!("followed on another path: {}", reply.brief()))?;
    Ok(format!("not followed; on other paths the client gets the {}", reply.status))
}

/// Whether this is refused before anything goes upstream.
async fn refused(bench: &Bench, ask: &Ask, what: &str) -> Result<u16, Fault> {
    let mark = bench.mark();
    let reply = bench.once(ask).await?;
    let counts = bench.counts(&mark);
    let refused = (400..500).contains(&reply.status) && counts == (0, 0);
    ensure(refused, || format!("{what}: {}, requests upstream: {counts:?}", reply.status))?;
    Ok(reply.status)
}

async fn strangers(bench: &Bench) -> Seen {
    let port = bench.gateway.address.port();
    let rebound = bench.ask_for("one").with("Host", &format!("attacker.example:{port}"));
    let host = refused(bench, &rebound, "Host: attacker.example").await?;
    let page = bench.ask_for("one").with("Origin", "https://attacker.example");
    let origin = refused(bench, &page, "Origin: https://attacker.example").await?;
    Ok(format!("Host: {host}, Origin: {origin}"))
}
