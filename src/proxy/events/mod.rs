//! Watches an event stream go by (WHATWG "server-sent events") and never changes a byte of it.
//!
//! The proxy needs to know four things of a stream: whether something real has been said (the commit point), whether
//! it came to its `message_stop`, whether the provider itself said `error`, and how an event of our own can be set
//! after a cut so that it stands alone. For that the start of each line is enough: the observer keeps 128 bytes of the
//! current event's data, and a little more of the current line, however long they are.
//!
//! An event without a name is known by the `"type"` of its data. `data: [DONE]` is no event of this API and is ignored.

use memchr::memchr2;

use super::scan::{Scan, Value};

mod first;

pub use first::{Event, error_type, first_event, looks_like_events};

/// Follows one stream. See the module.
#[derive(Clone, Debug, Default)]
pub struct Observer {
    line: Prefix<LINE>,
    /// The latest bytes of the current line, of which the last is the latest.
    tail: [u8; 4],
    /// The latest byte of all was a CR, so that an LF would belong to it.
    after_cr: bool,
    /// The first line, which may begin with a BOM, is over.
    begun: bool,
    event: Pending,
    opened: bool,
    stopped: bool,
    failed: bool,
}

/// The event whose blank line has not come yet.
#[derive(Clone, Debug, Default)]
struct Pending {
    named: Option<Kind>,
    data: Prefix<DATA>,
    data_lines: Lines,
    /// There is an `event` or `data` line.
    fields: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Lines {
    #[default]
    None,
    /// One, and it ends as a whole JSON object does.
    Whole,
    Some,
}

/// What an event means to the proxy.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Ping,
    Stop,
    Error,
    Other,
}

impl Observer {
    /// An observer at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sees the next bytes, split anywhere.
    pub fn feed(&mut self, frame: &[u8]) {
        let mut rest = match frame {
            [b'\n', rest @ ..] if self.after_cr => rest,
            [] => return,
            _ => frame,
        };
        self.after_cr = false;
        loop {
            if self.is_between_events() {
                let length = deltas(rest);
                self.opened |= length > 0;
                rest = rest.get(length..).unwrap_or_default();
            }
            let Some(length) = memchr2(b'\n', b'\r', rest) else { break };
            let (line, end) = rest.split_at(length);
            self.line_ends(line);
            rest = match end {
                [b'\r', b'\n', rest @ ..] => rest,
                [b'\r'] => {
                    self.after_cr = true;
                    &[]
                }
                [_, rest @ ..] => rest,
                [] => &[],
            };
        }
        self.extend(rest);
    }

    /// A complete event has been seen that is no ping and has data: from here on the answer has begun.
    pub fn opened(&self) -> bool {
        self.opened
    }

    /// A complete `message_stop` has been seen.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// A complete `error` has been seen, after which nothing need be added.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// What must be written before an event of our own.
    ///
    /// An event that lacks nothing but its blank line gets it. One cut earlier would, if it were simply ended, reach
    /// the client as half a JSON, which the SDKs parse under any name but `error` and `ping`, unknown ones and none
    /// included; so it becomes a ping, which every client ignores. (A ping without data, where there was no data yet.)
    /// Half a character is completed first: one SDK decodes each line strictly.
    /// After a CR the first LF belongs to that CR, and says nothing.
    pub fn separator(&self) -> Vec<u8> {
        let line_start = self.line.is_empty();
        let lines: &[u8] = match (line_start, self.after_cr, self.event.fields, self.event.data_lines) {
            (true, false, false, _) => b"",
            (true, true, false, _) | (true, false, true, Lines::Whole) => b"\n",
            (true, true, true, Lines::Whole) => b"\n\n",
            (true, false, true, _) => b"event: ping\n\n",
            (true, true, true, _) | (false, ..) => b"\nevent: ping\n\n",
        };
        [&rest_of_character(&self.tail), lines].concat()
    }

    /// Whether the next byte begins an event.
    fn is_between_events(&self) -> bool {
        self.begun && self.line.is_empty() && !self.event.fields && self.event.data_lines == Lines::None
    }

    fn extend(&mut self, part: &[u8]) {
        self.line.extend(part);
        match part.last_chunk() {
            Some(last) => self.tail = *last,
            None => part.iter().for_each(|byte| {
                self.tail.rotate_left(1);
                self.tail[3] = *byte;
            }),
        }
    }

    /// A line ends, of which `rest` is new: nearly always that is all of it, and nothing is copied.
    fn line_ends(&mut self, rest: &[u8]) {
        let kind = if self.line.is_empty() {
            let line = rest.get(..LINE).unwrap_or(rest);
            self.event.line(if self.begun { line } else { without_bom(line) }, rest.last().copied())
        } else {
            self.extend(rest);
            let [.., latest] = std::mem::take(&mut self.tail);
            let line = self.line.bytes();
            let kind = self.event.line(if self.begun { line } else { without_bom(line) }, Some(latest));
            self.line.clear();
            kind
        };
        self.begun = true;
        if let Some(kind) = kind {
            self.opened |= kind != Kind::Ping;
            self.stopped |= kind == Kind::Stop;
            self.failed |= kind == Kind::Error;
        }
    }
}

