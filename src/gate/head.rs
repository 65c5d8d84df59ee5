//! The head of a request as it is on the wire, before any parser has smoothed it: hyper drops a length beside a coding
//! and a second, equal length, reads bare line feeds, and answers what it refuses in a shape of its own. What is let
//! through here, hyper accepts.

use std::mem::MaybeUninit;
use std::ops::Range;

use http::{Method, Uri};
use httparse::{Request, Status};

/// Largest head, in bytes.
pub const HEAD_LIMIT: usize = 64 * 1024;
/// Most header fields.
pub const FIELD_LIMIT: usize = 100;
/// No body is that long; what follows such a head is of no interest.
const LENGTH_LIMIT: u64 = 1 << 60;

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// Why a connection is not read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not HTTP/1.
    #[error("the request is not valid HTTP/1.1")]
    Malformed,
    /// The first bytes of a TLS handshake.
    #[error("this port speaks plain HTTP, and was spoken to in TLS; use http:// in the URL")]
    Tls,
    /// A line that does not end with CR LF.
    #[error("every line of a request head must end with CR LF")]
    LineEnd,
    /// A target that is no URI.
    #[error("the request target is malformed")]
    Target,
    /// A body whose length two readers might understand differently.
    #[error("the framing of the request body is ambiguous or malformed")]
    Framing,
    /// A body that nobody could read.
    #[error("the announced request body is too large")]
    Length,
    /// Over [`HEAD_LIMIT`] or [`FIELD_LIMIT`].
    #[error("the request head has more than 100 fields or is larger than 64 KiB")]
    TooLarge,
    /// It did not arrive in time.
    #[error("the request head did not arrive in time")]
    Slow,
}

/// Looks for the end of a head: the position behind its empty line. `seen` bytes were looked through before.
///
/// # Errors
/// A line feed without its carriage return, or more bytes than a head may have.
pub fn end(bytes: &[u8], seen: usize) -> Result<Option<usize>, Fault> {
    if bytes.first() == Some(&0x16) {
        return Err(Fault::Tls);
    }
    let from = ordinary(bytes, seen);
    let fresh = bytes.get(from..).unwrap_or_default();
    for at in memchr::memchr_iter(b'\n', fresh).map(|at| at + from) {
        match bytes.get(at.saturating_sub(3)..at) {
            Some([.., b'\r', b'\n', b'\r']) => {
                return if at < HEAD_LIMIT { Ok(Some(at + 1)) } else { Err(Fault::TooLarge) };
            }
            Some([.., b'\r']) => {}
            _ => return Err(Fault::LineEnd),
        }
    }
    if bytes.len() < HEAD_LIMIT { Ok(None) } else { Err(Fault::TooLarge) }
}

/// Where to look on: between `seen` and there all lines that end do so with CR LF, and none of them is empty.
fn ordinary(bytes: &[u8], seen: usize) -> usize {
    const BLOCK: usize = 64;
    // What a line feed means is told by the two bytes before it.
    let mut at = seen.max(2);
    if bytes.iter().take(2).any(|&byte| byte == b'\n') {
        return seen;
    }
    let mut rest = bytes.get(at - 2..).unwrap_or_default();
    while let Some((block, _)) = rest.split_first_chunk::<{ 2 + BLOCK }>() {
        let threes = block.iter().zip(&block[1..]).zip(&block[2..]);
        // No early exit inside of a block, so that many bytes are looked at at once.
        let odd = threes.fold(false, |odd, ((first, second), third)| {
            odd | ((*third == b'\n') & ((*second != b'\r') | (*first == b'\n')))
        });
        if odd {
            return at;
        }
        at += BLOCK;
        rest = rest.get(BLOCK..).unwrap_or_default();
    }
    at.min(bytes.len().max(seen))
}

/// What a head says of its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// What follows.
    pub framing: Framing,
    /// The line that tells it, of all the head; empty where none does.
    pub told_by: Range<usize>,
    /// The client wants to be asked for it first (`expect: 100-continue`).
    pub waits: bool,
}

