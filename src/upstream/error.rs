//! What can go wrong between us and a provider, as facts: what was being done, whether anything was sent, what was
//! received. What each means for the request is decided in `proxy::verdict`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A failure before a response head was complete. One failed dial may be that of several requests, so it is shared.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SendError {
    /// The name has no address.
    #[error("cannot resolve {host}")]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's word.
        #[source]
        source: Option<Arc<io::Error>>,
    },
    /// No TCP connection.
    #[error("cannot connect to {place}: {}", brief(.source))]
    Connect {
        /// `host:port`.
        place: String,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// No TCP connection in time.
    #[error("no connection to {place} within {limit:?}")]
    ConnectTimeout {
        /// `host:port`.
        place: String,
        /// The limit.
        limit: Duration,
    },
    /// The TLS handshake failed.
    #[error("TLS with {host} failed: {reason}")]
    Tls {
        /// The name that was asked for.
        host: String,
        /// Why, in the TLS library's words (which hold no credential).
        reason: String,
    },
    /// No TLS handshake in time.
    #[error("no TLS handshake with {host} within {limit:?}")]
    TlsTimeout {
        /// The name that was asked for.
        host: String,
        /// The limit.
        limit: Duration,
    },
    /// No connection in HTTP/2 after a handshake that chose it.
    #[error("HTTP/2 with {host} failed: {reason}")]
    Http2 {
        /// The name that was asked for.
        host: String,
        /// Why.
        reason: String,
    },
    /// No leave to open a stream in HTTP/2 in time.
    #[error("no HTTP/2 connection with {host} within {limit:?}")]
    Http2Timeout {
        /// The name that was asked for.
        host: String,
        /// The limit.
        limit: Duration,
    },
    /// The egress proxy did not open a tunnel.
    #[error("egress proxy {proxy}: {fault}")]
    Tunnel {
        /// `scheme://host:port`, without credentials.
        proxy: String,
        /// What it did.
        fault: TunnelFault,
    },
    /// The connection ended before any byte of an answer.
    #[error("the connection ended before an answer{}", if *.reused { " (it had been idle)" } else { "" })]
    Closed {
        /// Whether it had served a request before.
        reused: bool,
        /// Whether any byte of the request was written.
        sent: bool,
        /// The error, unless it was a plain end.
        #[source]
        source: Option<Arc<io::Error>>,
    },
    /// The provider put an end to the request, which was a stream of HTTP/2, and not to its connection, or not yet.
    #[error("the provider {} the request ({reason})", if *.unprocessed { "refused to take" } else { "reset" })]
    Reset {
        /// The name of the error code (RFC 9113 §7).
        reason: String,
        /// Whether the provider says that it did nothing with the request (RFC 9113 §8.7).
        unprocessed: bool,
    },
    /// The response head cannot be read.
    #[error("malformed answer: {0}")]
    MalformedHead(HeadFault),
    /// The client's own body broke while it was passed on.
    #[error("the client's request body {}", if *.slow { "did not arrive in time" } else { "ended early" })]
    RequestBody {
        /// It did not get on, and was given up.
        slow: bool,
    },
}

/// What is wrong with a response head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadFault {
    /// No HTTP/1 head.
    #[error("no HTTP/1 response head")]
    Syntax,
    /// Over [`super::http1::HEAD_LIMIT`] bytes.
    #[error("the head is larger than 64 KiB")]
    TooLarge,
    /// Over [`super::http1::HEADER_LIMIT`] fields.
    #[error("more than 100 header fields")]
    TooMany,
    /// The end came inside the head.
    #[error("the head ended early")]
    Incomplete,
    /// `content-length` is no single number.
    #[error("invalid content-length")]
    Length,
    /// `transfer-encoding` is anything but `chunked`.
    #[error("unsupported transfer-encoding")]
    Encoding,
    /// Both (RFC 9112 §6.3: a smuggling sign).
    #[error("content-length and transfer-encoding together")]
    Both,
    /// Anything that RFC 9113 §8.1 to §8.3 call malformed, or a head that is larger than 64 KiB.
    #[error("it breaks the rules of HTTP/2")]
    Http2,
    /// Over sixteen 1xx answers.
    #[error("too many interim answers")]
    Interim,
}

