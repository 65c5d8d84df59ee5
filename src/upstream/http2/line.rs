//! The lines to one peer: which of them takes a request, and who dials when none does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{STREAMS, Tally};
use crate::upstream::error::SendError;
use crate::upstream::http1::Connection;
use crate::upstream::pool::IDLE_TIME;

/// How a request gets to a provider.
#[derive(Debug)]
pub(in crate::upstream) enum Way {
    /// A stream of HTTP/2.
    Stream(Slot),
    /// A connection in HTTP/1.1 that was idle.
    Idle(Connection),
    /// And a new one.
    Fresh(Connection),
}

/// The lines to one peer.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Lines {
    all: Mutex<Vec<Arc<Line>>>,
    /// What drives them, each to its end.
    tasks: TaskTracker,
    /// Held by the one who dials; the others wait for what comes of it.
    turn: tokio::sync::Mutex<()>,
    /// How many dials failed, and how the last one did.
    failed: Mutex<(u64, Option<SendError>)>,
    /// The peer chose HTTP/1.1 the last time.
    http1: AtomicBool,
}

/// One connection; it closes when the last stream has ended after it was dropped.
#[derive(Debug)]
pub(in crate::upstream) struct Line {
    pub(super) sender: SendRequest<Bytes>,
    pub(super) tally: Arc<Tally>,
    load: Mutex<Load>,
}

#[derive(Debug)]
struct Load {
    streams: usize,
    /// When the number last fell to none.
    since: Instant,
    /// Whether it has had a request.
    used: bool,
}

/// Leave to open one stream on a line, until it is dropped.
#[derive(Debug)]
pub(in crate::upstream) struct Slot {
    pub(super) line: Arc<Line>,
    /// The line had been idle, after earlier requests.
    pub(super) reused: bool,
}

impl Lines {
    /// A slot on the first line that has one.
    pub(in crate::upstream) fn take(&self) -> Option<Slot> {
        let now = Instant::now();
        let mut all = locked(&self.all);
        all.retain(|line| line.is_open() && !line.is_idle(now, IDLE_TIME));
        all.iter().find_map(Slot::on)
    }

    /// Opens a line over a connection whose peer chose HTTP/2 (its settings must come within `limit`), and the first
    /// slot on it. The task that drives the line is one of this runtime.
    ///
    /// # Errors
    /// [`SendError::Http2`], [`SendError::Http2Timeout`].
    pub(in crate::upstream) async fn open<T>(&self, io: T, host: &str, limit: Duration) -> Result<Slot, SendError>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (line, driven) = super::open(io, host, limit).await?;
        self.tasks.spawn(driven);
        let line = Arc::new(line);
        let none = || SendError::Http2 { host: host.to_owned(), reason: "it allows no stream".into() };
        let slot = Slot::on(&line).ok_or_else(none)?;
        locked(&self.all).push(line);
        Ok(slot)
    }

    /// Dials, unless somebody does so already: then what came of that is shared, the line or the failure. A peer that
    /// chose HTTP/1.1 is dialled by everybody at once, for there each request needs a connection of its own.
    pub(in crate::upstream) async fn dial(
        &self,
        dial: impl Future<Output = Result<Way, SendError>>,
    ) -> Result<Way, SendError> {
        let before = locked(&self.failed).0;
        let turn = if self.chose_http1() { None } else { Some(self.turn.lock().await) };
        if let Some(slot) = self.take() {
            return Ok(Way::Stream(slot));
        }
        if let (count, Some(error)) = &*locked(&self.failed)
            && *count > before
        {
            return Err(error.clone());
        }
        let _turn = turn.filter(|_| !self.chose_http1());
        let way = dial.await;
        match &way {
            Ok(way) => self.http1.store(!matches!(way, Way::Stream(_)), Ordering::Relaxed),
            Err(error) => {
                let (count, last) = &mut *locked(&self.failed);
                *count += 1;
                *last = Some(error.clone());
            }
        }
        way
    }

    /// Whether the peer chose HTTP/1.1 the last time that both were offered.
    pub(in crate::upstream) fn chose_http1(&self) -> bool {
        self.http1.load(Ordering::Relaxed)
    }

    /// Closes what has been idle for at least `limit`.
    pub(in crate::upstream) fn expire(&self, now: Instant, limit: Duration) {
        locked(&self.all).retain(|line| line.is_open() && !line.is_idle(now, limit));
    }
}

impl Line {
    pub(super) fn new(sender: SendRequest<Bytes>, tally: Arc<Tally>) -> Self {
        let load = Load { streams: 0, since: Instant::now(), used: false };
        Self { sender, tally, load: Mutex::new(load) }
    }

    /// Whether a stream may still be opened: the connection lives, and the peer has not told us to go away.
    pub(super) fn is_open(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.sender.clone().poll_ready(&mut cx), Poll::Ready(Ok(())))
    }

    fn is_idle(&self, now: Instant, limit: Duration) -> bool {
        let load = locked(&self.load);
        load.streams == 0 && now.saturating_duration_since(load.since) >= limit
    }
}

impl Slot {
    /// A slot on this line, if it has one.
    fn on(line: &Arc<Line>) -> Option<Self> {
        let limit = line.sender.current_max_send_streams().min(STREAMS);
        let mut load = locked(&line.load);
        if load.streams >= limit {
            return None;
        }
        let reused = load.used && load.streams == 0;
        load.streams += 1;
        load.used = true;
        Some(Self { line: line.clone(), reused })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut load = locked(&self.line.load);
        load.streams -= 1;
        load.since = Instant::now();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
