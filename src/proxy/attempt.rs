//! One try at one target, up to the point where its answer could be committed: the head, and as much of the body as
//! the verdict needs. For a stream that is the first event, for everything else the whole body.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use super::events::{self, Observer};
use super::members::members;
use super::rewrite;
use super::scan::{Scan, Value};
use super::verdict::{Content, ErrorBody};
use crate::provider::Provider;
use crate::upstream::{Body, BodyError, DialLimits, Request, Response, SendError, Upstream};

/// Largest body that is held before the commit point; a larger one commits at the head.
const HOLD_LIMIT: usize = 32 * 1024 * 1024;
/// Largest error body that is looked into.
const ERROR_LIMIT: usize = 1024 * 1024;
/// Longest wait for an error body, after the head: the status has said the most of it.
const ERROR_TIME: Duration = Duration::from_secs(5);
/// Bytes that tell an event stream under a wrong name.
const SNIFF_LENGTH: usize = 16;
/// Most bytes of a stream that are held for its first event.
const FIRST_EVENT_LIMIT: usize = 64 * 1024;
/// Longest wait for it, after the head.
const FIRST_EVENT_TIME: Duration = Duration::from_secs(5);

/// The limits of one attempt.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// For the connection.
    pub dial: DialLimits,
    /// When the head must be there; none where no other target is left.
    pub head: Option<Instant>,
    /// When the whole request must be committed.
    pub commit: Instant,
    /// Longest silence inside a body.
    pub idle: Duration,
}

/// What came of it.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one for each attempt, and moved once")]
pub enum Arrival {
    /// An answer.
    Answer(Answer),
    /// No head.
    Failed(SendError),
    /// No head in time.
    HeadTimeout,
    /// The body broke before the commit point.
    Broken(BodyError),
    /// The body stalled before the commit point.
    Stalled,
    /// The time of the whole request is over.
    OutOfTime,
}

/// An answer, as far as it was read.
#[derive(Debug)]
pub struct Answer {
    /// The status of its head.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: AnswerBody,
    /// What the body turned out to be.
    pub nature: Nature,
}

/// The body of an answer.
#[derive(Debug)]
pub enum AnswerBody {
    /// All of it.
    Whole(Vec<Bytes>),
    /// The beginning, and the rest that is still to come.
    Open {
        /// Read before the commit point.
        held: Vec<Bytes>,
        /// To be relayed.
        rest: Body,
        /// For an event stream that can be watched.
        observer: Option<Box<Observer>>,
    },
}

/// See [`Content`]; this one owns its words.
#[derive(Debug)]
pub enum Nature {
    /// What was asked for, or what nobody can look into.
    AsAsked,
    /// `error.type`, `error.message`, and a code.
    Error {
        /// `error.type`.
        kind: String,
        /// `error.message`.
        message: String,
        /// `error.details.error_code` or `error.code`.
        code: String,
    },
    /// A web page.
    Html,
    /// Neither.
    Unusable(&'static str),
}

impl Nature {
    /// For the verdict.
    pub fn content(&self) -> Content<'_> {
        match self {
            Self::AsAsked => Content::AsAsked,
            Self::Error { kind, message, code } => Content::Error(ErrorBody { kind, message, code }),
            Self::Html => Content::Html,
            Self::Unusable(why) => Content::Unusable(why),
        }
    }

    /// Reads the error out of an object that has one; Anthropic's shape, or one close to it.
    fn from_json(body: &[u8]) -> Option<Self> {
        let [error] = members(body, ["error"])?;
        let error = error.filter(|error| error.get() != "null")?;
        let parts = members(error.get().as_bytes(), ["type", "message", "code", "details"]);
        let [kind, message, code, details] = parts.unwrap_or_default();
        let code_in_details =
            details.and_then(|details| members(details.get().as_bytes(), ["error_code"])).and_then(|[code]| code);
        Some(Self::Error {
            kind: text(kind),
            message: if error.get().starts_with('"') { text(Some(error)) } else { text(message) },
            code: text(code_in_details.or(code)),
        })
    }
}

/// A text, decoded, or a number; what is neither says nothing.
fn text(value: Option<&RawValue>) -> String {
    let Some(value) = value.map(RawValue::get) else { return String::new() };
    match value.as_bytes().first() {
        Some(b'"') => serde_json::from_str(value).unwrap_or_default(),
        Some(b'-' | b'0'..=b'9') => {
            serde_json::from_str::<serde_json::Number>(value).map(|number| number.to_string()).unwrap_or_default()
        }
        _ => String::new(),
    }
}

