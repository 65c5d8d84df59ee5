//! A routed request, read once: its body as the pieces in which it came, and what routing must know of it. The body
//! is never copied and never becomes a tree; all attempts share it, and it is released at the commit point.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::scan::{Found, Malformed, Scan, Value, splice};
use crate::inflow::{Body, BodyFault};
use crate::memory::{self, Budget, Share};

/// Largest body of a routed request: Anthropic's own limit is 32 MB.
pub const BODY_LIMIT: u64 = 32 * 1024 * 1024;
/// Bytes of request bodies that are held at once, all requests together.
pub const BUFFER_LIMIT: usize = 256 * 1024 * 1024;
/// What a piece of a body costs beside its bytes: one that comes in single bytes takes more room than it has.
const PIECE_COST: usize = 64;
/// A smaller piece is copied to those before it: a body in single bytes would be a list of as many pieces. Nothing is copied
/// of one that comes at once, and hardly more than its end of one that comes fast.
const SMALL: usize = 4 * 1024;
/// Small pieces that are put together, at most.
const GATHERED: usize = 64 * 1024;
/// The memory of a body of so many bytes is worth a look when it has gone.
const LARGE: usize = 64 * 1024;
/// Longest wait for others to let go of theirs.
const SPACE_TIME: Duration = Duration::from_secs(1);
/// Longest model name, in bytes.
const MODEL_LIMIT: usize = 256;

/// The body of a routed request.
#[derive(Debug)]
pub struct Inbound {
    pieces: Vec<Bytes>,
    /// The model that the client asks for.
    pub model: Arc<str>,
    model_span: Range<usize>,
    /// Whether it asks for a stream.
    pub stream: bool,
    /// The provider that it insists on.
    pub pin: Option<String>,
    pin_cut: Option<Range<usize>>,
    /// Its part of [`BUFFER_LIMIT`].
    _space: Option<Space>,
}

/// A body's part of [`BUFFER_LIMIT`]; it goes after the body.
#[derive(Debug)]
struct Space(Share);

impl Drop for Space {
    fn drop(&mut self) {
        if self.0.bytes() >= LARGE {
            memory::look();
        }
    }
}

/// A body while it arrives.
#[derive(Debug, Default)]
struct Pieces {
    done: Vec<Bytes>,
    /// Small ones, put together.
    gathered: BytesMut,
}

impl Pieces {
    fn push(&mut self, piece: Bytes) {
        // The first is nearly always all there is.
        if piece.len() < SMALL && !(self.done.is_empty() && self.gathered.is_empty()) {
            self.gathered.extend_from_slice(&piece);
            if self.gathered.len() >= GATHERED {
                self.settle();
            }
        } else {
            self.settle();
            self.done.push(piece);
        }
    }

    fn settle(&mut self) {
        if !self.gathered.is_empty() {
            self.done.push(self.gathered.split().freeze());
        }
    }

    fn all(mut self) -> Vec<Bytes> {
        self.settle();
        self.done
    }
}

/// Why a body is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// Over [`BODY_LIMIT`].
    #[error("the request body is larger than 32 MiB")]
    TooLarge,
    /// The client stopped, or its framing is broken.
    #[error("the request body ended early or its framing is broken")]
    Interrupted,
    /// Less than 1 KiB in 10 seconds.
    #[error("the request body did not arrive in time")]
    TooSlow,
    /// The bodies of all requests together are over [`BUFFER_LIMIT`], and stay so.
    #[error("the balancer holds too many request bodies at once")]
    Busy,
    /// Not JSON.
    #[error("the request body is not valid JSON")]
    Json,
    /// JSON, but no object.
    #[error("the request body must be a JSON object")]
    NotAnObject,
    /// Two readers might understand it differently.
    #[error("the request body has more than one top-level \"{0}\"")]
    Repeated(&'static str),
    /// No model.
    #[error("model: a model name is required")]
    NoModel,
    /// No usable model name.
    #[error("model: must be a string of 1 to 256 bytes")]
    BadModel,
}

