//! Frames of an event stream, as the real API writes them.

use bytes::Bytes;
use serde_json::{Value, json};

/// One event: `event: NAME`, `data: JSON`, an empty line.
pub fn event(name: &str, data: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

/// The API's keep-alive event.
pub fn ping() -> Bytes {
    event("ping", &json!({"type": "ping"}))
}

/// A comment line with its empty line: no event at all.
pub fn comment(text: &str) -> Bytes {
    Bytes::from(format!(": {text}\n\n"))
}

/// An `error` event, in Anthropic's shape.
pub fn error(kind: &str, message: &str) -> Bytes {
    event("error", &json!({"type": "error", "error": {"type": kind, "message": message}}))
}

/// The first event of a message.
pub fn message_start(model: &str) -> Bytes {
    let message = json!({
        "id": "msg_lab", "type": "message", "role": "assistant", "model": model, "content": [],
        "stop_reason": null, "stop_sequence": null,
        "usage": {"input_tokens": 9, "output_tokens": 1},
    });
    event("message_start", &json!({"type": "message_start", "message": message}))
}

/// Opens the text block.
pub fn block_start() -> Bytes {
    let block = json!({"type": "text", "text": ""});
    event("content_block_start", &json!({"type": "content_block_start", "index": 0, "content_block": block}))
}

/// A piece of text.
pub fn text_delta(text: &str) -> Bytes {
    let delta = json!({"type": "text_delta", "text": text});
    event("content_block_delta", &json!({"type": "content_block_delta", "index": 0, "delta": delta}))
}

/// Closes the text block.
pub fn block_stop() -> Bytes {
    event("content_block_stop", &json!({"type": "content_block_stop", "index": 0}))
}

/// Why the message ended, and its final usage.
pub fn message_delta(output_tokens: usize) -> Bytes {
    let delta = json!({"stop_reason": "end_turn", "stop_sequence": null});
    let usage = json!({"output_tokens": output_tokens});
    event("message_delta", &json!({"type": "message_delta", "delta": delta, "usage": usage}))
}

/// The last event of a message.
pub fn message_stop() -> Bytes {
    event("message_stop", &json!({"type": "message_stop"}))
}

/// A whole message: start, block, ping, one delta per text, stop.
pub fn message(model: &str, texts: &[impl AsRef<str>]) -> Vec<Bytes> {
    let mut frames = vec![message_start(model), block_start(), ping()];
    frames.extend(texts.iter().map(|text| text_delta(text.as_ref())));
    frames.extend([block_stop(), message_delta(texts.len()), message_stop()]);
    frames
}
