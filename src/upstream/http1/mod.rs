//! HTTP/1.1 towards providers: a small client of our own.
//!
//! hyper's client passes every chunk from task to task, and hides what failover must know: whether anything was
//! sent, whether a byte came back, whether the end was clean, whether `content-length` stood beside
//! `transfer-encoding`. Here one read gives one frame, on the task that serves the client.

mod body;
mod head;
mod upload;

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use http::StatusCode;
use tokio::io::AsyncReadExt;

pub(super) use body::Body;
use head::Framing;
use head::Head;
pub use head::{HEAD_LIMIT, HEADER_LIMIT, check_any as check_any_head};
pub(super) use head::{content_length, is_bodiless};
pub use upload::Payload;
use upload::{Stopped, Upload};

use super::connect::Stream;
use super::error::{HeadFault, SendError};
use super::pool;

/// Interim answers (100, 103) that are swallowed before a final one.
pub(super) const INTERIM_LIMIT: usize = 16;
/// First size of a read; it doubles when a read fills it.
const READ_MIN: usize = 2 * 1024;
/// First size of a read after a pause: more than most events, and so much is quickly had from the allocator.
const READ_AFTER_REST: usize = 1000;
/// Largest read.
const READ_MAX: usize = 64 * 1024;

/// One connection to a provider.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: Stream,
    pub(super) buffer: BytesMut,
    read_size: usize,
    /// Whether it has served a request.
    reused: bool,
    /// The thread whose runtime knows its socket.
    pub(super) lane: usize,
}

/// A final head, on a connection whose body is still to be read.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) connection: Connection,
    pub(super) head: HeadParts,
    /// The rest of a request that the provider answered early.
    pub(super) upload: Option<Box<Upload>>,
}

#[derive(Debug)]
pub(super) struct HeadParts {
    pub(super) status: StatusCode,
    pub(super) headers: http::HeaderMap,
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
}

impl Connection {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, buffer: BytesMut::new(), read_size: READ_MIN, reused: false, lane: pool::lane() }
    }

    /// Moves a socket to the runtime of this thread, where that can be done; under TLS it cannot, and works all the same.
    /// `None` if it was lost on the way.
    pub(super) fn on_this_thread(mut self) -> Option<Self> {
        let here = pool::lane();
        if self.lane == here {
            return Some(self);
        }
        if let Stream::Plain(tcp) = self.stream {
            let tcp = tcp.into_std().and_then(tokio::net::TcpStream::from_std).ok()?;
            (self.stream, self.lane) = (Stream::Plain(tcp), here);
        }
        Some(self)
    }

    /// Whether an idle connection is still open and silent. The end of one may be on its way all the same.
    pub(super) fn seems_alive(&mut self) -> bool {
        self.reused = true;
        let mut cx = Context::from_waker(Waker::noop());
        self.buffer.is_empty() && self.poll_read(&mut cx).is_pending()
    }

    /// Like [`Connection::poll_read`], for a body that may pause for long: while it does, there is no buffer.
    pub(super) fn poll_read_or_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.buffer.is_empty() && self.stream.poll_read_ready(cx).is_pending() {
            self.buffer = BytesMut::new();
            self.read_size = READ_AFTER_REST;
            return Poll::Pending;
        }
        self.poll_read(cx)
    }

    /// Reads once into the buffer; 0 = the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.buffer.capacity() - self.buffer.len() < self.read_size / 2 {
            self.buffer.reserve(self.read_size);
        }
        let spare = self.buffer.capacity() - self.buffer.len();
        let read = std::pin::pin!(self.stream.read_buf(&mut self.buffer)).poll(cx);
        if let Poll::Ready(Ok(count)) = read
            && count == spare
        {
            self.read_size = (self.read_size * 2).min(READ_MAX);
        }
        read
    }

    /// Sends a request and reads up to the final head. Dropping the future closes the connection.
    pub(super) async fn exchange(
        mut self,
        head: Vec<u8>,
        payload: Payload<'_>,
        head_request: bool,
    ) -> Result<Exchange, SendError> {
        let mut upload = Upload::default();
        let mut unsent = Some((head, payload));
        let mut refused: Option<io::Error> = None;
        let mut interim = 0;
        let reused = self.reused;
        let result = std::future::poll_fn(|cx| {
            if let Some((head, payload)) = unsent.take() {
                match Upload::start(head, payload, &mut self.stream, cx) {
                    Ok(started) => upload = started,
                    Err(error) => refused = Some(error),
                }
            }
            if refused.is_none() && !upload.is_done() {
                match upload.poll(&mut self.stream, cx) {
                    // The provider may have answered before it closed its side: that answer counts.
                    Poll::Ready(Err(Stopped::Connection(error))) => refused = Some(error),
                    Poll::Ready(Err(Stopped::Client { slow })) => {
                        return Poll::Ready(Err(SendError::RequestBody { slow }));
                    }
                    _ => {}
                }
            }
            loop {
                match head::take(&mut self.buffer, head_request) {
                    Ok(Some(head)) if is_interim(&head) => {
                        interim += 1;
                        if interim > INTERIM_LIMIT {
                            return Poll::Ready(Err(SendError::MalformedHead(HeadFault::Interim)));
                        }
                        continue;
                    }
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Ok(None) => {}
                    Err(fault) => return Poll::Ready(Err(SendError::MalformedHead(fault))),
                }
                let silent = self.buffer.is_empty() && interim == 0;
                let source = match self.poll_read(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(count)) if count > 0 => continue,
                    Poll::Ready(Ok(_)) => refused.take(),
                    Poll::Ready(Err(error)) => Some(error),
                };
                return Poll::Ready(Err(if silent {
                    SendError::Closed { reused, sent: upload.started, source: source.map(Arc::new) }
                } else {
                    SendError::MalformedHead(HeadFault::Incomplete)
                }));
            }
        })
        .await;
        let Head { status, headers, framing, keep_alive } = result?;
        let whole = upload.is_done() && refused.is_none();
        Ok(Exchange {
            connection: self,
            head: HeadParts { status, headers, framing, keep_alive: keep_alive && whole },
            // A provider that refuses a request need not be sent the rest of it (RFC 9112 §9.5).
            upload: (!whole && refused.is_none() && !status.is_client_error() && !status.is_server_error())
                .then(|| Box::new(upload)),
        })
    }
}

impl Exchange {
    /// Whether this is no answer to the request, but a 408 by which the server ends a connection that was idle.
    pub(super) fn is_farewell(&self) -> bool {
        self.head.status == StatusCode::REQUEST_TIMEOUT && !self.head.keep_alive
    }
}

fn is_interim(head: &Head) -> bool {
    head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS
}