/// Reads a whole head, for what follows it.
///
/// # Errors
/// What hyper would refuse, and what it would take although two readers might understand it differently.
pub fn check(head: &[u8]) -> Result<Head, Fault> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELD_LIMIT];
    let mut request = Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut fields) {
        Ok(Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Fault::TooLarge),
        Ok(Status::Partial) | Err(_) => return Err(Fault::Malformed),
    }
    let method = request.method.unwrap_or_default();
    let common = matches!(method, "GET" | "HEAD" | "POST" | "DELETE");
    if !common && Method::from_bytes(method.as_bytes()).is_err() {
        return Err(Fault::Malformed);
    }
    let target = request.path.unwrap_or_default();
    // A fragment is the client's own (RFC 9112 §3.2); the parser behind us would drop it without a word.
    if !is_plain(target) && (target.contains('#') || Uri::try_from(target).is_err()) {
        return Err(Fault::Target);
    }
    let (mut length, mut coded, mut waits, mut told_by) = (None, false, false, 0..0);
    for field in request.headers.iter() {
        // Nearly all write it in small letters, and those compare at once.
        let is = |name: &str| field.name == name || field.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            if length.replace(canonical(field.value)?).is_some() {
                return Err(Fault::Framing);
            }
            told_by = line(head, field);
        } else if is("transfer-encoding") {
            if std::mem::replace(&mut coded, true) || !field.value.eq_ignore_ascii_case(b"chunked") {
                return Err(Fault::Framing);
            }
            told_by = line(head, field);
        } else if is("expect") {
            // HTTP/1.0 knows no interim answers.
            waits |= request.version == Some(1) && field.value.eq_ignore_ascii_case(b"100-continue");
        }
    }
    let framing = match (length, coded) {
        (Some(_), true) => return Err(Fault::Framing),
        // An HTTP/1.0 reader between us and the client would not know chunks.
        (None, true) if request.version != Some(1) => return Err(Fault::Framing),
        (None, true) => Framing::Chunked,
        (length, false) => Framing::Length(length.unwrap_or(0)),
    };
    Ok(Head { framing, told_by, waits })
}

/// The line of a field in its head, with its end.
fn line(head: &[u8], field: &httparse::Header<'_>) -> Range<usize> {
    let start = field.name.as_ptr().addr() - head.as_ptr().addr();
    let behind = field.value.as_ptr().addr() - head.as_ptr().addr() + field.value.len();
    let end = memchr::memchr(b'\n', head.get(behind..).unwrap_or_default()).map_or(head.len(), |at| behind + at + 1);
    start..end
}

/// A path of characters that no reader of URIs minds.
fn is_plain(target: &str) -> bool {
    // From `&` to `;` are the digits and the rest of the marks.
    let plain = |byte: u8| {
        byte.is_ascii_alphabetic()
            || matches!(byte, b'&'..=b';' | b'=' | b'?' | b'@' | b'_' | b'~' | b'!' | b'$' | b'%')
    };
    target.starts_with('/') && target.bytes().all(plain)
}

