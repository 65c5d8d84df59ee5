//! The socket: plain or TLS, read and written by one task, which must notice at any time that the peer has left.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// How long a peer may take to close after the last word.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(1);

/// What the peer may send ahead while a script runs; more stays in the socket's buffers.
const AHEAD: usize = 256 * 1024;

/// One connection, and what has been read from it and not yet used.
pub(super) struct Wire {
    stream: Stream,
    pub(super) inbox: BytesMut,
}

/// The bare stream.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The peer closed its side or reset the connection.
#[derive(Debug)]
pub(super) struct Departed;

impl Wire {
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self { stream: Stream::Plain(stream), inbox: BytesMut::new() }
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>) -> Self {
        Self { stream: Stream::Tls(Box::new(stream)), inbox: BytesMut::new() }
    }

    /// The bare stream and what was read ahead.
    pub(super) fn into_parts(self) -> (Stream, BytesMut) {
        (self.stream, self.inbox)
    }

    /// Reads more into the inbox; 0 at the end.
    pub(super) async fn read(&mut self) -> io::Result<usize> {
        self.stream.read_buf(&mut self.inbox).await
    }

    /// Writes all of it, at most `size` bytes at a time.
    pub(super) async fn write(&mut self, bytes: &[u8], size: Option<usize>) -> Result<(), Departed> {
        for mut piece in bytes.chunks(size.unwrap_or(usize::MAX)) {
            while !piece.is_empty() {
                let written = poll_fn(|cx| self.poll_write(cx, piece)).await?;
                piece = piece.get(written..).unwrap_or_default();
            }
            self.stream.flush().await.map_err(|_| Departed)?;
            if size.is_some() {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// Returns when the peer has left. Safe to drop: what has arrived is in the inbox.
    pub(super) async fn departure(&mut self) -> Departed {
        poll_fn(|cx| self.poll_departure(cx)).await
    }

    /// Reads and drops until the peer has left.
    pub(super) async fn drain(&mut self) {
        self.inbox.clear();
        while matches!(self.read().await, Ok(1..)) {
            self.inbox.clear();
        }
    }

    /// The polite end, and whether the peer is gone or resets, within a moment, instead of closing too.
    pub(super) async fn close_unread(&mut self) -> bool {
        if self.part().await.is_err() {
            return true;
        }
        let end = async {
            loop {
                self.inbox.clear();
                match self.read().await {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(_) => return true,
                }
            }
        };
        tokio::time::timeout(FAREWELL, end).await.unwrap_or(false)
    }

    /// The polite end.
    pub(super) async fn close(&mut self) {
        let _ = self.part().await;
    }

    /// The same; an error = the peer is gone already, and there is nobody to be polite to.
    async fn part(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// FIN alone, without a word of TLS.
    pub(super) async fn cut(&mut self) {
        let _ = match &mut self.stream {
            Stream::Plain(tcp) => tcp.shutdown().await,
            Stream::Tls(tls) => tls.get_mut().0.shutdown().await,
        };
    }

    /// RST.
    pub(super) fn reset(self) {
        let tcp = match &self.stream {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref().0,
        };
        // With this option, dropping the socket resets it.
        let _ = tcp.set_zero_linger();
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Departed>> {
        match Pin::new(&mut self.stream).poll_write(cx, bytes) {
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Err(Departed)),
            Poll::Ready(Ok(written)) => Poll::Ready(Ok(written)),
            Poll::Pending => self.poll_departure(cx).map(Err),
        }
    }

    fn poll_departure(&mut self, cx: &mut Context<'_>) -> Poll<Departed> {
        while self.inbox.len() < AHEAD {
            let mut space = [0; 4096];
            let mut read = ReadBuf::new(&mut space);
            match Pin::new(&mut self.stream).poll_read(cx, &mut read) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !read.filled().is_empty() => self.inbox.extend_from_slice(read.filled()),
                Poll::Ready(_) => return Poll::Ready(Departed),
            }
        }
        Poll::Pending
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, into),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
