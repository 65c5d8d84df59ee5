//! The socket of a client. Every byte passes here on its way to hyper, and is looked at before: hyper smooths what two
//! readers might understand differently, and has no limit for slow bodies and slow readers.
//!
//! * A head is let through when it is whole and clear ([`head::check`]). Instead of one that is not, hyper gets a stand-in,
//!   which the service answers with the [`Fault`]; so the refusal has our shape and stands in its place behind the
//!   answers to earlier requests. Nothing that follows on the connection is read.
//! * Bodies are counted, not copied, so that it is known where the next head begins. hyper gets one request at a time.
//! * Heads, bodies and readers that do not get on are given up.
//! * Whoever leaves must not keep a provider at work, and hyper does not read while it is busy with a request. So the
//!   socket's own word is waited for then; where bytes behind the request wait, which would hide it, it is asked for
//!   every [`LOOK_AFTER`].
//! * Connections that stay silent between two requests are ended.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::Limits;
use crate::gate::head::{self, Fault};
use crate::gate::inflow::Rest;

/// Between two looks at a socket that has bytes which nobody reads.
const LOOK_AFTER: Duration = Duration::from_millis(100);
/// Least bytes of a body in [`Limits::body_time`].
const BODY_PROGRESS: usize = 1024;
/// How long a refused client may take to stop sending: a connection that is closed under it loses the answer.
const LINGER_TIME: Duration = Duration::from_secs(1);
/// Most bytes of one read. hyper doubles the room for the next read whenever one has filled it, and halves it after two
/// that would have fitted into half of it; what it has, it keeps for as long as the answer lasts.
const READ_MOST: usize = 32 * 1024;
/// A body of so many bytes ends in small reads, four to make hyper's room small again and four to leave the larger one: 8
/// KiB for each open stream instead of 32. A smaller body is not worth them.
const LARGE: u64 = 256 * 1024;
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\n\r\n";

/// What the service must know of the bytes on its connection.
#[derive(Debug, Default)]
pub(super) struct Notes {
    heads: AtomicU64,
    calls: AtomicU64,
    fault: OnceLock<Fault>,
    broken: AtomicBool,
}

impl Notes {
    /// For each call of the service, once: why the head that it got is only a stand-in.
    pub(super) fn next(&self) -> Option<Fault> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        // It is the last head that hyper ever gets.
        self.fault.get().copied().filter(|_| call == self.heads.load(Ordering::Relaxed))
    }

    /// Whether a body could not be read to its end, so that nothing can follow it.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub(super) struct Client {
    inner: TcpStream,
    notes: Arc<Notes>,
    limits: Arc<Limits>,
    place: Place,
    /// Bytes that were read and not handed on.
    inbox: Vec<u8>,
    /// How many of them may be.
    cleared: usize,
    /// How many were looked through for the end of a head.
    seen: usize,
    /// The body is of [`LARGE`] size.
    large: bool,
    /// Since when a head is incomplete.
    since: Option<Instant>,
    /// Since when the next one is waited for.
    idle: Option<Instant>,
    pace: Pace,
    reading: Timer,
    writing: Timer,
    /// Until when the pending write must get on.
    stuck: Option<Instant>,
    lingering: Option<Instant>,
    /// Whether hyper waits for bytes: then it hears of an end by itself.
    is_read: bool,
    look: Option<Pin<Box<Sleep>>>,
}

/// Where in the inflow a connection stands.
#[derive(Clone, Copy, Debug)]
enum Place {
    Head,
    Body(Rest),
    /// A body that cannot be read on.
    Broken(io::ErrorKind),
    /// Behind a stand-in: the rest is of no interest.
    Refused,
    /// Nothing has come for too long.
    Silent,
}

/// How fast a body arrives while somebody waits for it.
#[derive(Debug, Default)]
struct Pace {
    waiting: Option<Instant>,
    waited: Duration,
    bytes: usize,
}

