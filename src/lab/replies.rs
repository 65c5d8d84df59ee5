//! The scripts to begin with: what the real API sends, and the ways of not answering.

use bytes::Bytes;
use serde_json::{Value, json};

use super::event;
use super::request::Received;
use super::script::{After, Ending, Frame, Framing, Limit, Opening, Script};

/// The model that replies name unless told otherwise.
const MODEL: &str = "claude-lab";

/// The `request-id` of every reply in Anthropic's shape.
const REQUEST_ID: &str = "req_lab";

/// What the real API sends.
impl Script {
    /// 200 and a JSON message with this text.
    pub fn message(text: &str) -> Self {
        Self::message_of(MODEL, text)
    }

    /// [`message`](Self::message) from a named model.
    pub fn message_of(model: &str, text: &str) -> Self {
        let message = json!({
            "id": "msg_lab", "type": "message", "role": "assistant", "model": model,
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn", "stop_sequence": null,
            "usage": {"input_tokens": 9, "output_tokens": 3},
        });
        Self::json(200, &message).header("request-id", REQUEST_ID)
    }

    /// 200 and an event stream, chunked, one delta per text: `message_start`, `content_block_start`, `ping`,
    /// `content_block_delta`…, `content_block_stop`, `message_delta`, `message_stop`.
    pub fn stream(texts: &[impl AsRef<str>]) -> Self {
        Self::stream_of(MODEL, texts)
    }

    /// [`stream`](Self::stream) from a named model.
    pub fn stream_of(model: &str, texts: &[impl AsRef<str>]) -> Self {
        Self::events(event::message(model, texts))
    }

    /// 200 and an event stream of these frames.
    pub fn events(frames: Vec<Bytes>) -> Self {
        Self { framing: Framing::Chunked, ..Self::empty(200) }
            .header("content-type", "text/event-stream; charset=utf-8")
            .header("cache-control", "no-cache")
            .header("request-id", REQUEST_ID)
            .frames(frames)
    }

    /// An error in Anthropic's shape.
    pub fn error(status: u16, kind: &str, message: &str) -> Self {
        let error = json!({
            "type": "error", "error": {"type": kind, "message": message}, "request_id": REQUEST_ID,
        });
        Self::json(status, &error).header("request-id", REQUEST_ID)
    }

    /// A stream if the request asked for one, else a message: what a healthy provider does.
    pub fn as_asked(request: &Received) -> Self {
        let body = request.json();
        let model = body.get("model").and_then(Value::as_str).unwrap_or(MODEL);
        match body.get("stream").and_then(Value::as_bool) {
            Some(true) => Self::stream_of(model, &["Hello", " from", " the", " lab."]),
            _ => Self::message_of(model, "Hello from the lab."),
        }
    }
}

/// What else comes down the line.
impl Script {
    /// A JSON value.
    pub fn json(status: u16, value: &Value) -> Self {
        Self::body(status, "application/json", value.to_string())
    }

    /// The page of a CDN that has no answer.
    pub fn html(status: u16) -> Self {
        let page = format!(
            "<!DOCTYPE html>\n<html><head><title>{status}</title></head><body><h1>Error {status}</h1></body></html>\n"
        );
        Self::body(status, "text/html; charset=UTF-8", page).header("server", "cloudflare").header("cf-ray", "lab-LAB")
    }

    /// Any body, of any type, with its length.
    pub fn body(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        Self::empty(status).header("content-type", content_type).frames(vec![body.into()])
    }

    /// A redirect without a body.
    pub fn redirect(status: u16, location: &str) -> Self {
        Self::empty(status).header("location", location)
    }

    /// A head and no body: `204`, `101`, or a bare error with `content-length: 0`.
    pub fn empty(status: u16) -> Self {
        Self {
            opening: Opening::Answer,
            early: false,
            before_head: Vec::new(),
            interims: Vec::new(),
            version: "HTTP/1.1",
            status,
            headers: Vec::new(),
            omitted: Vec::new(),
            framing: Framing::Length,
            frames: Vec::<Frame>::new(),
            between: Vec::new(),
            before_end: Vec::new(),
            chunk_extension: String::new(),
            trailers: Vec::new(),
            limit: Limit::None,
            ending: Ending::Cut,
            after: After::Keep,
            surplus: Bytes::new(),
            split: None,
            one_write: false,
        }
    }

    /// Exactly these bytes, however malformed; then closes, unless [`keep_alive`](Self::keep_alive) follows.
    pub fn raw(bytes: impl Into<Bytes>) -> Self {
        Self { opening: Opening::Raw(bytes.into()), after: After::Close, ..Self::empty(200) }
    }

    /// Reads the request and never answers.
    pub fn stall() -> Self {
        Self { opening: Opening::Silence, ending: Ending::Stall, ..Self::empty(200) }
    }

    /// Reads the request and resets its stream with this error code (RFC 9113 §7), in HTTP/2; in HTTP/1.1, as
    /// [`reset`](Self::reset).
    pub fn refuse(code: u32) -> Self {
        Self { opening: Opening::Refusal(code), ..Self::empty(200) }
    }

    /// Reads the request and closes with FIN before any byte.
    pub fn close() -> Self {
        Self { opening: Opening::Silence, ending: Ending::Cut, ..Self::empty(200) }
    }

    /// Reads the request and resets the connection (RST) before any byte.
    pub fn reset() -> Self {
        Self { opening: Opening::Silence, ending: Ending::Reset, ..Self::empty(200) }
    }
}
