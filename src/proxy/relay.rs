//! After the commit point: the provider's body becomes the client's. Frames are moved, not copied; the observer only
//! looks. Nothing here can reach another target.
//!
//! A broken event stream ends with an `event: error` of ours and a clean end: one SDK takes a clean end without
//! `message_stop` for a complete answer. Any other broken body is aborted without its terminator.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Drain;
use super::events::Observer;
use super::ledger::{Ending, Entry};
use crate::health::{Health, Now, Penalty, Permit, Scope};
use crate::provider::Provider;
use crate::upstream::Body;

/// hyper throws away what it has not written yet when a body fails: the failure waits for the last frames to leave.
const FLUSH_TIME: Duration = Duration::from_millis(2);

/// A body for the client.
#[derive(Debug)]
pub enum Outbound {
    /// A body that is all here.
    Whole {
        /// What is left of it.
        pieces: VecDeque<Bytes>,
        /// Closed when the last piece is taken.
        entry: Option<Box<Entry>>,
    },
    /// A body that is passed on as it arrives.
    Relay(Box<Relay>),
}

impl Outbound {
    /// A body that is all here; the account is closed with it.
    pub fn whole(pieces: impl Into<VecDeque<Bytes>>, entry: Option<Entry>) -> Self {
        let pieces = pieces.into();
        let mut entry = entry.map(Box::new);
        if pieces.is_empty()
            && let Some(entry) = &mut entry
        {
            entry.ending = Ending::Complete;
        }
        Self::Whole { pieces, entry }
    }

    /// A text of our own.
    pub fn text(text: impl Into<Bytes>, entry: Option<Entry>) -> Self {
        Self::whole(VecDeque::from([text.into()]), entry)
    }
}

/// Whose health the end of a body decides.
#[derive(Debug)]
pub struct Settle {
    /// All records.
    pub health: Arc<Health>,
    /// The target's.
    pub provider: Arc<Provider>,
    /// And what it was asked for.
    pub scope: Scope,
    /// Held until then.
    pub permit: Option<Permit>,
}

/// A body on its way through.
#[derive(Debug)]
pub struct Relay {
    held: VecDeque<Bytes>,
    rest: Body,
    /// For an event stream in the clear: an error of ours can be said inside it.
    observer: Option<Box<Observer>>,
    /// Whether its end must be a `message_stop`.
    message: bool,
    idle: Duration,
    silence: Pin<Box<Sleep>>,
    /// Whether it will wake us.
    waits: bool,
    last: Instant,
    drain: Drain,
    entry: Entry,
    settle: Option<Settle>,
    state: State,
}

#[derive(Debug)]
enum State {
    Flowing,
    /// The last bytes are out.
    Done,
    /// The body will be aborted when this is over.
    Aborting(Pin<Box<Sleep>>),
}

/// Why a body did not end as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Cut,
    /// A clean end, but without `message_stop`.
    Unfinished,
    Silent,
    Drained,
}

/// What a relay needs beside the body.
#[derive(Debug)]
pub struct Terms {
    /// Longest silence.
    pub idle: Duration,
    /// Ends the stream when the drain time is over.
    pub drain: Drain,
    /// The account.
    pub entry: Entry,
    /// Whose health the end decides.
    pub settle: Option<Settle>,
    /// Whether the body is an event stream in the clear. One that came without an observer is no message.
    pub events: bool,
}