/// A deadline that moves often and is seldom reached.
#[derive(Debug, Default)]
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    fn is_over(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if deadline <= Instant::now() {
                return true;
            }
            // Only when it fires is it moved to where it belongs.
            sleep.as_mut().reset(deadline);
        }
        false
    }
}

impl Client {
    pub(super) fn new(inner: TcpStream, notes: Arc<Notes>, limits: Arc<Limits>) -> Self {
        Self {
            inner,
            notes,
            limits,
            place: Place::Head,
            inbox: Vec::new(),
            cleared: 0,
            seen: 0,
            large: false,
            since: None,
            idle: None,
            pace: Pace::default(),
            reading: Timer::default(),
            writing: Timer::default(),
            stuck: None,
            lingering: None,
            is_read: false,
            look: None,
        }
    }

    fn refuse(&mut self, fault: Fault) {
        match fault {
            // The client cannot read our answer, so whoever set it up reads it here.
            Fault::Tls => tracing::warn!("{fault}"),
            _ => tracing::debug!(%fault, "refused"),
        }
        let _ = self.notes.fault.set(fault);
        self.notes.heads.fetch_add(1, Ordering::Relaxed);
        self.place = Place::Refused;
        self.inbox.clear();
        self.inbox.extend_from_slice(STAND_IN);
        self.cleared = STAND_IN.len();
    }

    /// Reads a head, if `bytes` begin with a whole one: how many bytes its message has here.
    fn enter(&mut self, bytes: &[u8], seen: usize) -> Result<Option<usize>, Fault> {
        let Some(end) = head::end(bytes, seen)? else { return Ok(None) };
        let (head, rest) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
        let body = Rest::after(head::check(head)?);
        self.notes.heads.fetch_add(1, Ordering::Relaxed);
        self.idle = None;
        self.pace = Pace::default();
        self.large = matches!(body, Some(Rest::Length(length)) if length >= LARGE);
        Ok(Some(end + body.map_or(0, |body| self.advance(body, rest))))
    }

    /// Most bytes of the next read: one less than what would fill hyper's room and double it.
    fn read_most(&self) -> usize {
        let room = match self.place {
            Place::Body(Rest::Length(left)) if self.large && left <= 2 * READ_MOST as u64 => READ_MOST / 4,
            _ => READ_MOST,
        };
        room - 1
    }

    /// Follows a body: how many bytes of these are its own.
    fn advance(&mut self, mut body: Rest, bytes: &[u8]) -> usize {
        let (own, place) = match body.follow(bytes) {
            Ok((own, true)) => (own, Place::Head),
            Ok((own, false)) => (own, Place::Body(body)),
            Err((own, _)) => (own, Place::Broken(io::ErrorKind::InvalidData)),
        };
        self.place = place;
        own
    }

    /// Clears what the inbox has of the next message, or refuses it.
    fn look_through_inbox(&mut self) {
        // An empty line before a request line: clients send one behind a body.
        while self.inbox.starts_with(b"\r\n") {
            self.inbox.drain(..2);
            self.seen = 0;
        }
        if self.inbox.is_empty() {
            self.since = None;
            return;
        }
        let inbox = std::mem::take(&mut self.inbox);
        let entered = self.enter(&inbox, self.seen);
        self.inbox = inbox;
        match entered {
            Ok(Some(length)) => (self.cleared, self.seen, self.since) = (length, 0, None),
            Ok(None) => {
                self.seen = self.inbox.len();
                self.since.get_or_insert_with(Instant::now);
            }
            Err(fault) => self.refuse(fault),
        }
    }

    /// What has come into `buf` beyond `before`: keeps back what hyper must not have yet.
    fn sort(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        let fresh = buf.filled().get(before..).unwrap_or_default();
        let own = match self.place {
            Place::Head if self.inbox.is_empty() && !fresh.starts_with(b"\r") => match self.enter(fresh, 0) {
                Ok(Some(own)) => own,
                Ok(None) => 0,
                Err(fault) => {
                    buf.set_filled(before);
                    return self.refuse(fault);
                }
            },
            Place::Head => 0,
            Place::Body(body) => {
                self.pace.arrived(fresh.len());
                self.advance(body, fresh)
            }
            Place::Broken(_) | Place::Refused | Place::Silent => fresh.len(),
        };
        self.inbox.extend_from_slice(fresh.get(own..).unwrap_or_default());
        buf.set_filled(before + own);
    }