/// Sends a request and reads what the verdict needs. `stream` says whether the client asked for a stream.
pub async fn send(
    upstream: &Upstream,
    provider: &Provider,
    request: Request<'_>,
    stream: bool,
    clock: Clock,
) -> Arrival {
    let head_by = clock.head.map_or(clock.commit, |head| head.min(clock.commit));
    let sent = {
        let sending = pin!(upstream.send(provider, request, clock.dial));
        timeout_at(head_by, sending).await
    };
    let response = match sent {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Arrival::Failed(error),
        Err(_) if head_by == clock.commit => return Arrival::OutOfTime,
        Err(_) => return Arrival::HeadTimeout,
    };
    let result = if !response.status.is_success() {
        Box::pin(refused(response, clock)).await
    } else if stream {
        pin!(streamed(response, clock)).await
    } else {
        pin!(plain(response, clock)).await
    };
    result.unwrap_or_else(|stopped| stopped)
}

/// Anything but 2xx: the body tells what kind of error it is. Without one, the head still says enough for the verdict.
async fn refused(response: Response, clock: Clock) -> Result<Arrival, Arrival> {
    let Response { status, headers, body } = response;
    let body = match timeout_at(Instant::now() + ERROR_TIME, read(body, ERROR_LIMIT, clock, |_| true)).await {
        Ok(Ok(body)) => body,
        Ok(Err(Arrival::OutOfTime)) => return Err(Arrival::OutOfTime),
        Ok(Err(_)) | Err(_) => {
            let nature = Nature::Unusable("an error whose body was cut off");
            return Ok(Arrival::Answer(Answer { status, headers, body: AnswerBody::Whole(Vec::new()), nature }));
        }
    };
    let nature = match &body {
        AnswerBody::Whole(pieces) | AnswerBody::Open { held: pieces, .. } if is_html(&headers, pieces) => Nature::Html,
        AnswerBody::Whole(pieces) => Nature::from_json(&joined(pieces)).unwrap_or(Nature::AsAsked),
        AnswerBody::Open { .. } => Nature::AsAsked,
    };
    Ok(Arrival::Answer(Answer { status, headers, body, nature }))
}

/// 2xx to a plain request: the whole body, which must be a JSON object.
async fn plain(response: Response, clock: Clock) -> Result<Arrival, Arrival> {
    let Response { status, headers, body } = response;
    let mut scan = Scan::new(&["type", "error"]);
    let mut valid = true;
    let watched = !is_encoded(&headers);
    let body = pin!(read(body, HOLD_LIMIT, clock, |piece| {
        valid = valid && (!watched || scan.feed(piece).is_ok());
        // What can no longer become valid need not be read to its end.
        valid
    }))
    .await?;
    let nature = match &body {
        AnswerBody::Whole(pieces) | AnswerBody::Open { held: pieces, .. } if is_html(&headers, pieces) => Nature::Html,
        _ if !watched => Nature::AsAsked,
        _ if is_event_stream(&headers) => Nature::Unusable("an event stream for a plain request"),
        _ if !valid => Nature::Unusable("the body is not valid JSON"),
        AnswerBody::Open { .. } => Nature::AsAsked,
        AnswerBody::Whole(pieces) => match scan.finish() {
            Err(_) => Nature::Unusable("the body is not a complete JSON object"),
            Ok(found) => {
                let named = found
                    .member("type")
                    .is_some_and(|member| matches!(&member.value, Value::Text(text) if **text == *"error"));
                let holds = found.member("error").is_some_and(|m| matches!(m.value, Value::Object | Value::Text(_)));
                match (named || holds).then(|| Nature::from_json(&joined(pieces))).flatten() {
                    Some(error) => error,
                    None if named => Nature::Unusable("an error that does not say which"),
                    None => Nature::AsAsked,
                }
            }
        },
    };
    Ok(Arrival::Answer(Answer { status, headers, body, nature }))
}

