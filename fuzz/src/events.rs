//! Event streams: the observer sees the same in any pieces, agrees with the specification's algorithm, and an event of
//! our own can be set behind anything.

use claude_code_balancer::proxy::events::{Observer, error_type, first_event};
use serde_json::Value as Json;

pub fn check(bytes: &[u8]) {
    let seen = |pieces: &[&[u8]]| {
        let mut observer = Observer::new();
        pieces.iter().for_each(|piece| observer.feed(piece));
        (observer.opened(), observer.stopped(), observer.failed(), observer.separator())
    };
    let whole = seen(&[bytes]);
    for pieces in super::cuts(bytes) {
        assert_eq!(seen(&pieces), whole, "in {} pieces", pieces.len());
    }
    let (opened, stopped, failed, separator) = whole;
    let first = first_event(bytes);
    assert_eq!(opened, first.is_some());

    let events = reference(bytes);
    // Names are looked at as far as 128 bytes of the line go, and so is the data of an event without a name.
    let short =
        events.iter().all(|event| event.data.len() <= 120 && event.name.as_ref().is_none_or(|name| name.len() < 100));
    let named: Option<Vec<String>> = events.iter().map(Event::named).collect();
    if let Some(named) = named.filter(|_| short) {
        let real = |name: &&String| *name != "ping";
        assert_eq!(opened, named.iter().any(|name| real(&name)), "{named:?}");
        assert_eq!(stopped, named.iter().any(|name| name == "message_stop"), "{named:?}");
        assert_eq!(failed, named.iter().any(|name| name == "error"), "{named:?}");
        let wanted = named.iter().zip(&events).find(|(name, _)| real(name));
        let wanted = wanted.map(|(name, event)| (name.clone(), String::from_utf8_lossy(&event.data).into_owned()));
        assert_eq!(first.clone().map(|event| (event.name, event.data)), wanted);
    }
    if let Some(first) = first {
        assert!(first.name != "error" || error_type(&first).is_some_and(|kind| !kind.is_empty()));
    }

    let written = [bytes, &separator, b"event: error\ndata: {\"type\":\"error\"}\n\n"].concat();
    let before = events.len();
    let after = reference(&written);
    let last = after.last().map(|event| (event.name.as_deref(), &event.data[..]));
    assert_eq!(last, Some((Some(&b"error"[..]), &br#"{"type":"error"}"#[..])), "our event does not stand alone");
    assert!(after.len() <= before + 2, "more than one event was made of the rest");
}

struct Event {
    name: Option<Vec<u8>>,
    data: Vec<u8>,
}

impl Event {
    /// The name, or what stands for it; nothing where the data of a nameless event is no JSON, whose start might mean
    /// anything.
    fn named(&self) -> Option<String> {
        if let Some(name) = &self.name {
            return Some(String::from_utf8_lossy(name).into_owned());
        }
        let data: Json = serde_json::from_slice(&self.data).ok()?;
        Some(match (data.get("type"), data.get("error")) {
            (Some(Json::String(name)), _) => name.clone(),
            (None, Some(error)) if !error.is_null() => "error".to_owned(),
            _ => "message".to_owned(),
        })
    }
}

/// The specification's algorithm, line by line. `[DONE]` is no event.
fn reference(bytes: &[u8]) -> Vec<Event> {
    let mut rest = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let (mut events, mut name, mut data) = (Vec::new(), Vec::new(), None::<Vec<u8>>);
    while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        let line = &rest[..end];
        rest = rest[end..].strip_prefix(b"\r\n").unwrap_or(&rest[end + 1..]);
        if line.is_empty() {
            let name = Some(std::mem::take(&mut name)).filter(|name: &Vec<u8>| !name.is_empty());
            if let Some(data) = data.take().filter(|data| data != b"[DONE]") {
                events.push(Event { name, data });
            }
            continue;
        }
        let (field, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &b""[..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => name = value.to_vec(),
            b"data" => {
                data = Some(match data {
                    None => value.to_vec(),
                    Some(data) => [&data[..], b"\n", value].concat(),
                });
            }
            _ => {}
        }
    }
    events
}
