//! From a provider's place to an open byte stream: resolve, connect, tunnel, shake hands; each with its limit.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::error::{SendError, TunnelFault};
use super::{socks, tls, tunnel};
use crate::provider::{BaseUrl, Egress, EgressProxy, Provider, ProxyScheme, bracketed};

/// Wait before the next address is tried beside the first (RFC 8305 §5 recommends 250 ms).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// Limits of one dial.
#[derive(Clone, Copy, Debug)]
pub struct DialLimits {
    /// To a TCP connection, name resolution included.
    pub connect: Duration,
    /// To the end of a TLS handshake, and as long again to the peer's settings where HTTP/2 was chosen.
    pub tls: Duration,
}

/// An open stream to a provider.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// TLS with the provider inside TLS with its egress proxy.
    Nested(Box<TlsStream<Stream>>),
}

/// Opens a connection to a provider. `config` is for the provider; `proxies` is for an egress proxy, which is spoken to
/// in HTTP/1.1 whatever is offered to the provider.
pub(super) async fn dial(
    config: &Arc<ClientConfig>,
    proxies: &Arc<ClientConfig>,
    provider: &Provider,
    limits: DialLimits,
) -> Result<Stream, SendError> {
    let base = &provider.base;
    let stream = match &provider.egress {
        Egress::Direct => Stream::Plain(connect(&base.host, base.port, limits.connect).await?),
        Egress::Proxy(proxy) => through(proxies, proxy, base, limits).await.map_err(|failure| match failure {
            Failure::Proxy(fault) => SendError::Tunnel { proxy: provider.egress.to_string(), fault },
            Failure::Provider(error) => error,
        })?,
    };
    if !base.tls {
        return Ok(stream);
    }
    let secured = match stream {
        Stream::Plain(tcp) => {
            let stream = tls::handshake(config, &base.host, tcp, limits.tls).await;
            stream.map(|stream| Stream::Tls(Box::new(stream)))
        }
        outer => {
            let stream = tls::handshake(config, &base.host, outer, limits.tls).await;
            stream.map(|stream| Stream::Nested(Box::new(stream)))
        }
    };
    secured.map_err(|error| via(error, &provider.egress))
}

/// Whose failure it is that there is no way through a proxy.
enum Failure {
    Proxy(TunnelFault),
    Provider(SendError),
}

impl From<TunnelFault> for Failure {
    fn from(fault: TunnelFault) -> Self {
        Self::Proxy(fault)
    }
}

/// Opens a way to a provider through its egress proxy.
async fn through(
    config: &Arc<ClientConfig>,
    proxy: &EgressProxy,
    base: &BaseUrl,
    limits: DialLimits,
) -> Result<Stream, Failure> {
    match proxy.scheme {
        ProxyScheme::Http => {
            let stream = reach(proxy, limits.connect).await?;
            Ok(Stream::Plain(tunnel::open(stream, proxy, &base.host, base.port, limits.connect).await?))
        }
        ProxyScheme::Https => {
            let stream = reach(proxy, limits.connect).await?;
            let handshake = tls::handshake(config, &proxy.host, stream, limits.tls).await;
            let stream = handshake.map_err(|error| match error {
                SendError::Tls { reason, .. } => TunnelFault::Tls(reason),
                _ => TunnelFault::TlsTimeout,
            })?;
            let stream = tunnel::open(stream, proxy, &base.host, base.port, limits.connect).await?;
            Ok(Stream::Tls(Box::new(stream)))
        }
        ProxyScheme::Socks5h => {
            let stream = reach(proxy, limits.connect).await?;
            let place = socks::Place::named(&base.host, base.port);
            Ok(Stream::Plain(socks::open(stream, proxy, &place, limits.connect).await?))
        }
        ProxyScheme::Socks5 => Ok(Stream::Plain(resolved(proxy, base, limits.connect).await?)),
    }
}

/// Resolves the provider here and has a SOCKS proxy connect to it.
async fn resolved(proxy: &EgressProxy, base: &BaseUrl, limit: Duration) -> Result<TcpStream, Failure> {
    match tokio::time::timeout(limit, resolve(&base.host, base.port)).await {
        Ok(Ok(addresses)) => Ok(first_of(proxy, &addresses, limit).await?),
        Ok(Err(error)) => Err(Failure::Provider(error)),
        Err(_) => {
            let place = format!("{}:{}", bracketed(&base.host), base.port);
            Err(Failure::Provider(SendError::ConnectTimeout { place, limit }))
        }
    }
}

/// Has a SOCKS proxy connect to the first address or, where it does not, to the first of the other family: which of
/// the two the proxy reaches is not known here.
async fn first_of(proxy: &EgressProxy, addresses: &[SocketAddr], limit: Duration) -> Result<TcpStream, TunnelFault> {
    let first = addresses.first();
    let other = addresses.iter().find(|other| first.is_some_and(|first| first.is_ipv4() != other.is_ipv4()));
    let mut refusal = TunnelFault::Closed;
    for address in first.into_iter().chain(other) {
        let stream = reach(proxy, limit).await?;
        match socks::open(stream, proxy, &socks::Place::Address(*address), limit).await {
            Err(fault @ TunnelFault::Reply(_)) => refusal = fault,
            result => return result,
        }
    }
    Err(refusal)
}

/// Connects to the proxy itself.
async fn reach(proxy: &EgressProxy, limit: Duration) -> Result<TcpStream, TunnelFault> {
    connect(&proxy.host, proxy.port, limit).await.map_err(|error| match error {
        SendError::Connect { source, .. } => TunnelFault::Connect(source),
        SendError::Resolve { .. } => TunnelFault::Connect(Arc::new(io::ErrorKind::NotFound.into())),
        _ => TunnelFault::Timeout,
    })
}

