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
use super::{tls, tunnel};
use crate::provider::{Egress, Provider, ProxyScheme, bracketed};

/// Wait before the next address is tried beside the first (RFC 8305 §5 recommends 250 ms).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// Limits of one dial.
#[derive(Clone, Copy, Debug)]
pub struct DialLimits {
    /// To a TCP connection, name resolution included.
    pub connect: Duration,
    /// To the end of a TLS handshake.
    pub tls: Duration,
}

/// An open stream to a provider.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Opens a connection to a provider.
pub(super) async fn dial(
    config: &Arc<ClientConfig>,
    provider: &Provider,
    limits: DialLimits,
) -> Result<Stream, SendError> {
    let base = &provider.base;
    let stream = match &provider.egress {
        Egress::Direct => connect(&base.host, base.port, limits.connect).await?,
        Egress::Proxy(proxy) => {
            let fault = |fault| SendError::Tunnel { proxy: provider.egress.to_string(), fault };
            if proxy.scheme != ProxyScheme::Http {
                return Err(fault(TunnelFault::Unsupported));
            }
            let stream = connect(&proxy.host, proxy.port, limits.connect).await.map_err(|error| match error {
                SendError::Connect { source, .. } => fault(TunnelFault::Connect(source)),
                SendError::Resolve { .. } => fault(TunnelFault::Connect(io::ErrorKind::NotFound.into())),
                _ => fault(TunnelFault::Timeout),
            })?;
            tunnel::open(stream, proxy, &base.host, base.port, limits.connect).await.map_err(fault)?
        }
    };
    if !base.tls {
        return Ok(Stream::Plain(stream));
    }
    Ok(Stream::Tls(Box::new(tls::handshake(config, &base.host, stream, limits.tls).await?)))
}

async fn connect(host: &str, port: u16, limit: Duration) -> Result<TcpStream, SendError> {
    let place = || format!("{}:{port}", bracketed(host));
    let whole = async {
        let addresses = resolve(host, port).await?;
        race(&addresses).await.map_err(|source| SendError::Connect { place: place(), source })
    };
    let stream = match tokio::time::timeout(limit, whole).await {
        Ok(result) => result?,
        Err(_) => return Err(SendError::ConnectTimeout { place: place(), limit }),
    };
    // Events are small and must not wait for an acknowledgement.
    stream.set_nodelay(true).map_err(|source| SendError::Connect { place: place(), source })?;
    Ok(stream)
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, SendError> {
    let failed = |source| SendError::Resolve { host: host.to_owned(), source };
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

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
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
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
