//! What is on the wire of a client's connection, before any parser has smoothed it: whatever two readers might
//! understand differently is refused in our own shape, ends the connection, and reaches no provider.

use claude_code_balancer::lab::Lab;

use crate::support::payloads::{broken_chunks, chunked, not_http, rows};
use crate::support::running::{Running, ask_for, assert_is_our_error, providers};
use crate::support::{Client, last, soon};

async fn one() -> (Lab, Running) {
    let lab = Lab::start().await.unwrap();
    let running = Running::start(&providers(&[("A", &lab)])).await;
    (lab, running)
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
    for (what, bytes) in not_http(&host) {
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
    for (what, rest) in broken_chunks() {
        let mut client = running.connect().await;
        let head = format!("POST /v1/messages HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n");
        client.send_raw(format!("{head}{rest}").as_bytes()).await.unwrap();
        assert_is_our_error(&last(&mut client, what).await, 400, "invalid_request_error", what);
    }
    assert_eq!(lab.connections(), 0);
}