/// Why a tunnel was not opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TunnelFault {
    /// It cannot be reached.
    #[error("cannot connect: {}", brief(.0))]
    Connect(Arc<io::Error>),
    /// It answered something else than 2xx.
    #[error("answered {0} to CONNECT{hint}", hint = if *.0 == 407 { "; check the user and password of `proxy`" } else { "" })]
    Refused(u16),
    /// It ended the connection.
    #[error("closed the connection")]
    Closed,
    /// It said nothing in time.
    #[error("no answer in time")]
    Timeout,
    /// Not HTTP, or bytes after the head.
    #[error("answered something that is not HTTP")]
    Malformed,
    /// The TLS handshake with the proxy itself failed; why, in the TLS library's words.
    #[error("TLS with it failed: {0}{hint}", hint = not_tls(.0))]
    Tls(String),
    /// No TLS handshake with the proxy itself in time.
    #[error("no TLS handshake in time")]
    TlsTimeout,
    /// A SOCKS proxy that lets nobody in without a login; there is none in `proxy`.
    #[error("wants a login; add a user and password to `proxy`")]
    NoLogin,
    /// A SOCKS proxy that accepts neither of the two ways that are spoken here.
    #[error("accepts neither a login by user and password nor none")]
    NoMethod,
    /// A SOCKS proxy did not accept the login.
    #[error("refused the login; check the user and password of `proxy`")]
    Login,
    /// A SOCKS proxy could not or would not connect; its reply code.
    #[error("{}", reply(*.0))]
    Reply(u8),
    /// Not SOCKS5, or bytes after the reply.
    #[error("answered something that is not SOCKS5; check the scheme and port of `proxy`")]
    NotSocks,
}

/// A SOCKS5 reply code (RFC 1928 §6) in words.
fn reply(code: u8) -> String {
    let what = match code {
        1 => "a general failure",
        2 => "its rules do not allow it",
        3 => "the network is unreachable",
        4 => "the host is unreachable",
        5 => "the connection was refused",
        6 => "the time to live expired",
        7 => "it does not know CONNECT",
        8 => "it does not know this type of address; where it is a name, write socks5:// instead of socks5h://",
        _ => return format!("cannot connect to the provider: unknown reply code {code}"),
    };
    format!("cannot connect to the provider: {what}")
}

/// The usual reason why an answer is not TLS at all.
fn not_tls(reason: &str) -> &'static str {
    if reason.contains("InvalidContentType") { "; if it speaks plain HTTP, write http:// in `proxy`" } else { "" }
}

/// A failure inside a response body.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection ended before the body did.
    #[error("the answer was cut off")]
    Cut(#[source] Option<io::Error>),
    /// The framing is broken: the chunks, or the frames of HTTP/2 and the length that was announced.
    #[error("the answer's framing is broken")]
    Framing,
}

impl SendError {
    /// Whether the provider cannot have seen the request, or says that it did not look at it.
    pub fn nothing_sent(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Tls { .. }
            | Self::TlsTimeout { .. }
            | Self::Http2 { .. }
            | Self::Http2Timeout { .. }
            | Self::Tunnel { .. } => true,
            Self::Closed { sent, .. } => !sent,
            Self::Reset { unprocessed, .. } => *unprocessed,
            Self::MalformedHead(_) | Self::RequestBody { .. } => false,
        }
    }

    /// Whether there was no descriptor left for a connection, in this process or in the system.
    pub(super) fn is_want_of_descriptors(&self) -> bool {
        match self {
            Self::Connect { source, .. }
            | Self::Resolve { source: Some(source), .. }
            | Self::Tunnel { fault: TunnelFault::Connect(source), .. } => is_want_of_descriptors(source),
            _ => false,
        }
    }
}

#[cfg(unix)]
fn is_want_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

#[cfg(not(unix))]
fn is_want_of_descriptors(_: &io::Error) -> bool {
    false
}

/// The kind of an I/O error in plain words; the operating system's text names no more.
fn brief(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset => "connection reset".into(),
        io::ErrorKind::TimedOut => "timed out".into(),
        _ => error.to_string(),
    }
}