impl Pending {
    /// Takes in a line, of which `latest` is the last byte; a blank one may bring an event to its end.
    fn line(&mut self, line: &[u8], latest: Option<u8>) -> Option<Kind> {
        if line.is_empty() {
            return self.end();
        }
        match field(line) {
            (b"event", name) => {
                self.fields = true;
                self.named = (!name.is_empty()).then(|| kind(name));
            }
            (b"data", data) => {
                self.fields = true;
                if self.data_lines != Lines::None {
                    self.data.extend(b"\n");
                }
                self.data_lines = match (self.data_lines, latest) {
                    (Lines::None, Some(b'}')) => Lines::Whole,
                    _ => Lines::Some,
                };
                self.data.extend(data);
            }
            _ => {}
        }
        None
    }

    fn end(&mut self) -> Option<Kind> {
        let silent = self.data_lines == Lines::None || self.data.bytes() == DONE;
        let kind = (!silent).then(|| self.named.unwrap_or_else(|| data_kind(self.data.bytes())));
        (self.named, self.data_lines, self.fields) = (None, Lines::None, false);
        self.data.clear();
        kind
    }
}

/// How nearly every event of this API begins.
const DELTA: &[u8] = b"event: content_block_delta\ndata: {";

/// How many bytes of these are whole events of that kind, which are passed over in one go.
fn deltas(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some(data) = rest.strip_prefix(DELTA)
        && let Some(length) = memchr2(b'\n', b'\r', data)
        && let Some([b'\n', b'\n', after @ ..]) = data.get(length..)
    {
        rest = after;
    }
    bytes.len() - rest.len()
}

/// Bytes that are kept of the data of an event.
const DATA: usize = 128;
/// And of a line: with what may stand before its data (a BOM, the name, a colon, a space).
const LINE: usize = DATA + 16;
/// What OpenAI's streams end with.
const DONE: &[u8] = b"[DONE]";

/// Name and value of a line; a comment has the name "".
fn field(line: &[u8]) -> (&[u8], &[u8]) {
    let colon = memchr::memchr(b':', line).unwrap_or(line.len());
    let (name, value) = line.split_at_checked(colon).unwrap_or((line, b""));
    let value = value.strip_prefix(b":").unwrap_or(value);
    (name, value.strip_prefix(b" ").unwrap_or(value))
}

fn without_bom(start: &[u8]) -> &[u8] {
    start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start)
}

/// Bytes that complete the character which `tail` ends within; none if it ends with a whole one, or with none at all.
fn rest_of_character(tail: &[u8]) -> Vec<u8> {
    let half = |bytes: &[u8]| {
        std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    let Some(start) = (0..tail.len()).find_map(|at| tail.get(at..).filter(|bytes| half(bytes))) else {
        return Vec::new();
    };
    let mut character = start.to_vec();
    while half(&character) {
        // Not every lead takes 80 next; one of these three it does take.
        let longer = [0x80, 0x90, 0xa0].map(|next| [&character[..], &[next]].concat());
        let Some(longer) = longer.into_iter().find(|bytes| half(bytes) || std::str::from_utf8(bytes).is_ok()) else {
            return Vec::new();
        };
        character = longer;
    }
    character.split_off(start.len())
}

fn kind(name: &[u8]) -> Kind {
    match name {
        b"ping" => Kind::Ping,
        b"message_stop" => Kind::Stop,
        b"error" => Kind::Error,
        _ => Kind::Other,
    }
}

/// The kind of an event without a name.
fn data_kind(data: &[u8]) -> Kind {
    data_type(data).map_or(Kind::Other, |name| kind(name.as_bytes()))
}

/// The `"type"` at the top level of data, as far as its first bytes tell; `error` where there is only an `"error"`, as
/// the one-api family writes it.
fn data_type(data: &[u8]) -> Option<String> {
    let mut scan = Scan::new(&["type", "error"]);
    // Cut as it is, it may well not be JSON to the end.
    let _ = scan.feed(data.get(..DATA).unwrap_or(data));
    match scan.so_far("type") {
        Some(Value::Text(name)) => Some(name.to_string()),
        Some(_) => None,
        None if scan.so_far("error") == Some(&Value::Null) => None,
        None => scan.reached("error").then(|| "error".to_owned()),
    }
}

/// The first bytes of something longer.
#[derive(Clone, Debug)]
struct Prefix<const SIZE: usize> {
    bytes: [u8; SIZE],
    length: usize,
}

impl<const SIZE: usize> Prefix<SIZE> {
    fn extend(&mut self, part: &[u8]) {
        let room = self.bytes.get_mut(self.length..).unwrap_or_default();
        let count = room.len().min(part.len());
        if let (Some(room), Some(part)) = (room.get_mut(..count), part.get(..count)) {
            room.copy_from_slice(part);
            self.length += count;
        }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn clear(&mut self) {
        self.length = 0;
    }
}

impl<const SIZE: usize> Default for Prefix<SIZE> {
    fn default() -> Self {
        Self { bytes: [0; SIZE], length: 0 }
    }
}

#[cfg(test)]
mod tests;
