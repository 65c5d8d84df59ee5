//! Response heads, strictly: what cannot be framed with certainty is a fault of the provider.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::chunked::Decoder;
use crate::upstream::error::HeadFault;

/// Largest response head, in bytes.
pub const HEAD_LIMIT: usize = 64 * 1024;
/// Most header fields of a response.
pub const HEADER_LIMIT: usize = 100;

/// A final response head, and how its body is delimited.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) framing: Framing,
    /// Whether the connection may serve another request after the body.
    pub(super) keep_alive: bool,
}

/// How a body ends (RFC 9112 §6.3).
#[derive(Debug)]
pub(in crate::upstream) enum Framing {
    /// After so many further bytes.
    Length(u64),
    /// At the last chunk.
    Chunked(Decoder),
    /// With the connection; a cut cannot be told from an end.
    Close,
}

/// Takes one head off the front of `buffer`; `None` = more bytes are needed. Interim (1xx) heads are returned too.
pub(super) fn take(buffer: &mut BytesMut, head_request: bool) -> Result<Option<Head>, HeadFault> {
    let mut fields = [const { MaybeUninit::uninit() }; HEADER_LIMIT];
    let mut response = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    let length = match parser.parse_response_with_uninit_headers(&mut response, buffer, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if buffer.len() < HEAD_LIMIT => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(HeadFault::TooLarge),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadFault::TooMany),
        Err(_) => return Err(HeadFault::Syntax),
    };
    if length > HEAD_LIMIT {
        return Err(HeadFault::TooLarge);
    }
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(HeadFault::Syntax)?;
    let http10 = response.version == Some(0);
    // Values are slices of the head's own bytes: note where each one lies, then share them.
    let start = buffer.as_ptr() as usize;
    let place = |part: &[u8]| {
        let from = if part.is_empty() { 0 } else { (part.as_ptr() as usize).wrapping_sub(start) };
        // No head is longer than its limit.
        u16::try_from(from).ok().zip(u16::try_from(part.len()).ok()).ok_or(HeadFault::TooLarge)
    };
    let mut places = [((0, 0), (0, 0)); HEADER_LIMIT];
    let count = response.headers.len();
    for (field, noted) in response.headers.iter().zip(&mut places) {
        *noted = (place(field.name.as_bytes())?, place(field.value)?);
    }
    let bytes = buffer.split_to(length).freeze();
    let mut headers = HeaderMap::with_capacity(count);
    for (name, value) in places.into_iter().take(count) {
        let range = |(from, length): (u16, u16)| usize::from(from)..usize::from(from) + usize::from(length);
        let name = bytes.get(range(name)).unwrap_or_default();
        let name = HeaderName::from_bytes(name).map_err(|_| HeadFault::Syntax)?;
        let value = if value.1 == 0 { Bytes::new() } else { bytes.slice(range(value)) };
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| HeadFault::Syntax)?;
        headers.append(name, value);
    }
    let (framing, keep_alive) = framing(status, &headers, http10, head_request)?;
    Ok(Some(Head { status, headers, framing, keep_alive }))
}

fn framing(
    status: StatusCode,
    headers: &HeaderMap,
    http10: bool,
    head_request: bool,
) -> Result<(Framing, bool), HeadFault> {
    let length = content_length(headers)?;
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let encoding = encodings.next();
    if encodings.next().is_some() || encoding.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(HeadFault::Encoding);
    }
    if encoding.is_some() && length.is_some() {
        return Err(HeadFault::Both);
    }
    if encoding.is_some() && http10 {
        return Err(HeadFault::Encoding);
    }
    let keep_alive = !http10 && !mentions(headers, "close") && status != StatusCode::SWITCHING_PROTOCOLS;
    Ok(match (is_bodiless(status, head_request), encoding, length) {
        (true, _, _) => (Framing::Length(0), keep_alive),
        (false, Some(_), _) => (Framing::Chunked(Decoder::default()), keep_alive),
        (false, None, Some(length)) => (Framing::Length(length), keep_alive),
        (false, None, None) => (Framing::Close, false),
    })
}

/// Whether no body follows, whatever the head says (RFC 9110 §6.4.1).
pub(in crate::upstream) fn is_bodiless(status: StatusCode, head_request: bool) -> bool {
    head_request || status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// The one length that a head announces.
pub(in crate::upstream) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, HeadFault> {
    let mut found = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        let text = value.to_str().map_err(|_| HeadFault::Length)?;
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(HeadFault::Length);
        }
        let length: u64 = text.parse().map_err(|_| HeadFault::Length)?;
        if found.is_some_and(|other| other != length) {
            return Err(HeadFault::Length);
        }
        found = Some(length);
    }
    Ok(found)
}

