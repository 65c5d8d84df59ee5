//! A reader of event streams, strictly by the rules of the WHATWG (HTML, 9.2.6).

/// One event that a browser would dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its type; `message` if none was given.
    pub event: String,
    pub data: String,
}

impl Event {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {}", self.data))
    }
}

/// The events of a whole body. An unfinished event at the end is dropped, as the rules want.
pub fn events(body: &[u8]) -> Vec<Event> {
    let text = String::from_utf8_lossy(body);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let (mut events, mut kind, mut data) = (Vec::new(), String::new(), String::new());
    for line in lines(text) {
        if line.is_empty() {
            if let Some(data) = data.strip_suffix('\n') {
                let event = if kind.is_empty() { "message".to_owned() } else { kind.clone() };
                events.push(Event { event, data: data.to_owned() });
            }
            kind.clear();
            data.clear();
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut kind),
            "data" => {
                data.push_str(value);
                data.push('\n');
            }
            // A comment has the empty field name; `id` and `retry` have no use here; others are ignored.
            _ => {}
        }
    }
    events
}

/// The types of the events, in order.
pub fn names(body: &[u8]) -> Vec<String> {
    events(body).into_iter().map(|event| event.event).collect()
}

/// The text of a message: all its text deltas, joined.
pub fn text(body: &[u8]) -> String {
    let deltas = events(body).into_iter().filter(|event| event.event == "content_block_delta");
    deltas.map(|event| event.json()["delta"]["text"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Complete lines, ended by CRLF, LF or CR.
fn lines(text: &str) -> Vec<&str> {
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(['\r', '\n']) {
        lines.push(&rest[..at]);
        rest = &rest[at..];
        rest = rest.strip_prefix("\r\n").unwrap_or(&rest[1..]);
    }
    lines
}

#[test]
fn event_streams_are_read_by_the_rules() {
    let read = |body: &str| events(body.as_bytes()).into_iter().map(|e| (e.event, e.data)).collect::<Vec<_>>();
    let one = |event: &str, data: &str| vec![(event.to_owned(), data.to_owned())];
    for (body, expected) in [
        ("event: a\ndata: b\n\n", one("a", "b")),
        ("\u{feff}event:a\r\ndata:b\r\n\r\n", one("a", "b")),
        ("event: a\rdata:  b\r\r", one("a", " b")),
        ("data: b\ndata: c\n\n", one("message", "b\nc")),
        ("data\n\n", one("message", "")),
        (": comment\nevent: a\n\ndata: b\n\n", one("message", "b")),
        ("id: 7\nretry: 1\nevent: a\nevent: z\ndata: b: c\n\n", one("z", "b: c")),
        ("event: a\ndata: b\n", Vec::new()),
        ("event: a\n\n", Vec::new()),
    ] {
        assert_eq!(read(body), expected, "{body:?}");
    }
}