/// 2xx to a streaming request: up to the first event that is neither a comment nor a ping.
async fn streamed(response: Response, clock: Clock) -> Result<Arrival, Arrival> {
    let Response { status, mut headers, body: mut rest } = response;
    let open = |held, rest, observer| AnswerBody::Open { held, rest, observer };
    if is_encoded(&headers) {
        let body = open(Vec::new(), rest, None);
        return Ok(Arrival::Answer(Answer { status, headers, body, nature: Nature::AsAsked }));
    }
    let deadline = (Instant::now() + FIRST_EVENT_TIME).min(clock.commit);
    let mut held: Vec<Bytes> = Vec::new();
    let mut length = 0;
    let mut observer = Box::new(Observer::new());
    if !is_event_stream(&headers) {
        // Some providers send events under a wrong name, or none.
        while !events::looks_like_events(&joined(&held)) {
            match if length < SNIFF_LENGTH { next(&mut rest, clock).await? } else { None } {
                Some(piece) => {
                    observer.feed(&piece);
                    length += piece.len();
                    held.push(piece);
                }
                None => return Box::pin(not_a_stream(status, headers, held, rest, clock)).await,
            }
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    }
    while !observer.opened() && length < FIRST_EVENT_LIMIT {
        match timeout_at(deadline, rest.frame()).await {
            Ok(Some(Ok(piece))) => {
                observer.feed(&piece);
                length += piece.len();
                held.push(piece);
            }
            Ok(Some(Err(error))) => return Err(Arrival::Broken(error)),
            Ok(None) => {
                let nature = Nature::Unusable("the stream ended before its first event");
                return Ok(Arrival::Answer(Answer { status, headers, body: AnswerBody::Whole(held), nature }));
            }
            // The commit point is not put off any longer.
            Err(_) => break,
        }
    }
    if let Some(event) = events::first_event(&joined(&held))
        && let Some(kind) = events::error_type(&event)
    {
        // It is judged as its status would be, and reaches the client, if it does, as an answer of that status.
        let nature = Nature::from_json(event.data.as_bytes()).unwrap_or(Nature::Error {
            kind,
            message: String::new(),
            code: String::new(),
        });
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let body = AnswerBody::Whole(vec![Bytes::from(event.data)]);
        return Ok(Arrival::Answer(Answer { status, headers, body, nature }));
    }
    Ok(Arrival::Answer(Answer { status, headers, body: open(held, rest, Some(observer)), nature: Nature::AsAsked }))
}

/// 2xx to a streaming request, but no stream: an error in JSON, a web page, or a message that nobody asked for.
async fn not_a_stream(
    status: StatusCode,
    headers: HeaderMap,
    start: Vec<Bytes>,
    rest: Body,
    clock: Clock,
) -> Result<Arrival, Arrival> {
    let mut body = read(rest, ERROR_LIMIT, clock, |_| true).await?;
    let (AnswerBody::Whole(pieces) | AnswerBody::Open { held: pieces, .. }) = &mut body;
    pieces.splice(0..0, start);
    let nature = if is_html(&headers, pieces) {
        Nature::Html
    } else if pieces.is_empty() {
        Nature::Unusable("an empty body")
    } else {
        Nature::from_json(&joined(pieces)).unwrap_or(Nature::Unusable("no event stream, although one was asked for"))
    };
    Ok(Arrival::Answer(Answer { status, headers, body, nature }))
}

/// Reads a body to its end, or until it is larger than `limit`, or until `wanted` has seen enough.
async fn read(
    mut body: Body,
    limit: usize,
    clock: Clock,
    mut wanted: impl FnMut(&Bytes) -> bool,
) -> Result<AnswerBody, Arrival> {
    let mut held = Vec::new();
    let mut length = 0;
    while let Some(piece) = next(&mut body, clock).await? {
        length += piece.len();
        let more = wanted(&piece);
        held.push(piece);
        if length > limit || !more {
            return Ok(AnswerBody::Open { held, rest: body, observer: None });
        }
    }
    Ok(AnswerBody::Whole(held))
}

async fn next(body: &mut Body, clock: Clock) -> Result<Option<Bytes>, Arrival> {
    // Most bodies come with their head: no timer is made for what is here.
    let here = std::future::poll_fn(|cx| Poll::Ready(body.poll_frame(cx))).await;
    if let Poll::Ready(frame) = here {
        return frame.transpose().map_err(Arrival::Broken);
    }
    let idle = Instant::now() + clock.idle;
    match timeout_at(idle.min(clock.commit), body.frame()).await {
        Ok(Some(Ok(piece))) => Ok(Some(piece)),
        Ok(Some(Err(error))) => Err(Arrival::Broken(error)),
        Ok(None) => Ok(None),
        Err(_) if idle < clock.commit => Err(Arrival::Stalled),
        Err(_) => Err(Arrival::OutOfTime),
    }
}

/// One slice; copies only where several pieces were held, which are few and small.
fn joined(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [one] => one.clone(),
        many => {
            let mut all = BytesMut::with_capacity(many.iter().map(Bytes::len).sum());
            many.iter().for_each(|piece| all.extend_from_slice(piece));
            all.freeze()
        }
    }
}

fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_ENCODING).is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Whether a head announces an event stream.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    rewrite::is_of_kind(headers, &["text/event-stream"])
}

/// A web page, by its name or by how it begins.
fn is_html(headers: &HeaderMap, pieces: &[Bytes]) -> bool {
    let named = rewrite::is_of_kind(headers, &["text/html", "application/xhtml+xml"]);
    // It may come in pieces of any size.
    let begins = |tag: &[u8]| {
        let mut start = pieces.iter().flatten().skip_while(|byte| byte.is_ascii_whitespace());
        tag.iter().all(|byte| start.next().is_some_and(|found| found.eq_ignore_ascii_case(byte)))
    };
    named || begins(b"<!doctype html") || begins(b"<html")
}
