//! One event as a line, in both forms at once: they are written as the event is visited, and no value is kept on the
//! way. Most lines go to both; where one form has no reader, its line is written and left.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata};

use super::text::{self, Digits};

/// Longest text of one field, in bytes; the rest is cut off.
const FIELD_LIMIT: usize = 2048;
/// The field that stands before all others, and without its name.
const MESSAGE: &str = "message";
/// More room than this is not kept for the next line.
const KEPT_LENGTH: usize = 8192;

/// Hands over an event as a readable line, in colour or not, and as one of JSON; each with its end.
pub(super) fn lines(event: &Event<'_>, colour: bool, hand_over: impl FnOnce(&[u8], &[u8])) {
    thread_local!(static ROOM: Cell<Option<Box<Room>>> = const { Cell::new(None) });
    // Taken, for a value that is shown may log on its own.
    let mut room = ROOM.take().unwrap_or_default();
    let mut writer = Writer::begin(event.metadata(), colour, &mut room);
    event.record(&mut writer);
    writer.end();
    hand_over(&room.lines.readable, &room.lines.json);
    if room.lines.readable.capacity().max(room.lines.json.capacity()) <= KEPT_LENGTH {
        ROOM.set(Some(room));
    }
}

/// The same thing in either form.
#[derive(Default)]
struct Both<T> {
    readable: T,
    json: T,
}

impl Both<Vec<u8>> {
    fn push(&mut self, readable: &[u8], json: &[u8]) {
        self.readable.extend_from_slice(readable);
        self.json.extend_from_slice(json);
    }

    fn set(&mut self, readable: &[&str], json: &[&str]) {
        self.clear();
        readable.iter().for_each(|word| self.readable.extend_from_slice(word.as_bytes()));
        json.iter().for_each(|word| self.json.extend_from_slice(word.as_bytes()));
    }

    fn clear(&mut self) {
        self.readable.clear();
        self.json.clear();
    }
}

/// Where lines are written; each thread uses the same room for all of its lines.
#[derive(Default)]
struct Room {
    lines: Both<Vec<u8>>,
    /// For one value.
    value: String,
    stamp: Stamp,
    frames: Frames,
}

/// A second of local time, in words.
#[derive(Default)]
struct Stamp {
    /// Since 1970.
    second: u64,
    date: String,
    time: String,
    zone: String,
}

impl Stamp {
    /// The present, which is that second. Asks the calendar.
    fn of(second: u64) -> Self {
        let local = jiff::Zoned::now();
        let format = |format| local.strftime(format).to_string();
        Self { second, date: format("%Y-%m-%d"), time: format("%H:%M:%S"), zone: format("%:z") }
    }
}

/// Kinds of lines whose frames a thread keeps. Nearly all lines are of few kinds: finished requests, failed attempts.
const FRAMES: usize = 4;

/// The frames of the latest kinds of lines.
#[derive(Default)]
struct Frames {
    frames: [Frame; FRAMES],
    /// The one that was made longest ago: it makes room for the next.
    oldest: usize,
    /// The one of the present line.
    latest: usize,
}

impl Frames {
    fn latest(&self) -> Option<&Frame> {
        self.frames.get(self.latest)
    }

    /// Makes one the latest, anew if it is not there.
    fn find(&mut self, metadata: &Metadata<'_>, colour: bool, stamp: &Stamp) {
        let wanted = Some((metadata.callsite(), colour, stamp.second));
        if let Some(place) = self.frames.iter().position(|frame| frame.of == wanted) {
            self.latest = place;
            return;
        }
        self.latest = self.oldest;
        self.oldest = (self.oldest + 1) % FRAMES;
        if let Some(frame) = self.frames.get_mut(self.latest) {
            frame.make(metadata, colour, stamp);
        }
    }
}

/// What all lines of one kind of event have in common during a second.
#[derive(Default)]
struct Frame {
    /// The kind, whether it is in colour, and the second.
    of: Option<(Identifier, bool, u64)>,
    /// Before the milliseconds.
    time: Both<Vec<u8>>,
    /// Between them and the message.
    level: Both<Vec<u8>>,
    /// After the message.
    target: Both<Vec<u8>>,
    /// Before the value of each field; nothing for one that is not shown there. In JSON with a quote, as for a text.
    names: Vec<Both<Vec<u8>>>,
}

impl Frame {
    fn make(&mut self, metadata: &Metadata<'_>, colour: bool, stamp: &Stamp) {
        let (word, code) = match *metadata.level() {
            Level::ERROR => ("ERROR", "\x1b[31m"),
            Level::WARN => ("WARN ", "\x1b[33m"),
            Level::INFO => ("INFO ", "\x1b[32m"),
            Level::DEBUG => ("DEBUG", "\x1b[34m"),
            Level::TRACE => ("TRACE", "\x1b[35m"),
        };
        let level = if *metadata.level() == Level::WARN { "WARNING" } else { metadata.level().as_str() };
        let (code, plain) = if colour { (code, "\x1b[0m") } else { ("", "") };
        let (dim, equals) = if colour { ("\x1b[2m", "=\x1b[0m") } else { ("", "=") };
        let Stamp { date, time, zone, .. } = stamp;
        self.time.set(&[time, "."], &["{\"timestamp\":\"", date, "T", time, "."]);
        self.level.set(&[" ", code, word, plain, " "], &[zone, "\",\"level\":\"", level, "\",\"message\":\""]);
        self.target.set(&[], &["\",\"target\":\""]);
        text::push_json(&mut self.target.json, metadata.target());
        self.target.json.push(b'"');
        self.names.resize_with(metadata.fields().len(), Both::default);
        for (part, field) in self.names.iter_mut().zip(metadata.fields()) {
            match field.name() {
                MESSAGE => part.clear(),
                name if name.starts_with("log.") => part.clear(),
                name => part.set(&[" ", dim, name, equals], &[",\"", name, "\":\""]),
            }
        }
        self.of = Some((metadata.callsite(), colour, stamp.second));
    }
}

