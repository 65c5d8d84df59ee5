//! What is on the wire of a client's connection and must be refused: each with what it is.

use super::running::ask_for;

pub fn chunked(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

/// Rows of what is refused: what it is, the head behind the request line, what follows, and the status.
pub fn rows() -> Vec<(&'static str, String, String, u16)> {
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

/// What is no request at all, each refused with 400.
pub fn not_http(host: &str) -> Vec<(&'static str, String)> {
    vec![
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
    ]
}

/// Bodies in chunks that are none, each refused with 400.
pub fn broken_chunks() -> Vec<(&'static str, String)> {
    let body = ask_for("m");
    let length = body.len();
    vec![
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
    ]
}

/// Heads whose framing is clear, and that are refused for their place: what it is, the head, and the status.
pub fn misplaced(host: &str) -> Vec<(&'static str, String, u16)> {
    let ask = |target: &str, hosts: &str| format!("GET {target} HTTP/1.1\r\n{hosts}\r\n");
    let own = format!("host: {host}\r\n");
    let port = host.rsplit(':').next().unwrap_or_default();
    vec![
        ("no host", ask("/v1/models", ""), 400),
        ("an empty host", ask("/v1/models", "host:\r\n"), 400),
        ("two hosts", ask("/v1/models", &own.repeat(2)), 400),
        ("a foreign host", ask("/v1/models", "host: evil.test\r\n"), 421),
        ("a foreign host with our port", ask("/v1/models", &format!("host: evil.test:{port}\r\n")), 421),
        ("a host without its port", ask("/v1/models", "host: localhost\r\n"), 421),
        ("a longer name", ask("/v1/models", &format!("host: localhost.evil.test:{port}\r\n")), 421),
        ("an absolute target elsewhere", ask("http://evil.test/v1/models", &own), 400),
        ("an absolute target with a user", ask(&format!("http://user@{host}/v1/models"), &own), 400),
        ("a dot segment", ask("/v1/../oauth/tokens", &own), 400),
        ("an encoded dot segment", ask("/v1/%2e%2e/oauth/tokens", &own), 400),
        ("an encoded slash behind dots", ask("/v1/%2e%2e%2fproviders", &own), 400),
        ("two slashes", ask("//evil.test/v1/models", &own), 400),
        ("two slashes inside", ask("/v1//models", &own), 400),
        ("a backslash", ask("/v1\\models", &own), 400),
        ("a null in the path", ask("/v1/x%00", &own), 400),
        ("a line in the path", ask("/v1/x%0d%0ay", &own), 400),
        ("half an escape", ask("/v1/models%", &own), 400),
        ("a long target", ask(&format!("/v1/models?{}", "x".repeat(9000)), &own), 400),
        ("OPTIONS", format!("OPTIONS /v1/models HTTP/1.1\r\n{own}\r\n"), 405),
        ("PUT", format!("PUT /v1/messages HTTP/1.1\r\n{own}\r\n"), 405),
        ("a foreign origin", ask("/v1/models", &format!("{own}origin: http://evil.test\r\n")), 403),
        ("no origin", ask("/v1/models", &format!("{own}origin: null\r\n")), 403),
        ("a foreign page", ask("/v1/models", &format!("{own}sec-fetch-site: cross-site\r\n")), 403),
        ("an unknown expectation", ask("/v1/models", &format!("{own}expect: more\r\n")), 417),
    ]
}
