//! The first event of a stream whose head is still held: it decides whether the attempt has failed.

use memchr::memchr2;
use serde_json::Value as Json;

use super::{DONE, data_type, field, without_bom};

/// A complete event. Bytes that are no UTF-8 are replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The `event` line; without one the `"type"` of the data; without that `message`.
    pub name: String,
    /// The `data` lines, joined by LF.
    pub data: String,
}

/// The first complete event that is neither a comment nor `ping` (nor `[DONE]`): there is one exactly when an
/// [`Observer`](super::Observer) that has seen `held` says `opened`.
pub fn first_event(held: &[u8]) -> Option<Event> {
    let mut rest = without_bom(held);
    let mut name: &[u8] = b"";
    let mut data: Option<Vec<u8>> = None;
    while let Some(end) = memchr2(b'\n', b'\r', rest) {
        let (line, tail) = rest.split_at(end);
        rest = tail.strip_prefix(b"\r\n").or_else(|| tail.get(1..)).unwrap_or_default();
        if line.is_empty() {
            let (name, data) = (std::mem::take(&mut name), data.take());
            if let Some(event) = data.and_then(|data| complete(name, &data)) {
                return Some(event);
            }
            continue;
        }
        match field(line) {
            (b"event", value) => name = value,
            (b"data", value) => match &mut data {
                None => data = Some(value.to_vec()),
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
            },
            _ => {}
        }
    }
    None
}

fn complete(name: &[u8], data: &[u8]) -> Option<Event> {
    let name = match name {
        b"" => data_type(data).unwrap_or_else(|| "message".to_owned()),
        name => String::from_utf8_lossy(name).into_owned(),
    };
    let skipped = name == "ping" || data == DONE;
    (!skipped).then(|| Event { name, data: String::from_utf8_lossy(data).into_owned() })
}

/// The type of error that an event reports, if it does: by its name, by the `"type"` of its data, or, in the manner of
/// the one-api family, by having an `"error"` and no `"type"`. `api_error` where none is named.
pub fn error_type(event: &Event) -> Option<String> {
    let data = serde_json::from_str::<Json>(&event.data).unwrap_or_default();
    let error = data.get("error").filter(|error| !error.is_null());
    let is_error = event.name == "error"
        || match data.get("type") {
            Some(name) => name == "error",
            None => error.is_some(),
        };
    let named = error.and_then(|error| error.get("type")).and_then(Json::as_str).filter(|name| !name.is_empty());
    is_error.then(|| named.unwrap_or("api_error").to_owned())
}

/// Whether a body that is not declared as an event stream begins like one.
pub fn looks_like_events(start: &[u8]) -> bool {
    let start = without_bom(start).trim_ascii_start();
    [&b":"[..], b"event:", b"data:", b"id:", b"retry:"].iter().any(|field| start.starts_with(field))
}