/// Takes in the fields of an event, in their order; but the message is written before the others.
struct Writer<'a> {
    room: &'a mut Room,
    /// Where the message ends, once another field has come.
    message_end: Option<Both<usize>>,
}

impl<'a> Writer<'a> {
    fn begin(metadata: &Metadata<'_>, colour: bool, room: &'a mut Room) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let Room { lines, stamp, frames, .. } = &mut *room;
        if stamp.second != now.as_secs() {
            *stamp = Stamp::of(now.as_secs());
        }
        frames.find(metadata, colour, stamp);
        // A thousand more, so that there are three digits after the first.
        let millis = Digits::of(1000 + u64::from(now.subsec_millis()));
        let millis = millis.as_bytes().get(1..).unwrap_or_default();
        lines.clear();
        if let Some(frame) = frames.latest() {
            lines.push(&frame.time.readable, &frame.time.json);
            lines.push(millis, millis);
            lines.push(&frame.level.readable, &frame.level.json);
        }
        Self { room, message_end: None }
    }

    fn end(mut self) {
        self.end_message();
        self.room.lines.push(b"\n", b"}\n");
    }

    /// Another field comes, or none.
    fn end_message(&mut self) {
        if self.message_end.is_none() {
            let Room { lines, frames, .. } = &mut *self.room;
            self.message_end = Some(Both { readable: lines.readable.len(), json: lines.json.len() });
            if let Some(frame) = frames.latest() {
                lines.push(&frame.target.readable, &frame.target.json);
            }
        }
    }

    /// The name of a field and what else is before a text; whether it is shown there.
    // Its callers are called for each field, and hardly do more than this.
    #[inline(always)]
    fn name(&mut self, field: &Field) -> bool {
        if self.message_end.is_none() && field.name() != MESSAGE {
            self.end_message();
        }
        let Room { lines, frames, .. } = &mut *self.room;
        let name = frames.latest().and_then(|frame| frame.names.get(field.index()));
        let Some(name) = name.filter(|name| !name.json.is_empty()) else { return false };
        lines.push(&name.readable, &name.json);
        true
    }

    fn text(&mut self, field: &Field, text: &str) {
        let (text, cut) = cut(text);
        if !self.name(field) {
            self.say(field, text);
            self.say(field, cut);
            return;
        }
        let Both { readable, json } = &mut self.room.lines;
        if cut.is_empty() && text::is_bare(text) {
            readable.extend_from_slice(text.as_bytes());
            json.extend_from_slice(text.as_bytes());
            json.push(b'"');
            return;
        }
        text::push_json(json, text);
        json.extend_from_slice(cut.as_bytes());
        json.push(b'"');
        if text.is_empty() || text.contains([' ', '"', '=']) {
            readable.push(b'"');
            for (index, part) in text.split('"').enumerate() {
                readable.extend_from_slice(if index > 0 { b"\\\"" } else { b"" });
                text::push_printable(readable, part);
            }
            readable.extend_from_slice(cut.as_bytes());
            readable.push(b'"');
        } else {
            text::push_printable(readable, text);
            readable.extend_from_slice(cut.as_bytes());
        }
    }

    /// A value that is no text, and the same in both forms.
    fn plain(&mut self, field: &Field, value: &[u8]) {
        if self.name(field) {
            self.room.lines.json.pop();
            self.room.lines.push(value, value);
        } else {
            self.say(field, str::from_utf8(value).unwrap_or_default());
        }
    }

    /// What has no name before it: more of the message, or nothing.
    fn say(&mut self, field: &Field, text: &str) {
        if field.name() != MESSAGE {
            return;
        }
        let Both { readable, json } = &mut self.room.lines;
        let Some(end) = &mut self.message_end else {
            text::push_printable(readable, text);
            text::push_json(json, text);
            return;
        };
        // It comes late: what is after it moves.
        let mut part = Both::default();
        text::push_printable(&mut part.readable, text);
        text::push_json(&mut part.json, text);
        let at = (end.readable, end.json);
        (end.readable, end.json) = (at.0 + part.readable.len(), at.1 + part.json.len());
        readable.splice(at.0..at.0, part.readable);
        json.splice(at.1..at.1, part.json);
    }

    /// A value by way of its text.
    fn written(&mut self, value: impl fmt::Display, then: impl FnOnce(&mut Self, &str)) {
        let mut text = std::mem::take(&mut self.room.value);
        text.clear();
        let _ = write!(text, "{value}");
        then(self, &text);
        self.room.value = text;
    }
}

impl Visit for Writer<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.written(format_args!("{value:?}"), |writer, value| writer.text(field, value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, Digits::of(value).as_bytes());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.written(value, |writer, value| writer.plain(field, value.as_bytes()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.written(value, |writer, text| match value.is_finite() {
            true => writer.plain(field, text.as_bytes()),
            // JSON has no word for what is no number.
            false => writer.text(field, text),
        });
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.written(value, |writer, value| writer.plain(field, value.as_bytes()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let causes = std::iter::successors(Some(value), |error| error.source());
        let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        self.text(field, &text);
    }
}

/// As much of a text as is shown, and the sign that it was longer.
fn cut(text: &str) -> (&str, &'static str) {
    if text.len() <= FIELD_LIMIT {
        return (text, "");
    }
    let mut end = FIELD_LIMIT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    (text.get(..end).unwrap_or_default(), "…")
}
