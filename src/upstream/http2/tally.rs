//! What went through a connection, in numbers: whether a request can have been sent, and whether a peer is silent.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tally {
    heard: AtomicU64,
    said: AtomicU64,
}

impl Tally {
    /// Bytes that were read.
    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Acquire)
    }

    /// How often something was to be written; a write that failed may have been half of one.
    pub(super) fn said(&self) -> u64 {
        self.said.load(Ordering::Acquire)
    }
}

/// A connection whose bytes are counted.
#[derive(Debug)]
pub(super) struct Counted<T> {
    io: T,
    tally: Arc<Tally>,
}

impl<T> Counted<T> {
    pub(super) fn new(io: T, tally: Arc<Tally>) -> Self {
        Self { io, tally }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.tally.heard.fetch_add((buf.filled().len() - before) as u64, Ordering::AcqRel);
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.tally.said.fetch_add(1, Ordering::AcqRel);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.tally.said.fetch_add(1, Ordering::AcqRel);
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
