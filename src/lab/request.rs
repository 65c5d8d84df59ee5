//! What arrived: read strictly and kept as it was on the wire.

use std::fmt;

use bytes::{Bytes, BytesMut};
use serde_json::Value;

use super::wire::Wire;

/// The longest head that is read.
const HEAD: usize = 1024 * 1024;

/// The most headers that are read.
const HEADERS: usize = 256;

/// The longest body that is read.
const BODY: usize = 256 * 1024 * 1024;

/// One request, as it was on the wire.
#[derive(Clone, Debug)]
pub struct Received {
    /// The method.
    pub method: String,
    /// The target, with its query, unchanged.
    pub target: String,
    /// Names and values in wire order; names in their own case.
    pub headers: Vec<(String, String)>,
    /// The head's exact bytes, with the empty line; none in HTTP/2, where `:authority` is shown as `host`.
    pub head: Bytes,
    /// The body, decoded if it came in chunks. Empty for a script that answers [`early`](super::Script::early).
    pub body: Bytes,
    /// Which connection it came on, from 0.
    pub connection: usize,
    pub(super) version: u8,
}

impl Received {
    /// The first header with this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers_named(name).first().copied()
    }

    /// All headers with this name, in any case.
    pub fn headers_named(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The body as JSON; `null` if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Whether it came in HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.version == 2
    }

    pub(super) fn wants_close(&self) -> bool {
        let said = |word: &str| self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case(word));
        said("close") || (self.version == 0 && !said("keep-alive"))
    }

    pub(super) fn expects_continue(&self) -> bool {
        self.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
    }
}

/// Why no request came out of a connection.
#[derive(Debug)]
pub(super) enum NoRequest {
    /// The peer closed before the first byte of one.
    Ended,
    /// The peer closed in the middle, or what it sent is not HTTP/1.
    Malformed(String),
}

/// Reads a head, with an empty body.
pub(super) async fn read_head(wire: &mut Wire, connection: usize) -> Result<Received, NoRequest> {
    let mut end = None;
    while end.is_none() {
        end = memchr::memmem::find(&wire.inbox, b"\r\n\r\n");
        // What lies behind the head may be as long as it likes.
        if end.is_none() && wire.inbox.len() > HEAD {
            return Err(malformed("head too long"));
        }
        if end.is_none() && !matches!(wire.read().await, Ok(1..)) {
            return Err(if wire.inbox.is_empty() { NoRequest::Ended } else { malformed("closed within the head") });
        }
    }
    let head = wire.inbox.split_to(end.unwrap_or_default() + 4).freeze();
    parsed(head, connection)
}

/// Reads the body that the head announces.
pub(super) async fn read_body(wire: &mut Wire, head: &Received) -> Result<Bytes, NoRequest> {
    let lengths = head.headers_named("content-length");
    let codings = head.headers_named("transfer-encoding");
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Ok(Bytes::new()),
        ([length], []) => {
            let length = length.parse().map_err(|_| malformed("content-length is no number"))?;
            take(wire, length).await
        }
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => read_chunks(wire).await,
        _ => Err(malformed("more than one framing header, or an unknown coding")),
    }
}

async fn read_chunks(wire: &mut Wire) -> Result<Bytes, NoRequest> {
    let mut body = BytesMut::new();
    loop {
        let line = take_line(wire).await?;
        let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
        let size = std::str::from_utf8(digits).ok().and_then(|digits| usize::from_str_radix(digits.trim(), 16).ok());
        let size = size.ok_or_else(|| malformed("chunk size is no number"))?;
        if size == 0 {
            // Trailers, up to an empty line.
            while !take_line(wire).await?.is_empty() {}
            return Ok(body.freeze());
        }
        if body.len().saturating_add(size) > BODY {
            return Err(malformed("body too long"));
        }
        body.extend_from_slice(&take(wire, size).await?);
        if !take_line(wire).await?.is_empty() {
            return Err(malformed("chunk longer than its size"));
        }
    }
}

async fn take(wire: &mut Wire, length: usize) -> Result<Bytes, NoRequest> {
    if length > BODY {
        return Err(malformed("body too long"));
    }
    while wire.inbox.len() < length {
        read_more(wire).await?;
    }
    Ok(wire.inbox.split_to(length).freeze())
}

/// A line without its CRLF.
async fn take_line(wire: &mut Wire) -> Result<Bytes, NoRequest> {
    loop {
        if let Some(end) = memchr::memmem::find(&wire.inbox, b"\r\n") {
            let line = wire.inbox.split_to(end).freeze();
            let _crlf = wire.inbox.split_to(2);
            return Ok(line);
        }
        if wire.inbox.len() > HEAD {
            return Err(malformed("line too long"));
        }
        read_more(wire).await?;
    }
}

async fn read_more(wire: &mut Wire) -> Result<(), NoRequest> {
    match wire.read().await {
        Ok(1..) => Ok(()),
        _ => Err(malformed("closed within the body")),
    }
}

fn parsed(head: Bytes, connection: usize) -> Result<Received, NoRequest> {
    // httparse takes a bare LF for a line's end; a client that writes one is wrong.
    let feeds = memchr::memchr_iter(b'\n', &head).count();
    if feeds != memchr::memmem::find_iter(&head, b"\r\n").count() {
        return Err(malformed("a line ends with a bare LF"));
    }
    let mut fields = vec![httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut fields);
    request.parse(&head).map_err(malformed)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = request.headers.iter().map(|field| (field.name.to_owned(), text(field.value))).collect();
    Ok(Received {
        method: request.method.unwrap_or_default().to_owned(),
        target: request.path.unwrap_or_default().to_owned(),
        version: request.version.unwrap_or(1),
        headers,
        body: Bytes::new(),
        connection,
        head: head.clone(),
    })
}

fn malformed(what: impl fmt::Display) -> NoRequest {
    NoRequest::Malformed(what.to_string())
}
