//! What is on the wire of a client's connection, before any parser has smoothed it: whatever two readers might
//! understand differently is refused in our own shape, ends the connection, and reaches no provider.

use claude_code_balancer::lab::Lab;

use crate::support::running::{Running, ask_for, assert_is_our_error, providers};
use crate::support::{Client, Reply, soon};

async fn one() -> (Lab, Running) {
    let lab = Lab::start().await.unwrap();
    let running = Running::start(&providers(&[("A", &lab)])).await;
    (lab, running)
}

fn chunked(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

/// The last answer on a connection, and nothing behind it.
async fn last(client: &mut Client, what: &str) -> Reply {
    let reply = soon(what, client.read_to_end()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(reply.header("connection"), Some("close"), "{what}");
    assert_eq!(soon(what, client.raw_to_end()).await, (bytes::Bytes::new(), None), "{what}");
    reply
}

/// Rows of what is refused: what it is, the head behind the request line, what follows, and the status.
fn rows() -> Vec<(&'static str, String, String, u16)> {
    let body = ask_for("m");
    let length = body.len();
    let chunks = chunked(&body);
    let mut rows = Vec::new();
    let mut row = |what, fields: String, rest: &str, status| rows.push((what, fields, rest.to_owned(), status));
    row("a length, then a coding", format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"), &chunks, 400);
    row("a coding, then a length", format!("transfer-encoding: chunked\r\ncontent-length: {length}\r\n"), &chunks, 400);
    row(
        "a length of the chunks",
        format!("content-length: {}\r\ntransfer-encoding: chunked\r\n", chunks.len()),
        &chunks,
        400,
    );
    row("an equal second length", format!("content-length: {length}\r\nContent-Length: {length}\r\n"), &body, 400);
    row("a list of lengths", format!("content-length: {length}, {length}\r\n"), &body, 400);
    row("a length with a sign", format!("content-length: +{length}\r\n"), &body, 400);
    row("a length with zeros", format!("content-length: 0{length}\r\n"), &body, 400);
    row("a hexadecimal length", format!("content-length: 0x{length:x}\r\n"), &body, 400);
    row("an empty length", "content-length:\r\n".into(), &body, 400);
    row("a negative length", "content-length: -1\r\n".into(), &body, 400);
    row("a length of twenty digits", "content-length: 99999999999999999999\r\n".into(), &body, 400);
    row("the largest length", "content-length: 18446744073709551615\r\n".into(), &body, 413);
    row("chunked twice", "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n".into(), &chunks, 400);
    row("chunked in chunked", "transfer-encoding: chunked, chunked\r\n".into(), &chunks, 400);
    row("another coding first", "transfer-encoding: gzip, chunked\r\n".into(), &chunks, 400);
    row("an empty coding first", "transfer-encoding: ,chunked\r\n".into(), &chunks, 400);
    row("chunked not last", "transfer-encoding: chunked, gzip\r\n".into(), &chunks, 400);
    row("an unknown coding", "transfer-encoding: xchunked\r\n".into(), &chunks, 400);
    row("no coding", "transfer-encoding: identity\r\n".into(), &body, 400);
    row("a coding behind a tab", "transfer-encoding:\x0bchunked\r\n".into(), &chunks, 400);
    row("a bare line feed", format!("x: y\ncontent-length: {length}\r\n"), &body, 400);
    row("a bare line feed at the end", format!("content-length: {length}\n"), &body, 400);
    row("a bare carriage return", format!("x: a\rb\r\ncontent-length: {length}\r\n"), &body, 400);
    row("a name with a space", format!("content-length : {length}\r\n"), &body, 400);
    row("a folded line", format!("x: a\r\n b\r\ncontent-length: {length}\r\n"), &body, 400);
    row("a null", format!("x: a\0b\r\ncontent-length: {length}\r\n"), &body, 400);
    row("a line without a colon", "nothing\r\n".into(), "", 400);
    row("too many fields", "x: y\r\n".repeat(101), "", 431);
    row("too large a head", format!("x: {}\r\n", "y".repeat(70_000)), "", 431);
    row("a head of half a megabyte", format!("x: {}\r\n", "y".repeat(500_000)), "", 431);
    rows
}

#[tokio::test]
async fn what_two_readers_might_understand_differently_is_refused_in_our_shape() {
    let (lab, running) = one().await;
    let host = running.host();
    for (what, fields, rest, status) in rows() {
        let request = format!("POST /v1/messages HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n{rest}");
        let mut client = running.connect().await;
        // It may close while we are still sending.
        let _ = client.send_raw(request.as_bytes()).await;
        let reply = last(&mut client, what).await;
        let kind = if status == 413 { "request_too_large" } else { "invalid_request_error" };
        assert_is_our_error(&reply, status, kind, what);
    }
    assert_eq!(lab.connections(), 0);
}

#[tokio::test]
async fn what_is_not_http_is_refused_in_our_shape() {
    let (lab, running) = one().await;
    let host = running.host();
    for (what, bytes) in [
        ("a TLS handshake", "\u{16}\u{3}\u{1}\u{2}".into()),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        ("another version", format!("GET /health HTTP/2.0\r\nhost: {host}\r\n\r\n")),
        ("an answer", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into()),
        ("a target with a space", format!("GET /a b HTTP/1.1\r\nhost: {host}\r\n\r\n")),
        ("no URI", format!("GET http:// HTTP/1.1\r\nhost: {host}\r\n\r\n")),
        (
            "an old version with chunks",
            format!("POST /v1/messages HTTP/1.0\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
    ] {
        let mut client = running.connect().await;
        client.send_raw(bytes.as_bytes()).await.unwrap();
        assert_is_our_error(&last(&mut client, what).await, 400, "invalid_request_error", what);
    }
    assert_eq!(lab.connections(), 0);
}

#[tokio::test]
async fn a_request_behind_a_good_one_is_refused_behind_its_answer() {
    let (lab, running) = one().await;
    let host = running.host();
    let body = ask_for("m");
    let good = [
        format!("POST /v1/messages HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n{body}", body.len()),
        format!("POST /v1/messages HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n{}", chunked(&body)),
    ];
    for (what, fields, rest, status) in rows() {
        for (number, good) in good.iter().enumerate() {
            for together in [true, false] {
                let bad = format!("POST /v1/messages HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n{rest}");
                let mut client = running.connect().await;
                let before = lab.requests().len();
                if together {
                    let _ = client.send_raw(format!("{good}{bad}").as_bytes()).await;
                    assert_eq!(soon(what, client.read_to_end()).await.unwrap().status, 200, "{what} {number}");
                } else {
                    client.send_raw(good.as_bytes()).await.unwrap();
                    assert_eq!(soon(what, client.read_to_end()).await.unwrap().status, 200, "{what} {number}");
                    let _ = client.send_raw(bad.as_bytes()).await;
                }
                let reply = last(&mut client, what).await;
                assert_eq!(reply.status, status, "{what} {number}: {}", reply.text());
                assert_eq!(lab.requests().len(), before + 1, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn many_requests_at_once_are_answered_one_by_one() {
    let (lab, running) = one().await;
    let host = running.host();
    let mut bytes = String::new();
    for number in 0..300 {
        let body = ask_for(&format!("model-{number}"));
        let length = body.len();
        bytes.push_str(&match number % 4 {
            0 => format!("POST /v1/messages HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n{body}"),
            1 => format!(
                "POST /v1/messages HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\n{}\r\n{:X} \r\n{}\r\n0\r\nt: u\r\n\r\n",
                &body[..5], length - 5, &body[5..]
            ),
            // An empty line behind a body is no request.
            2 => format!("POST /v1/messages HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n{body}\r\n"),
            _ => format!("GET /health HTTP/1.1\r\nhost: {host}\r\n\r\n"),
        });
    }
    // At once, and cut at places that fall everywhere in heads and bodies.
    for step in [bytes.len(), 1013, 97] {
        let before = lab.requests().len();
        let client = tokio::net::TcpStream::connect(running.address).await.unwrap();
        client.set_nodelay(true).unwrap();
        let (read, mut write) = client.into_split();
        let sent = bytes.clone();
        let mut sending = tokio::task::JoinSet::new();
        sending.spawn(async move {
            for piece in sent.as_bytes().chunks(step) {
                tokio::io::AsyncWriteExt::write_all(&mut write, piece).await.unwrap();
            }
            write
        });
        let mut client = Client::over(tokio::io::join(read, tokio::io::sink()));
        for number in 0..300 {
            let reply = soon("an answer", client.read_to_end()).await;
            let reply = reply.unwrap_or_else(|error| panic!("{step} {number}: {error}"));
            assert_eq!(reply.status, 200, "{step} {number}: {}", reply.text());
        }
        let models: Vec<_> = lab.requests()[before..].iter().map(|request| request.json()["model"].clone()).collect();
        let wanted: Vec<_> = (0..300).filter(|number| number % 4 != 3).map(|n| format!("model-{n}")).collect();
        assert_eq!(models, wanted, "{step}");
        drop(sending.join_next().await.unwrap().unwrap());
    }
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_read() {
    let (lab, running) = one().await;
    let body = ask_for("m");
    let host = running.host();
    let request = format!(
        "\r\n\r\nPOST /v1/messages HTTP/1.1\r\nhost: {host}\r\nx-long: {}\r\ncontent-length: {}\r\n\r\n{body}",
        "x".repeat(300),
        body.len()
    );
    let mut client = running.connect().await;
    for byte in request.as_bytes() {
        client.send_raw(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(soon("the answer", client.read_to_end()).await.unwrap().status, 200);
    assert_eq!(lab.requests()[0].body, body);
    // The largest head that is let in, in pieces.
    let head = format!("GET /health HTTP/1.1\r\nhost: {host}\r\nx: ");
    let large = format!("{head}{}\r\n\r\n", "y".repeat(64 * 1024 - head.len() - 200));
    for piece in large.as_bytes().chunks(5000) {
        client.send_raw(piece).await.unwrap();
    }
    assert_eq!(soon("the answer", client.read_to_end()).await.unwrap().status, 200);
}

#[tokio::test]
async fn broken_chunks_are_refused_in_our_shape_and_nothing_is_forwarded() {
    let (lab, running) = one().await;
    let host = running.host();
    let body = ask_for("m");
    let length = body.len();
    for (what, rest) in [
        ("a sign", format!("+{}", chunked(&body))),
        ("a prefix", format!("0x{}", chunked(&body))),
        ("a blank first", format!(" {}", chunked(&body))),
        ("an underscore", format!("0_{}", chunked(&body))),
        ("no size", format!("\r\n{body}\r\n0\r\n\r\n")),
        ("a bare line feed", format!("{length:x}\n{body}\r\n0\r\n\r\n")),
        ("a bare line feed in an extension", format!("{length:x};a\n{body}\r\n0\r\n\r\n")),
        ("a bare line feed behind the data", format!("{length:x}\r\n{body}\n0\r\n\r\n")),
        ("a bare line feed behind the last size", format!("{length:x}\r\n{body}\r\n0\n\r\n")),
        ("a bare line feed at the end", format!("{length:x}\r\n{body}\r\n0\r\n\n")),
        ("a size that is too small", format!("{:x}\r\n{body}\r\n0\r\n\r\n", length - 1)),
        ("a size that is too large", format!("{:x}\r\n{body}\r\n0\r\n\r\n", length + 1)),
        ("a size that overflows", format!("1{:016x}\r\n{body}\r\n0\r\n\r\n", length)),
    ] {
        let mut client = running.connect().await;
        let head = format!("POST /v1/messages HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n");
        client.send_raw(format!("{head}{rest}").as_bytes()).await.unwrap();
        assert_is_our_error(&last(&mut client, what).await, 400, "invalid_request_error", what);
    }
    assert_eq!(lab.connections(), 0);
}
