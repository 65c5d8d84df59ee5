//! A request on its way out: the head, then the body, gathered into few writes. It is polled beside the reading of
//! the answer, for a provider may answer before it has read everything.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

use crate::inflow::{self, BodyFault};
use crate::upstream::connect::Stream;

/// Slices of one write.
const GATHER: usize = 16;

/// What follows a request's head.
#[derive(Debug)]
pub enum Payload<'a> {
    /// Nothing.
    Empty,
    /// A body that is held, and can be sent again. Cloning shares the bytes.
    Pieces(Cow<'a, [Bytes]>),
    /// A client's body, passed on as it arrives: it cannot be sent again. Without an announced length it is sent chunked.
    Stream(inflow::Body),
}

#[derive(Debug, Default)]
pub(in crate::upstream) struct Upload {
    queue: VecDeque<Bytes>,
    source: Option<inflow::Body>,
    /// Whether any byte has been written.
    pub(in crate::upstream) started: bool,
    flushed: bool,
}

/// Why an upload stopped.
#[derive(Debug)]
pub(in crate::upstream) enum Stopped {
    /// The connection does not take more.
    Connection(io::Error),
    /// The client's body broke.
    Client {
        /// It did not get on, and was given up.
        slow: bool,
    },
}

/// Writes once, of several parts as far as they go: how many bytes were taken, at least one.
fn write<'a>(
    parts: impl Iterator<Item = &'a [u8]>,
    stream: &mut Stream,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let (mut slices, mut count) = ([IoSlice::new(&[]); GATHER], 0);
    for (slice, part) in slices.iter_mut().zip(parts) {
        *slice = IoSlice::new(part);
        count += 1;
    }
    let filled = slices.get(..count).unwrap_or(&slices);
    match ready!(Pin::new(stream).poll_write_vectored(cx, filled)) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(written),
    }
}

impl Upload {
    /// Writes once; for most requests this is all, and nothing of them needs to be kept.
    pub(super) fn start(
        head: Vec<u8>,
        payload: Payload<'_>,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> io::Result<Self> {
        let (pieces, source) = match payload {
            Payload::Empty => (Cow::Borrowed(&[][..]), None),
            Payload::Pieces(pieces) => (pieces, None),
            Payload::Stream(body) => (Cow::Borrowed(&[][..]), Some(body)),
        };
        let parts = std::iter::once(&*head).chain(pieces.iter().map(|piece| &**piece));
        let written = match write(parts, stream, cx) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        let mut upload = Self { queue: VecDeque::new(), source, started: written > 0, flushed: false };
        let length = head.len() + pieces.iter().map(Bytes::len).sum::<usize>();
        if written < length {
            upload.queue.push_back(Bytes::from(head));
            upload.queue.extend(pieces.iter().cloned());
            upload.advance(written);
        }
        Ok(upload)
    }

    /// Whether everything is out.
    pub(in crate::upstream) fn is_done(&self) -> bool {
        self.flushed
    }

    pub(in crate::upstream) fn poll(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        while !self.flushed {
            while !self.queue.is_empty() {
                let parts = self.queue.iter().map(|piece| &**piece);
                let written = ready!(write(parts, stream, cx)).map_err(Stopped::Connection)?;
                self.started = true;
                self.advance(written);
            }
            if self.source.is_none() {
                ready!(Pin::new(&mut *stream).poll_flush(cx)).map_err(Stopped::Connection)?;
                self.flushed = true;
            } else {
                self.pull(stream, cx)?;
                if self.queue.is_empty() && self.source.is_some() {
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.queue.front_mut() {
            if piece.len() > written {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.queue.pop_front();
        }
    }

    /// Takes the next frame of the client's body; an empty queue afterwards, with the source still there, means that
    /// none has arrived.
    fn pull(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Result<(), Stopped> {
        let Some(body) = &mut self.source else { return Ok(()) };
        let chunked = body.length().is_none();
        match body.poll_frame(cx) {
            Poll::Pending => {
                // What has been written so far must not wait inside the TLS layer.
                let _ = Pin::new(&mut *stream).poll_flush(cx);
            }
            Poll::Ready(Some(Ok(data))) if chunked => {
                self.queue.push_back(Bytes::from(format!("{:x}\r\n", data.len())));
                self.queue.push_back(data);
                self.queue.push_back(Bytes::from_static(b"\r\n"));
            }
            Poll::Ready(Some(Ok(data))) => self.queue.push_back(data),
            Poll::Ready(Some(Err(fault))) => return Err(Stopped::Client { slow: fault == BodyFault::Slow }),
            Poll::Ready(None) => {
                self.source = None;
                if chunked {
                    self.queue.push_back(Bytes::from_static(b"0\r\n\r\n"));
                }
            }
        }
        Ok(())
    }
}
