//! One request and its answer: a stream of a line. Dropping it before its end resets the stream (`CANCEL`), and
//! nothing else on the line.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, Uri, Version};

use super::Slot;
use crate::upstream::error::{BodyError, HeadFault, SendError};
use crate::upstream::http1::{HEADER_LIMIT, INTERIM_LIMIT, Payload, content_length, is_bodiless};
use crate::upstream::{Request, Response};

/// Fields that must not be sent (RFC 9113 §8.2.2), and `host`, which becomes `:authority` (§8.3.1).
const NOT_SENT: [&str; 6] = ["host", "connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection"];

/// Most bytes of a request for which room is asked at once: others upload on the same line.
const AHEAD: usize = 128 * 1024;

impl Slot {
    /// Sends a request and waits for the final head. Dropping the future resets the stream.
    ///
    /// # Errors
    /// [`SendError`]; also where the body cannot be sent twice, which never comes here.
    pub(in crate::upstream) async fn exchange(self, request: &Request<'_>) -> Result<Response, SendError> {
        let pieces = match &request.payload {
            Payload::Pieces(pieces) => &**pieces,
            Payload::Empty | Payload::Stream(_) => &[],
        };
        let length = pieces.iter().map(Bytes::len).sum();
        let said = self.line.tally.said();
        let head = head(request, length)
            .map_err(|error| self.closed(false, io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let sent = self.line.sender.clone().send_request(head, length == 0);
        let (mut answer, stream) = sent.map_err(|error| self.failure(error, said))?;
        let mut upload = (length > 0).then(|| Upload::new(stream, pieces, length));
        let mut interim = 0;
        let answered = std::future::poll_fn(|cx| {
            if upload.as_mut().is_some_and(|upload| upload.poll(cx).is_ready()) {
                upload = None;
            }
            while let Some(head) = ready!(answer.poll_informational(cx)) {
                head.map_err(|error| self.failure(error, said))?;
                interim += 1;
                if interim > INTERIM_LIMIT {
                    return Poll::Ready(Err(SendError::MalformedHead(HeadFault::Interim)));
                }
            }
            Pin::new(&mut answer).poll(cx).map_err(|error| self.failure(error, said))
        })
        .await?;
        let (head, answer) = answered.into_parts();
        if head.headers.len() > HEADER_LIMIT {
            return Err(SendError::MalformedHead(HeadFault::TooMany));
        }
        let announced = content_length(&head.headers).map_err(SendError::MalformedHead)?;
        // A provider that refuses a request need not be sent the rest of it.
        if head.status.is_client_error() || head.status.is_server_error() {
            upload = None;
        }
        let bodiless = is_bodiless(head.status, *request.method == Method::HEAD);
        let remaining = if bodiless { Some(0) } else { announced };
        let body = Body::new(Open { answer, upload, _slot: self }, remaining);
        Ok(Response { status: head.status, headers: head.headers, body: body.into() })
    }

    fn failure(&self, error: h2::Error, said: u64) -> SendError {
        let refused = error.reason() == Some(Reason::REFUSED_STREAM);
        if error.is_remote() && (error.is_reset() || error.is_go_away()) {
            // A GOAWAY ends only streams that the peer has not taken up, and will not.
            let unprocessed = refused || error.is_go_away();
            return SendError::Reset { reason: in_words(&error), unprocessed };
        }
        if error.is_library() && error.is_reset() {
            return SendError::MalformedHead(HeadFault::Http2);
        }
        self.closed(self.line.tally.said() != said, into_io(error))
    }

    fn closed(&self, sent: bool, source: io::Error) -> SendError {
        SendError::Closed { reused: self.reused, sent, source: Some(Arc::new(source)) }
    }
}

fn head(request: &Request<'_>, length: usize) -> Result<http::Request<()>, http::Error> {
    let host = request.headers.iter().find(|(name, _)| *name == "host");
    let authority = host.map(|(_, value)| value.as_bytes()).unwrap_or_default();
    let target = PathAndQuery::try_from(&*request.target)?;
    let uri = Uri::builder().scheme(Scheme::HTTPS).authority(authority).path_and_query(target).build()?;
    let mut head = http::Request::builder().method(request.method).uri(uri).version(Version::HTTP_2).body(())?;
    let headers = head.headers_mut();
    headers.reserve(request.headers.len() + 1);
    for (name, value) in request.headers.iter().filter(|(name, _)| !NOT_SENT.contains(name)) {
        headers.append(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::clone(value));
    }
    if matches!(request.payload, Payload::Pieces(_)) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(head)
}

/// A request's body on its way out, as slices of what is held.
#[derive(Debug)]
struct Upload {
    stream: SendStream<Bytes>,
    queue: VecDeque<Bytes>,
    left: usize,
}

impl Upload {
    fn new(stream: SendStream<Bytes>, pieces: &[Bytes], left: usize) -> Self {
        let queue = pieces.iter().filter(|piece| !piece.is_empty()).cloned().collect();
        Self { stream, queue, left }
    }

    /// Ready when everything is handed over, or when the peer takes no more: what it has to say is in the answer.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(piece) = self.queue.front_mut() {
            self.stream.reserve_capacity(self.left.min(AHEAD));
            let room = match self.stream.capacity() {
                0 => match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(room)) => room,
                    Some(Err(_)) | None => return Poll::Ready(()),
                },
                room => room,
            };
            let data = piece.split_to(room.min(piece.len()));
            if piece.is_empty() {
                self.queue.pop_front();
            }
            self.left -= data.len();
            if self.stream.send_data(data, self.left == 0).is_err() {
                return Poll::Ready(());
            }
        }
        Poll::Ready(())
    }
}

