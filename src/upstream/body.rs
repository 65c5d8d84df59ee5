//! A response body: frames as they came, with back-pressure. Dropping one tells the provider at once.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::error::BodyError;
use super::{http1, http2};

/// The body of a response. Poll it with [`Body::poll_frame`] or await [`Body::frame`].
#[derive(Debug)]
pub struct Body(Kind);

#[derive(Debug)]
enum Kind {
    Http1(http1::Body),
    Http2(http2::Body),
}

impl From<http1::Body> for Body {
    fn from(body: http1::Body) -> Self {
        Self(Kind::Http1(body))
    }
}

impl From<http2::Body> for Body {
    fn from(body: http2::Body) -> Self {
        Self(Kind::Http2(body))
    }
}

impl Body {
    /// Whether everything has been read, with a proof that it is everything. False for ever where the body ends with
    /// its connection: there an end proves nothing.
    pub fn is_end(&self) -> bool {
        match &self.0 {
            Kind::Http1(body) => body.is_end(),
            Kind::Http2(body) => body.is_end(),
        }
    }

    /// Bytes still to come, where the head named them.
    pub fn remaining(&self) -> Option<u64> {
        match &self.0 {
            Kind::Http1(body) => body.remaining(),
            Kind::Http2(body) => body.remaining(),
        }
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// [`BodyError`] once, where the body is cut or its framing broken; `None` afterwards.
    pub async fn frame(&mut self) -> Option<Result<Bytes, BodyError>> {
        std::future::poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// See [`Body::frame`].
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        match &mut self.0 {
            Kind::Http1(body) => body.poll_frame(cx),
            Kind::Http2(body) => body.poll_frame(cx),
        }
    }
}