fn canonical(value: &[u8]) -> Result<u64, Fault> {
    let digits =
        !value.is_empty() && value.iter().all(u8::is_ascii_digit) && (value == b"0" || !value.starts_with(b"0"));
    let number = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
    match number.ok_or(Fault::Framing)? {
        length if length > LENGTH_LIMIT => Err(Fault::Length),
        length => Ok(length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_end_is_found_in_blocks_as_it_is_line_by_line(
            lines in prop::collection::vec((prop_oneof![0_usize..4, 0_usize..150], 0_usize..12), 0..9),
            seen in any::<prop::sample::Index>(),
        ) {
            const ENDS: [&str; 4] = ["\r\n\r\n", "\n", "\r\n\n", "\r"];
            let text: String =
                lines.iter().map(|(length, end)| "a".repeat(*length) + ENDS.get(*end).unwrap_or(&"\r\n")).collect();
            let mut wanted = Ok(None);
            for (at, _) in text.match_indices('\n') {
                let line = &text[..at];
                if !line.ends_with('\r') || line.ends_with("\r\n\r") {
                    wanted = if line.ends_with('\r') { Ok(Some(at + 1)) } else { Err(Fault::LineEnd) };
                    break;
                }
            }
            prop_assert_eq!(end(text.as_bytes(), 0), wanted);
            // What was looked through before had no end.
            let before = match wanted {
                Ok(Some(end)) => end,
                Ok(None) => text.len() + 1,
                Err(_) => text.find("\n").map_or(0, |first| first + 1),
            };
            let seen = seen.index(before.max(1));
            prop_assert_eq!(end(text.as_bytes(), seen), wanted, "from {}", seen);
        }
    }

    #[test]
    fn the_end_is_found_however_the_bytes_arrive() {
        let head = b"GET / HTTP/1.1\r\nhost: a\r\n\r\nrest";
        let length = head.len() - 4;
        assert_eq!(end(head, 0), Ok(Some(length)));
        for cut in 0..length {
            assert_eq!(end(&head[..cut], 0), Ok(None), "{cut}");
            assert_eq!(end(head, cut), Ok(Some(length)), "{cut}");
        }
    }

    #[test]
    fn bare_line_feeds_and_endless_heads_are_refused() {
        for text in
            ["GET / HTTP/1.1\nhost: a\n\n", "GET / HTTP/1.1\r\nhost: a\n\r\n", "GET / HTTP/1.1\r\nhost: a\r\n\n", "\n"]
        {
            assert_eq!(end(text.as_bytes(), 0), Err(Fault::LineEnd), "{text:?}");
        }
        assert_eq!(end(&vec![b'a'; HEAD_LIMIT], 0), Err(Fault::TooLarge));
        assert_eq!(end(&vec![b'a'; HEAD_LIMIT - 1], 0), Ok(None));
        assert_eq!(end(b"\x16\x03\x01", 0), Err(Fault::Tls));
    }

    #[test]
    fn lengths_are_one_and_canonical() {
        let framing = |fields: &str| {
            let head = format!("POST /v1/x HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n");
            check(head.as_bytes()).map(|read| read.framing)
        };
        assert_eq!(framing("content-length: 12"), Ok(Framing::Length(12)));
        assert_eq!(framing("content-length: 0"), Ok(Framing::Length(0)));
        assert_eq!(framing("Transfer-Encoding:  Chunked "), Ok(Framing::Chunked));
        assert_eq!(framing("x: y"), Ok(Framing::Length(0)));
        for value in ["+5", "-5", "0x5", "05", "5, 5", "5,5", "", "5 5", "five", "99999999999999999999"] {
            assert_eq!(framing(&format!("content-length: {value}")), Err(Fault::Framing), "{value}");
        }
        assert_eq!(framing("content-length: 18446744073709551615"), Err(Fault::Length));
        for fields in [
            "content-length: 5\r\nContent-Length: 5",
            "content-length: 5\r\ntransfer-encoding: chunked",
            "transfer-encoding: chunked\r\ncontent-length: 5",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "transfer-encoding: chunked, chunked",
            "transfer-encoding: gzip, chunked",
            "transfer-encoding: ,chunked",
            "transfer-encoding: identity",
            "transfer-encoding:",
        ] {
            assert_eq!(framing(fields), Err(Fault::Framing), "{fields}");
        }
        let old = b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(check(old), Err(Fault::Framing));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for text in [
            "PRI * HTTP/2.0\r\n\r\n",
            "GET / HTTP/3.0\r\n\r\n",
            "GET /\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nx : y\r\n\r\n",
            "GET / HTTP/1.1\r\nx: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\nx: a\0\r\n\r\n",
            "GET / HTTP/1.1\r\nx: a\rb\r\n\r\n",
        ] {
            assert_eq!(check(text.as_bytes()), Err(Fault::Malformed), "{text:?}");
        }
        assert_eq!(check(b"GET v1 x HTTP/1.1\r\n\r\n"), Err(Fault::Malformed));
        assert_eq!(check(b"GET /<x> HTTP/1.1\r\n\r\n").is_err(), Uri::try_from("/<x>").is_err());
        let many = "x: y\r\n".repeat(FIELD_LIMIT + 1);
        assert_eq!(check(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()), Err(Fault::TooLarge));
    }
}