impl Relay {
    /// Takes over a body after the commit point.
    pub fn new(held: Vec<Bytes>, rest: Body, observer: Option<Box<Observer>>, terms: Terms) -> Self {
        let last = Instant::now();
        let message = observer.is_some();
        let observer = observer.or_else(|| terms.events.then(Box::default));
        Self {
            held: held.into(),
            rest,
            observer,
            message,
            idle: terms.idle,
            silence: Box::pin(sleep_until(last + terms.idle)),
            waits: false,
            last,
            drain: terms.drain,
            entry: terms.entry,
            settle: terms.settle,
            state: State::Flowing,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match &mut self.state {
            State::Flowing => {}
            State::Done => return Poll::Ready(None),
            State::Aborting(wait) => {
                ready!(wait.as_mut().poll(cx));
                self.state = State::Done;
                return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
            }
        }
        if let Some(piece) = self.held.pop_front() {
            if self.held.is_empty() {
                self.held = VecDeque::new();
            }
            return self.pass(piece);
        }
        // One that never pauses must not outlast the service.
        if self.drain.is_over() {
            return self.broken(Broken::Drained, cx);
        }
        match self.rest.poll_frame(cx) {
            Poll::Ready(Some(Ok(piece))) => {
                self.last = Instant::now();
                if let Some(observer) = &mut self.observer {
                    observer.feed(&piece);
                }
                self.pass(piece)
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(id = %self.entry.id, error = &error as &dyn std::error::Error, "the body broke");
                self.broken(Broken::Cut, cx)
            }
            Poll::Ready(None) if self.message => self.broken(Broken::Unfinished, cx),
            Poll::Ready(None) => {
                self.complete();
                Poll::Ready(None)
            }
            Poll::Pending => {
                // The timer is moved only when it fires, not with each frame; it wakes the same task until then.
                while !self.waits || self.silence.is_elapsed() {
                    self.waits = self.silence.as_mut().poll(cx).is_pending();
                    if self.waits {
                        break;
                    }
                    let until = self.last + self.idle;
                    if until <= Instant::now() {
                        return self.broken(Broken::Silent, cx);
                    }
                    self.silence.as_mut().reset(until);
                }
                Poll::Pending
            }
        }
    }

    fn pass(&mut self, piece: Bytes) -> Poll<Option<io::Result<Bytes>>> {
        self.entry.bytes += piece.len() as u64;
        if self.is_provably_over() {
            // A body of known length is not polled past its last byte.
            self.complete();
        }
        Poll::Ready(Some(Ok(piece)))
    }

    /// Whether the last piece is out and nothing of ours can follow.
    fn is_provably_over(&self) -> bool {
        matches!(self.state, State::Flowing) && self.held.is_empty() && self.observer.is_none() && self.rest.is_end()
    }

    fn complete(&mut self) {
        self.state = State::Done;
        let failed = self.observer.as_ref().is_some_and(|observer| observer.failed() && !observer.stopped());
        self.entry.ending = if failed { Ending::UpstreamError } else { Ending::Complete };
        match self.settle.take() {
            Some(settle) if failed => settle.penalise("the stream ended with an error"),
            Some(settle) => settle.health.succeeded(&settle.provider, &settle.scope),
            None => {}
        }
    }

    fn broken(&mut self, how: Broken, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let mut last = Vec::new();
        if let Some(observer) = &mut self.observer {
            if !observer.stopped() && !observer.failed() {
                last = observer.separator();
                observer.feed(&last);
            }
            if observer.stopped() || observer.failed() {
                // Nothing that the client waits for is missing, or only the end of the last event was.
                self.complete();
                return if last.is_empty() { Poll::Ready(None) } else { self.pass(Bytes::from(last)) };
            }
        }
        let (ending, kind, message) = match how {
            Broken::Cut | Broken::Unfinished => {
                (Ending::UpstreamBroke, "api_error", "the provider's stream ended before it was complete")
            }
            Broken::Silent => (Ending::Idle, "timeout_error", "the provider's stream fell silent"),
            Broken::Drained => (Ending::Drained, "api_error", "the balancer was shut down; please retry"),
        };
        self.entry.ending = ending;
        if let Some(settle) = self.settle.take()
            && how != Broken::Drained
        {
            settle.penalise(message);
        }
        if self.observer.is_none() {
            let mut wait = Box::pin(sleep_until(Instant::now() + FLUSH_TIME));
            let _ = wait.as_mut().poll(cx);
            self.state = State::Aborting(wait);
            return Poll::Pending;
        }
        self.state = State::Done;
        let provider = self.entry.provider.as_deref().unwrap_or_default();
        let error = serde_json::json!({
            "type": "error",
            "error": { "type": kind, "message": format!("{provider}: {message}") },
            "request_id": &*self.entry.id,
        });
        last.extend_from_slice(format!("event: error\ndata: {error}\n\n").as_bytes());
        self.pass(Bytes::from(last))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A client may leave with the last event, before the provider has ended the body.
        let stopped = self.observer.as_ref().is_some_and(|observer| observer.stopped());
        if matches!(self.state, State::Flowing) && self.held.is_empty() && stopped {
            self.complete();
        }
    }
}

impl Settle {
    fn penalise(self, message: &str) {
        let now = Now::read();
        self.health.penalise(&self.provider, &self.scope, &Penalty::Failure, message, now);
        tracing::warn!(provider = %self.provider.key, "{message}");
    }
}

impl http_body::Body for Outbound {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Whole { pieces, entry } => {
                let piece = pieces.pop_front();
                if let Some(entry) = entry {
                    entry.bytes += piece.as_ref().map_or(0, Bytes::len) as u64;
                    if pieces.is_empty() {
                        entry.ending = Ending::Complete;
                    }
                }
                Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
            }
            Self::Relay(relay) => relay.poll_next(cx).map(|frame| frame.map(|piece| piece.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole { pieces, .. } => pieces.is_empty(),
            Self::Relay(relay) => matches!(relay.state, State::Done),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { pieces, .. } => SizeHint::with_exact(pieces.iter().map(|piece| piece.len() as u64).sum()),
            Self::Relay(_) => SizeHint::default(),
        }
    }
}
