//! A body in HTTP/1.1: one frame for each read. One that was read to its end gives the connection back to its pool; one
//! that is dropped closes it.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::{Connection, Framing, Upload};
use crate::upstream::error::BodyError;
use crate::upstream::pool::Pool;

/// See [`Body`](crate::upstream::Body).
#[derive(Debug)]
pub(in crate::upstream) struct Body {
    connection: Option<Connection>,
    framing: Framing,
    upload: Option<Box<Upload>>,
    /// Where the connection goes afterwards, if it may serve again.
    home: Option<Arc<Pool>>,
    broken: bool,
}

impl Body {
    pub(in crate::upstream) fn new(
        connection: Connection,
        framing: Framing,
        upload: Option<Box<Upload>>,
        home: Option<Arc<Pool>>,
    ) -> Self {
        let mut body = Self { connection: Some(connection), framing, upload, home, broken: false };
        if matches!(body.framing, Framing::Length(0)) {
            body.release();
        }
        body
    }

    pub(in crate::upstream) fn is_end(&self) -> bool {
        match &self.framing {
            Framing::Length(left) => *left == 0,
            Framing::Chunked(decoder) => decoder.is_done(),
            Framing::Close => self.connection.is_none() && !self.broken,
        }
    }

    pub(in crate::upstream) fn remaining(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(left) => Some(left),
            _ => None,
        }
    }

    pub(in crate::upstream) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
            if let Some(upload) = &mut self.upload
                && let Poll::Ready(_) = upload.poll(&mut connection.stream, cx)
            {
                // Done or refused: either way, the answer goes on.
                self.upload = None;
                self.home = None;
            }
            if !connection.buffer.is_empty() {
                let data = match &mut self.framing {
                    Framing::Length(left) => {
                        let here = usize::try_from(*left).unwrap_or(usize::MAX).min(connection.buffer.len());
                        *left -= here as u64;
                        connection.buffer.split_to(here).freeze()
                    }
                    Framing::Chunked(decoder) => match decoder.decode(&mut connection.buffer) {
                        Ok(data) => data,
                        Err(_) => return self.fail(BodyError::Framing),
                    },
                    Framing::Close => connection.buffer.split().freeze(),
                };
                if !matches!(self.framing, Framing::Close) && self.is_end() {
                    self.release();
                }
                if !data.is_empty() {
                    return Poll::Ready(Some(Ok(data)));
                }
                continue;
            }
            match ready!(connection.poll_read_or_rest(cx)) {
                Ok(0) if matches!(self.framing, Framing::Close) => {
                    self.connection = None;
                    return Poll::Ready(None);
                }
                Ok(0) => return self.fail(BodyError::Cut(None)),
                Ok(_) => {}
                Err(error) => return self.fail(BodyError::Cut(Some(error))),
            }
        }
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Bytes, BodyError>>> {
        self.connection = None;
        self.broken = true;
        Poll::Ready(Some(Err(error)))
    }

    /// The body is complete: a connection with nothing left over goes home.
    fn release(&mut self) {
        if let (Some(connection), Some(home)) = (self.connection.take(), self.home.take())
            && connection.buffer.is_empty()
            && self.upload.is_none()
        {
            home.put(connection);
        }
    }
}
