//! What comes from a client: its bytes are read here, and by nobody else. Heads are looked at, and then they are hyper's.
//! Bodies never pass through hyper, which would hand them on in the small pieces that its buffer holds, and keep that
//! buffer for as long as the answer lasts. So hyper gets heads only, and takes each request for one without a body; whoever
//! answers it gets its [`Body`] beside it.

mod pace;
mod room;
mod wire;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use tokio::net::tcp::OwnedReadHalf;

pub use pace::{Timer, Times};
pub use wire::Wire;

use crate::gate::head::{self, Framing};

/// The inflow of one connection, shared by who reads heads and who reads the bodies behind them; all of them are polled
/// by one task.
#[derive(Clone, Debug)]
pub struct Inflow(Arc<Mutex<Wire>>);

impl Inflow {
    /// Of this socket.
    pub fn new(socket: OwnedReadHalf, times: Times) -> Self {
        Self(Arc::new(Mutex::new(Wire::new(socket, times))))
    }

    /// For a moment: nobody holds it while it waits.
    pub fn wire(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body behind the head that was read last. Its field that told the length comes back to the others.
    ///
    /// # Errors
    /// The head was a stand-in for something that is refused.
    pub fn body(&self, fields: &mut HeaderMap) -> Result<Body, head::Fault> {
        let length = match self.wire().framing()? {
            Framing::Length(0) => return Ok(Body::default()),
            Framing::Length(length) => {
                fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
                Some(length)
            }
            Framing::Chunked => {
                fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                None
            }
        };
        Ok(Body { inflow: Some(self.clone()), length })
    }
}

/// The body of a request. Whoever drops it before its end leaves the rest to the connection, which forgets it within
/// bounds before the next request.
#[derive(Debug, Default)]
pub struct Body {
    /// None where nothing is left.
    inflow: Option<Inflow>,
    length: Option<u64>,
}

/// Why a body ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFault {
    /// The client stopped, or its framing is broken.
    Interrupted,
    /// It did not get on: less than 1 KiB in [`Times::body`].
    Slow,
}

impl Body {
    /// Whether nothing is left of it; at first: whether there is none.
    pub fn is_end(&self) -> bool {
        self.inflow.is_none()
    }

    /// The announced length; none of a body in chunks, or of no body.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// What has come, as soon as anything has: of one read, so 128 KiB at most; none at the end.
    ///
    /// # Errors
    /// [`BodyFault`]; nothing can follow on the connection.
    pub async fn frame(&mut self) -> Option<Result<Bytes, BodyFault>> {
        std::future::poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// See [`Body::frame`].
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyFault>>> {
        let Some(inflow) = &self.inflow else { return Poll::Ready(None) };
        let (polled, is_end) = {
            let mut wire = inflow.wire();
            (wire.poll_body(cx), wire.is_between())
        };
        if is_end {
            self.inflow = None;
        }
        polled
    }
}

#[cfg(test)]
mod tests;