impl Inbound {
    /// Reads a body to its end.
    ///
    /// # Errors
    /// [`IntakeError`]; an announced length over the limit is refused before anything is read.
    pub async fn read(body: &mut Body, buffers: &Arc<Budget>) -> Result<Self, IntakeError> {
        if body.length().is_some_and(|length| length > BODY_LIMIT) {
            return Err(IntakeError::TooLarge);
        }
        let mut scan = Scan::new(&["model", "stream", "provider"]);
        let (mut pieces, mut length, mut space) = (Pieces::default(), 0_u64, None);
        while let Some(piece) = body.frame().await {
            let data = piece?;
            length += data.len() as u64;
            if length > BODY_LIMIT {
                return Err(IntakeError::TooLarge);
            }
            scan.feed(&data).map_err(malformed)?;
            take_space(buffers, data.len() + PIECE_COST, &mut space).await?;
            pieces.push(data);
        }
        let inbound = Self::from_pieces(pieces.all(), scan.finish().map_err(malformed)?)?;
        Ok(Self { _space: space, ..inbound })
    }

    fn from_pieces(pieces: Vec<Bytes>, found: &Found) -> Result<Self, IntakeError> {
        for key in ["model", "stream"] {
            if found.member(key).is_some_and(|member| member.repeated) {
                return Err(IntakeError::Repeated(key));
            }
        }
        let model = found.member("model").ok_or(IntakeError::NoModel)?;
        let name = match &model.value {
            Value::Text(name) if !name.is_empty() && name.len() <= MODEL_LIMIT => name.clone(),
            _ => return Err(IntakeError::BadModel),
        };
        let stream = found.member("stream").is_some_and(|member| member.value == Value::Bool(true));
        // Other gateways put an object into this field; only a name is ours.
        let pin = found.member("provider").filter(|member| matches!(member.value, Value::Text(_)));
        if pin.is_some_and(|member| member.repeated) {
            return Err(IntakeError::Repeated("provider"));
        }
        let (pin, pin_cut) = match pin.map(|member| (&member.value, member.cut.clone())) {
            Some((Value::Text(name), cut)) => (Some(name.to_string()), Some(cut)),
            _ => (None, None),
        };
        Ok(Self { pieces, model: name, model_span: model.span.clone(), stream, pin, pin_cut, _space: None })
    }

    /// The body for a target: the client's very bytes, but for the span of a model that is replaced and for the pin.
    pub fn body(&self, model: &str) -> Cow<'_, [Bytes]> {
        let replaced = (model != &*self.model).then(|| {
            let text = Bytes::from(serde_json::Value::from(model).to_string());
            (self.model_span.clone(), text)
        });
        let cut = self.pin_cut.clone().map(|range| (range, Bytes::new()));
        let mut changes: Vec<_> = replaced.into_iter().chain(cut).collect();
        if changes.is_empty() {
            return Cow::Borrowed(&self.pieces);
        }
        changes.sort_by_key(|(range, _)| range.start);
        splice(&self.pieces, &changes).into()
    }
}

/// Takes more room for a body; the client's own connection holds it back meanwhile.
async fn take_space(buffers: &Arc<Budget>, bytes: usize, space: &mut Option<Space>) -> Result<(), IntakeError> {
    let more = match buffers.try_take(bytes) {
        Some(more) => more,
        None => tokio::time::timeout(SPACE_TIME, Box::pin(buffers.take(bytes))).await.map_err(|_| IntakeError::Busy)?,
    };
    match space {
        Some(space) => space.0.merge(more),
        None => *space = Some(Space(more)),
    }
    Ok(())
}

impl From<BodyFault> for IntakeError {
    fn from(fault: BodyFault) -> Self {
        match fault {
            BodyFault::Interrupted => Self::Interrupted,
            BodyFault::Slow => Self::TooSlow,
        }
    }
}