fn mentions(headers: &HeaderMap, token: &str) -> bool {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(token))
}

/// What must hold for any bytes in the place of a head: however they are cut into reads, the answer is the same, and
/// what is accepted can be framed in one way only. For fuzzing and for the replay of its corpus.
pub fn check_any(bytes: &[u8]) {
    for head_request in [false, true] {
        let mut rest = BytesMut::from(bytes);
        let whole = take(&mut rest, head_request);
        let said = |found: &Result<Option<Head>, HeadFault>| found.as_ref().map(|head| format!("{head:?}")).ok();
        // Each read begins at the front again.
        for size in [1, 7, 1000].into_iter().filter(|size| bytes.len() / size <= 2048) {
            let (mut buffer, mut found) = (BytesMut::new(), Ok(None));
            for piece in bytes.chunks(size) {
                buffer.extend_from_slice(piece);
                if matches!(found, Ok(None)) {
                    found = take(&mut buffer, head_request);
                }
            }
            assert_eq!(said(&found), said(&whole), "in pieces of {size}");
            assert!(whole.is_err() || rest == buffer, "{} bytes are left, or {}", rest.len(), buffer.len());
        }
        let Ok(Some(Head { status, headers, framing, keep_alive })) = whole else { continue };
        let values = |name| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
        let (lengths, codings) = (values(CONTENT_LENGTH), values(TRANSFER_ENCODING));
        assert!(lengths.is_empty() || codings.is_empty(), "two framings");
        assert!(codings.is_empty() || matches!(&codings[..], [one] if one.eq_ignore_ascii_case(b"chunked")));
        let number = |value: &&[u8]| value.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit & 15));
        let bodiless = head_request || status.is_informational() || matches!(status.as_u16(), 204 | 304);
        assert!(headers.len() <= HEADER_LIMIT && (bytes.len() - rest.len()) <= HEAD_LIMIT);
        match framing {
            Framing::Length(length) if bodiless => assert_eq!(length, 0),
            Framing::Length(length) => {
                assert!(!lengths.is_empty() && lengths.iter().all(|value| number(value) == length), "{length}");
            }
            Framing::Chunked(_) => assert!(!bodiless && !codings.is_empty()),
            Framing::Close => assert!(lengths.is_empty() && codings.is_empty() && !keep_alive),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &str) -> Result<Option<Head>, HeadFault> {
        take(&mut BytesMut::from(head.as_bytes()), false)
    }

    #[test]
    fn heads_that_cannot_be_framed_with_certainty_are_faults() {
        let cases = [
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", HeadFault::Both),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n", HeadFault::Length),
            ("HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\n", HeadFault::Length),
            ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n", HeadFault::Length),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", HeadFault::Encoding),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
                HeadFault::Encoding,
            ),
            ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", HeadFault::Encoding),
            ("HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n", HeadFault::Syntax),
            ("HTTP/1.1 200 OK\r\nx: \0\r\n\r\n", HeadFault::Syntax),
            ("SSH-2.0-OpenSSH_9\r\n\r\n", HeadFault::Syntax),
            ("HTTP/2 200\r\n\r\n", HeadFault::Syntax),
        ];
        for (text, fault) in cases {
            assert_eq!(read(text).expect_err(text), fault, "{text}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(101));
        assert_eq!(read(&many).expect_err("many"), HeadFault::TooMany);
        let large = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(HEAD_LIMIT));
        assert_eq!(read(&large).expect_err("large"), HeadFault::TooLarge);
    }

    #[test]
    fn framing_and_persistence_follow_the_head() {
        let head = read("HTTP/1.1 529 \r\ncontent-length: 3\r\nX-A: b\r\n\r\nabc").expect("valid").expect("whole");
        assert_eq!((head.status.as_u16(), head.keep_alive), (529, true));
        assert!(matches!(head.framing, Framing::Length(3)));
        assert_eq!(head.headers["x-a"], "b");
        let head =
            read("HTTP/1.1 200 OK\r\nconnection: x, Close\r\ntransfer-encoding: chunked\r\n\r\n").unwrap().unwrap();
        assert!(matches!(head.framing, Framing::Chunked(_)) && !head.keep_alive);
        let head = read("HTTP/1.1 200 OK\r\n\r\n").unwrap().unwrap();
        assert!(matches!(head.framing, Framing::Close) && !head.keep_alive);
        assert!(read("HTTP/1.1 200 OK\r\ncontent-le").unwrap().is_none());
    }
}
