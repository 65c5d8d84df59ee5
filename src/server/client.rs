//! The socket of a client, watched also while hyper does not read from it.
//!
//! hyper notices that a client has left by reading, and it does not read while bytes behind the request wait in its
//! buffer: a stray line end is enough. Whoever left then would keep a provider at work. So, while hyper is busy and does
//! not read, the socket's own word is asked for every [`LOOK_AFTER`]. A connection that is read costs nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// Between two looks at a socket that nobody reads.
const LOOK_AFTER: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Client {
    inner: TokioIo<TcpStream>,
    /// Whether hyper waits for bytes: then it hears of an end by itself.
    reading: bool,
    look: Option<Pin<Box<Sleep>>>,
}

impl Client {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { inner: TokioIo::new(stream), reading: false, look: None }
    }

    /// Whether the client has closed its side.
    fn has_left(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let ready = std::pin::pin!(self.inner.inner().ready(Interest::READABLE));
        matches!(ready.poll(&mut cx), Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    /// Looks after the client, unless hyper does.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if std::mem::take(&mut self.reading) {
            self.look = None;
            return Ok(());
        }
        let mut look = self.look.take().unwrap_or_else(|| Box::pin(sleep(LOOK_AFTER)));
        while look.as_mut().poll(cx).is_ready() {
            if self.has_left() {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            look.as_mut().reset(Instant::now() + LOOK_AFTER);
        }
        self.look = Some(look);
        Ok(())
    }
}

impl Read for Client {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.inner).poll_read(cx, buf);
        this.reading = read.is_pending();
        read
    }
}

impl Write for Client {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// hyper calls this at the end of each of its rounds.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.watch(cx)?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