fn malformed(fault: Malformed) -> IntakeError {
    match fault {
        Malformed::NotAnObject => IntakeError::NotAnObject,
        _ => IntakeError::Json,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Inbound, IntakeError> {
        let mut scan = Scan::new(&["model", "stream", "provider"]);
        scan.feed(text.as_bytes()).map_err(malformed)?;
        Inbound::from_pieces(vec![Bytes::copy_from_slice(text.as_bytes())], scan.finish().map_err(malformed)?)
    }

    #[test]
    fn the_clients_bytes_stay_but_for_the_spans_that_are_replaced() {
        let body =
            |text: &str, model: &str| String::from_utf8(read(text).expect(text).body(model).concat()).expect("UTF-8");
        let odd = "{ \"max_tokens\" : 1e3,\n\t\"mod\\u0065l\":\"claude\\u002d1\" , \"x\":[1.50, -0]}";
        assert_eq!(body(odd, "claude-1"), odd);
        assert_eq!(body(odd, "o\"3"), odd.replace("\"claude\\u002d1\"", "\"o\\\"3\""));
        let pinned = r#"{"provider":"B", "model":"a","n":1}"#;
        assert_eq!(read(pinned).expect("valid").pin.as_deref(), Some("B"));
        assert_eq!(body(pinned, "a"), r#"{"model":"a","n":1}"#);
        assert_eq!(body(pinned, "b"), r#"{"model":"b","n":1}"#);
        assert_eq!(body(r#"{"model":"a","provider":"B"}"#, "a"), r#"{"model":"a"}"#);
        let foreign = r#"{"model":"a","provider":{"only":["x"]}}"#;
        assert_eq!((read(foreign).expect("valid").pin, body(foreign, "a")), (None, foreign.to_owned()));
    }

    #[test]
    fn small_pieces_are_put_together_and_large_ones_stay_where_they_are() {
        let buffer = Bytes::from(vec![b'x'; 128 * 1024]);
        let mut pieces = Pieces::default();
        let sizes = [100, 8192, 1, 2, 3, 8192, 4095, 8192];
        let mut at = 0;
        for size in sizes {
            pieces.push(buffer.slice(at..at + size));
            at += size;
        }
        let all = pieces.all();
        assert_eq!(all.iter().map(Bytes::len).collect::<Vec<_>>(), [100, 8192, 6, 8192, 4095, 8192]);
        let inside = buffer.as_ptr_range();
        let shared: Vec<bool> = all.iter().map(|piece| inside.contains(&piece.as_ptr())).collect();
        assert_eq!(shared, [true, true, false, true, false, true]);

        let mut drip = Pieces::default();
        (0..100_000).for_each(|at| drip.push(buffer.slice(at..=at)));
        let all = drip.all();
        assert_eq!((all.len(), all.concat().len()), (3, 100_000));
    }

    #[test]
    fn only_true_asks_for_a_stream() {
        for (text, wanted) in [
            (r#"{"model":"a","stream":true}"#, true),
            (r#"{"model":"a","stream":false}"#, false),
            (r#"{"model":"a","stream":"true"}"#, false),
            (r#"{"model":"a","stream":null}"#, false),
            (r#"{"model":"a","x":{"stream":true}}"#, false),
        ] {
            assert_eq!(read(text).expect(text).stream, wanted, "{text}");
        }
    }

    #[test]
    fn bodies_that_two_readers_might_understand_differently_are_refused() {
        let cases = [
            ("", "not valid JSON"),
            ("nope", "not valid JSON"),
            (r#"{"model":"a""#, "not valid JSON"),
            ("[]", "must be a JSON object"),
            ("null", "must be a JSON object"),
            (r#"{"model":"a","model":"b"}"#, "more than one top-level \"model\""),
            (r#"{"model":"a","mod\u0065l":"a"}"#, "more than one top-level \"model\""),
            (r#"{"model":"a","stream":true,"stream":false}"#, "more than one top-level \"stream\""),
            (r#"{"model":"a","provider":"A","provider":"B"}"#, "more than one top-level \"provider\""),
            (r#"{"messages":[]}"#, "a model name is required"),
            (r#"{"model":1}"#, "must be a string"),
            (r#"{"model":""}"#, "must be a string"),
        ];
        for (text, wanted) in cases {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
        let long = format!(r#"{{"model":"{}"}}"#, "m".repeat(257));
        assert!(matches!(read(&long), Err(IntakeError::BadModel)));
    }
}