/// Says through which proxy the handshake with a provider failed: it may be the one that broke it.
fn via(error: SendError, egress: &Egress) -> SendError {
    if matches!(egress, Egress::Direct) {
        return error;
    }
    let through = |host: String| format!("{host} through {egress}");
    match error {
        SendError::Tls { host, reason } => SendError::Tls { host: through(host), reason },
        SendError::TlsTimeout { host, limit } => SendError::TlsTimeout { host: through(host), limit },
        error => error,
    }
}

async fn connect(host: &str, port: u16, limit: Duration) -> Result<TcpStream, SendError> {
    let place = || format!("{}:{port}", bracketed(host));
    let failed = |source| SendError::Connect { place: place(), source: Arc::new(source) };
    let whole = async {
        let addresses = resolve(host, port).await?;
        race(&addresses).await.map_err(failed)
    };
    let stream = match tokio::time::timeout(limit, whole).await {
        Ok(result) => result?,
        Err(_) => return Err(SendError::ConnectTimeout { place: place(), limit }),
    };
    // Events are small and must not wait for an acknowledgement.
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, SendError> {
    let failed = |source: Option<io::Error>| SendError::Resolve { host: host.to_owned(), source: source.map(Arc::new) };
    let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await.map_err(|e| failed(Some(e)))?.collect();
    if found.is_empty() { Err(failed(None)) } else { Ok(found) }
}

/// Tries the addresses in order, the next one beside those before it after [`NEXT_ADDRESS`] or at once when all
/// have failed; the first connection wins.
async fn race(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut waiting = addresses.iter().copied();
    let mut running: Vec<Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>> = Vec::new();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    loop {
        let more = match waiting.next() {
            Some(address) => {
                running.push(Box::pin(TcpStream::connect(address)));
                true
            }
            None if running.is_empty() => return Err(last),
            None => false,
        };
        let first = std::future::poll_fn(|cx| poll_any(&mut running, &mut last, cx));
        let won = if more { tokio::time::timeout(NEXT_ADDRESS, first).await.unwrap_or(None) } else { first.await };
        if let Some(stream) = won {
            return Ok(stream);
        }
    }
}

/// Ready with a connection, or with `None` once nothing is running any longer.
fn poll_any(
    running: &mut Vec<Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>>,
    last: &mut io::Error,
    cx: &mut Context<'_>,
) -> Poll<Option<TcpStream>> {
    let mut won = None;
    running.retain_mut(|attempt| match attempt.as_mut().poll(cx) {
        Poll::Ready(Ok(stream)) => {
            won.get_or_insert(stream);
            false
        }
        Poll::Ready(Err(error)) => {
            *last = error;
            false
        }
        Poll::Pending => true,
    });
    if won.is_some() || running.is_empty() { Poll::Ready(won) } else { Poll::Pending }
}

impl Stream {
    /// Ready where a read may find something; TLS has buffers of its own, and is always asked.
    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Plain(stream) => stream.poll_read_ready(cx).map(drop),
            Self::Tls(_) | Self::Nested(_) => Poll::Ready(()),
        }
    }

    /// Whether the provider chose HTTP/2.
    pub(super) fn chose_http2(&self) -> bool {
        let chosen = match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
            Self::Nested(stream) => stream.get_ref().1.alpn_protocol(),
        };
        chosen == Some(tls::HTTP2)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Nested(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Nested(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Nested(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Nested(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Nested(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A SOCKS proxy that reaches addresses of one kind only; serves until it has granted or refused `count` requests,
    /// and returns their kinds.
    async fn one_family(listener: &TcpListener, kind: u8, count: usize) -> Vec<u8> {
        let mut asked = Vec::new();
        for _ in 0..count {
            let (mut tcp, _) = listener.accept().await.expect("a connection");
            let (mut greeting, mut request) = ([0; 3], [0; 64]);
            tcp.read_exact(&mut greeting).await.expect("a greeting");
            tcp.write_all(&[5, 0]).await.expect("room");
            let read = tcp.read(&mut request).await.expect("a request");
            assert!(matches!(read, 10 | 22), "{request:?}");
            asked.push(request[3]);
            let code = if request[3] == kind { 0 } else { 8 };
            tcp.write_all(&[5, code, 0, 1, 0, 0, 0, 0, 0, 0]).await.expect("room");
        }
        asked
    }

    #[tokio::test]
    async fn a_socks_proxy_that_knows_one_family_is_asked_for_an_address_of_that() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let (v4, more, v6) = (address("192.0.2.1:443"), address("192.0.2.2:443"), address("[2001:db8::1]:443"));
        for (addresses, kind, expected, opened) in [
            (vec![v4, more, v6], 1, vec![1], true),
            (vec![v4, more, v6], 4, vec![1, 4], true),
            (vec![v6, v4, more], 1, vec![4, 1], true),
            (vec![v4, more], 4, vec![1], false),
            (vec![v6, v4], 9, vec![4, 1], false),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let url = format!("socks5://{}", listener.local_addr().expect("bound"));
            let Ok(Egress::Proxy(proxy)) = Egress::parse(&url) else { panic!("{url}") };
            let limit = Duration::from_secs(5);
            let (asked, result) =
                tokio::join!(one_family(&listener, kind, expected.len()), first_of(&proxy, &addresses, limit));
            assert_eq!((asked, result.is_ok()), (expected, opened), "{addresses:?}: {result:?}");
        }
    }
}