/// See [`Body`](crate::upstream::Body). One frame for each frame of the provider.
#[derive(Debug)]
pub(in crate::upstream) struct Body {
    open: Option<Open>,
    remaining: Option<u64>,
    /// The last bytes that were announced, while the end of the stream is still to come.
    held: Option<Bytes>,
    broken: bool,
}

/// Dropped in this order: the slot is free when the stream is.
#[derive(Debug)]
struct Open {
    answer: RecvStream,
    /// The rest of a request that the provider answered early.
    upload: Option<Upload>,
    _slot: Slot,
}

impl Body {
    fn new(open: Open, remaining: Option<u64>) -> Self {
        let is_end = remaining == Some(0) || open.answer.is_end_stream();
        Self { open: (!is_end).then_some(open), remaining, held: None, broken: false }
    }

    pub(in crate::upstream) fn is_end(&self) -> bool {
        self.open.is_none() && !self.broken
    }

    pub(in crate::upstream) fn remaining(&self) -> Option<u64> {
        self.remaining
    }

    pub(in crate::upstream) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            let Some(open) = &mut self.open else { return Poll::Ready(None) };
            if open.upload.as_mut().is_some_and(|upload| upload.poll(cx).is_ready()) {
                open.upload = None;
            }
            match ready!(open.answer.poll_data(cx)) {
                Some(Ok(data)) => {
                    // An error here would be the end of the stream, which the next poll tells.
                    let _ = open.answer.flow_control().release_capacity(data.len());
                    if let Some(remaining) = &mut self.remaining {
                        *remaining = remaining.saturating_sub(data.len() as u64);
                    }
                    if !data.is_empty() {
                        self.held = Some(data);
                    }
                    if open.answer.is_end_stream() {
                        self.open = None;
                    } else if self.remaining == Some(0) {
                        // To let go of the stream here would reset it.
                        continue;
                    }
                    if let Some(data) = self.held.take() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Some(Err(error)) if self.held.is_none() => {
                    self.open = None;
                    self.broken = true;
                    let malformed = error.is_library() && error.is_reset();
                    let error = if malformed { BodyError::Framing } else { BodyError::Cut(Some(into_io(error))) };
                    return Poll::Ready(Some(Err(error)));
                }
                // The end; or all that was announced, whatever came after it. Trailers are dropped.
                Some(Err(_)) | None => {
                    self.open = None;
                    return Poll::Ready(self.held.take().map(Ok));
                }
            }
        }
    }
}

/// The name of the error code (RFC 9113 §7), or the kind of an I/O error. Never the peer's own words.
pub(super) fn in_words(error: &h2::Error) -> String {
    match (error.reason(), error.get_io()) {
        (Some(Reason::NO_ERROR), _) => "the connection was closed".into(),
        (Some(reason), _) => format!("{reason:?}"),
        (None, Some(io)) => io.kind().to_string(),
        (None, None) => error.to_string(),
    }
}

fn into_io(error: h2::Error) -> io::Error {
    let words = in_words(&error);
    error.into_io().unwrap_or_else(|| io::Error::other(words))
}