    /// Nothing has come: whether that has lasted too long.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.place {
            Place::Head => {
                let (since, limit) = match self.since {
                    Some(since) => (since, self.limits.head_time),
                    None => (*self.idle.get_or_insert_with(Instant::now), self.limits.idle_time),
                };
                if self.reading.is_over(since + limit, cx) {
                    match self.since {
                        Some(_) => self.refuse(Fault::Slow),
                        None => self.place = Place::Silent,
                    }
                    return Poll::Ready(());
                }
            }
            Place::Body(_) => {
                while self.reading.is_over(self.pace.deadline(self.limits.body_time), cx) {
                    if self.pace.bytes < BODY_PROGRESS {
                        self.place = Place::Broken(io::ErrorKind::TimedOut);
                        return Poll::Ready(());
                    }
                    self.pace = Pace::default();
                }
            }
            Place::Broken(_) | Place::Refused | Place::Silent => {}
        }
        Poll::Pending
    }

    /// Whether the client has closed its side.
    fn has_left(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let ready = std::pin::pin!(self.inner.ready(Interest::READABLE));
        matches!(ready.poll(&mut cx), Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    /// Looks after the client, unless hyper does.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if std::mem::take(&mut self.is_read) || self.inner.poll_read_ready(cx).is_pending() {
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
        let deadline = *self.stuck.get_or_insert_with(|| Instant::now() + self.limits.write_time);
        if self.writing.is_over(deadline, cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }

    /// Reads and forgets: whether the client has ended its side.
    fn forget(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl Pace {
    fn deadline(&mut self, window: Duration) -> Instant {
        *self.waiting.get_or_insert_with(Instant::now) + window.saturating_sub(self.waited)
    }

    /// While nobody reads, as behind a slow provider, the clock stands still.
    fn arrived(&mut self, bytes: usize) {
        self.bytes += bytes;
        if let Some(since) = self.waiting.take() {
            self.waited += since.elapsed();
        }
    }
}

impl AsyncRead for Client {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.cleared > 0 {
                let length = this.cleared.min(buf.remaining());
                buf.put_slice(this.inbox.get(..length).unwrap_or_default());
                this.inbox.drain(..length);
                this.cleared -= length;
                return Poll::Ready(Ok(()));
            }
            match this.place {
                Place::Broken(kind) => {
                    this.notes.broken.store(true, Ordering::Relaxed);
                    return Poll::Ready(Err(kind.into()));
                }
                // Reading on would only keep the answer from its turn.
                Place::Refused => return Poll::Pending,
                Place::Silent => return Poll::Ready(Ok(())),
                Place::Head if this.seen < this.inbox.len() => {
                    this.look_through_inbox();
                    continue;
                }
                Place::Head | Place::Body(_) => {}
            }
            let before = buf.filled().len();
            let most = this.read_most() as u64;
            let read = Pin::new(&mut (&mut this.inner).take(most)).poll_read(cx, buf);
            this.is_read = read.is_pending();
            if read.is_pending() {
                ready!(this.wait(cx));
                continue;
            }
            if !matches!(read, Poll::Ready(Ok(()))) || buf.filled().len() == before {
                return read;
            }
            this.sort(buf, before);
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Client {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.written(result, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, slices);
        this.written(result, cx)
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
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        if !matches!(this.place, Place::Refused | Place::Broken(_)) {
            return Poll::Ready(Ok(()));
        }
        let until = *this.lingering.get_or_insert_with(|| Instant::now() + LINGER_TIME);
        // Whoever never stops sending keeps timers from their turn.
        let over = Instant::now() >= until || this.forget(cx).is_ready() || this.reading.is_over(until, cx);
        if over { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}
