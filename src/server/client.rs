//! The socket of a client, as hyper sees it: what it reads are heads, which [`Inflow`] has looked at before, for hyper
//! smooths what two readers might understand differently, and has no limit for slow bodies and slow readers.
//!
//! * Instead of a head that is refused, hyper gets a stand-in; so the refusal has our shape and stands in its place behind
//!   the answers to earlier requests. Nothing that follows on the connection is read.
//! * hyper gets one head at a time, and no body.
//! * Readers that do not get on are given up.
//! * Whoever leaves must not keep a provider at work, and nobody may be reading while a request is at work. So the
//!   socket's own word is waited for then; where bytes behind the request wait, which would hide it, it is asked for
//!   every [`LOOK_AFTER`].

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::{Instant, Sleep, sleep};

use super::Limits;
use crate::inflow::{Inflow, Timer, Times};

/// Between two looks at a socket that has bytes which nobody reads.
const LOOK_AFTER: Duration = Duration::from_millis(100);
/// The permission to send a body.
const PERMISSION: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

#[derive(Debug)]
pub(super) struct Client {
    outflow: OwnedWriteHalf,
    inflow: Inflow,
    /// What is left to write of a [`PERMISSION`].
    permission: &'static [u8],
    /// How long a write may take to get on.
    write_time: Duration,
    writing: Timer,
    /// Until when the pending write must get on.
    stuck: Option<Instant>,
    lingering: Option<Instant>,
    look: Option<Pin<Box<Sleep>>>,
}

impl Client {
    pub(super) fn new(socket: TcpStream, limits: &Limits) -> Self {
        let times = Times { idle: limits.idle_time, head: limits.head_time, body: limits.body_time };
        let (read, write) = socket.into_split();
        Self {
            outflow: write,
            inflow: Inflow::new(read, times),
            permission: &[],
            write_time: limits.write_time,
            writing: Timer::default(),
            stuck: None,
            lingering: None,
            look: None,
        }
    }

    /// For who answers.
    pub(super) fn inflow(&self) -> Inflow {
        self.inflow.clone()
    }

    /// Whether the client has closed its side.
    fn has_left(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let ready = std::pin::pin!(self.outflow.ready(Interest::READABLE));
        matches!(ready.poll(&mut cx), Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    /// Looks after the client, unless somebody waits for its bytes and hears of an end by that.
    fn watch(&mut self, is_awaited: bool, cx: &mut Context<'_>) -> io::Result<()> {
        let socket: &TcpStream = self.outflow.as_ref();
        if is_awaited || socket.poll_read_ready(cx).is_pending() {
            self.look = None;
            return Ok(());
        }
        if self.look.is_none() && self.has_left() {
            return Err(io::ErrorKind::ConnectionReset.into());
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

    /// A write that must get on.
    fn written<T>(&mut self, result: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stuck = None;
            return result;
        }
        let deadline = *self.stuck.get_or_insert_with(|| Instant::now() + self.write_time);
        if self.writing.is_over(deadline, cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }

    /// Writes what is left of a permission.
    fn permit(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.permission.is_empty() {
            let result = Pin::new(&mut self.outflow).poll_write(cx, self.permission);
            let count = ready!(self.written(result, cx))?;
            self.permission = self.permission.get(count..).unwrap_or_default();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Client {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.inflow.wire().poll_head(cx, buf)
    }
}

impl AsyncWrite for Client {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.permit(cx))?;
        let result = Pin::new(&mut this.outflow).poll_write(cx, buf);
        this.written(result, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.permit(cx))?;
        let result = Pin::new(&mut this.outflow).poll_write_vectored(cx, slices);
        this.written(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.outflow.is_write_vectored()
    }

    /// hyper calls this at the end of each of its rounds, where it has nothing left to write.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (is_awaited, permitted) = {
            let mut wire = this.inflow.wire();
            (wire.take_awaited(), wire.take_permission())
        };
        if permitted {
            this.permission = PERMISSION;
        }
        this.watch(is_awaited, cx)?;
        ready!(this.permit(cx))?;
        Pin::new(&mut this.outflow).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.outflow).poll_shutdown(cx))?;
        }
        let mut wire = this.inflow.wire();
        // A connection that is closed under a client which is sending loses the answer.
        let Some(time) = wire.last_wait() else { return Poll::Ready(Ok(())) };
        let until = *this.lingering.get_or_insert_with(|| Instant::now() + time);
        // Whoever never stops sending keeps timers from their turn.
        let over = Instant::now() >= until || wire.poll_discard(cx).is_ready() || this.writing.is_over(until, cx);
        if over { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}
