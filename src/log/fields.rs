//! One event as a line, in either form. Both are written as the event is visited: no value is kept on the way.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata};

/// Longest text of one field, in bytes; the rest is cut off.
const FIELD_LIMIT: usize = 2048;
/// What the time, the level and the target take, beside message and fields.
const HEAD_LENGTH: usize = 160;
/// More room than this is not kept for the next line.
const KEPT_LENGTH: usize = 8192;

/// Either form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// For a terminal, in colour or not.
    Readable { colour: bool },
    /// An object of JSON.
    Json,
}

/// An event as a line of that form, with its end.
pub(super) fn line(event: &Event<'_>, form: Form) -> String {
    thread_local!(static PARTS: RefCell<Parts> = RefCell::default());
    let mut parts = PARTS.take();
    let mut visitor = Visitor { form, parts: &mut parts };
    event.record(&mut visitor);
    let line = joined(event.metadata(), form, &parts);
    if parts.rest.capacity() <= KEPT_LENGTH {
        parts.message.clear();
        parts.rest.clear();
        PARTS.set(parts);
    }
    line
}

fn joined(metadata: &Metadata<'_>, form: Form, Parts { message, rest, .. }: &Parts) -> String {
    let mut line = String::with_capacity(HEAD_LENGTH + message.len() + rest.len());
    match form {
        Form::Readable { colour } => {
            let (word, code) = word(*metadata.level());
            stamp(|stamp, millis| {
                line.push_str(&stamp.time);
                push_millis(&mut line, millis);
            });
            let (before, after) = if colour { (code, "\x1b[0m ") } else { ("", " ") };
            [" ", before, word, after].into_iter().for_each(|part| line.push_str(part));
            push_printable(&mut line, message);
        }
        Form::Json => {
            let level = if *metadata.level() == Level::WARN { "WARNING" } else { metadata.level().as_str() };
            stamp(|stamp, millis| {
                ["{\"timestamp\":\"", &stamp.date, "T", &stamp.time].into_iter().for_each(|part| line.push_str(part));
                push_millis(&mut line, millis);
                line.push_str(&stamp.zone);
            });
            ["\",\"level\":\"", level, "\",\"message\":"].into_iter().for_each(|part| line.push_str(part));
            push_json(&mut line, message);
            line.push_str(",\"target\":");
            push_json(&mut line, metadata.target());
        }
    }
    line.push_str(rest);
    line.push_str(if form == Form::Json { "}\n" } else { "\n" });
    line
}

fn word(level: Level) -> (&'static str, &'static str) {
    match level {
        Level::ERROR => ("ERROR", "\x1b[31m"),
        Level::WARN => ("WARN ", "\x1b[33m"),
        Level::INFO => ("INFO ", "\x1b[32m"),
        Level::DEBUG => ("DEBUG", "\x1b[34m"),
        Level::TRACE => ("TRACE", "\x1b[35m"),
    }
}

/// A second of local time, in words.
#[derive(Default)]
struct Stamp {
    second: u64,
    date: String,
    time: String,
    zone: String,
}

/// The present, down to milliseconds. The calendar is asked once a second.
fn stamp(show: impl FnOnce(&Stamp, u32)) {
    thread_local!(static LAST: RefCell<Stamp> = RefCell::default());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    LAST.with_borrow_mut(|stamp| {
        if stamp.second != now.as_secs() {
            let local = jiff::Zoned::now();
            *stamp = Stamp {
                second: now.as_secs(),
                date: local.strftime("%Y-%m-%d").to_string(),
                time: local.strftime("%H:%M:%S").to_string(),
                zone: local.strftime("%:z").to_string(),
            };
        }
        show(stamp, now.subsec_millis());
    });
}

/// What a line is made of; each thread uses the same room for all of its lines.
#[derive(Default)]
struct Parts {
    message: String,
    rest: String,
    /// Room for one value.
    value: String,
}

/// Takes in the fields of an event, in their order.
struct Visitor<'a> {
    form: Form,
    parts: &'a mut Parts,
}

impl Visitor<'_> {
    /// The name of a field; whether it is to be shown.
    fn name(&mut self, field: &Field) -> bool {
        let name = field.name();
        if name.starts_with("log.") {
            return false;
        }
        let (before, after) = match self.form {
            Form::Readable { colour: true } => (" \x1b[2m", "=\x1b[0m"),
            Form::Readable { colour: false } => (" ", "="),
            Form::Json => (",\"", "\":"),
        };
        [before, name, after].into_iter().for_each(|part| self.parts.rest.push_str(part));
        true
    }

    fn text(&mut self, field: &Field, text: &str) {
        let (text, cut) = cut(text);
        if field.name() == "message" {
            self.parts.message.push_str(text);
            self.parts.message.push_str(cut);
        } else if self.name(field) {
            match self.form {
                Form::Json => {
                    push_json(&mut self.parts.rest, text);
                    if !cut.is_empty() {
                        // Into the text, before its last quote.
                        self.parts.rest.pop();
                        self.parts.rest.push_str(cut);
                        self.parts.rest.push('"');
                    }
                }
                Form::Readable { .. } if text.is_empty() || text.contains([' ', '"', '=']) => {
                    self.parts.rest.push('"');
                    for (index, part) in text.split('"').enumerate() {
                        self.parts.rest.push_str(if index > 0 { "\\\"" } else { "" });
                        push_printable(&mut self.parts.rest, part);
                    }
                    self.parts.rest.push_str(cut);
                    self.parts.rest.push('"');
                }
                Form::Readable { .. } => {
                    push_printable(&mut self.parts.rest, text);
                    self.parts.rest.push_str(cut);
                }
            }
        }
    }

    /// What is no text, and the same in both forms.
    fn plain(&mut self, field: &Field, value: impl fmt::Display) {
        if field.name() == "message" {
            let _ = write!(self.parts.message, "{value}");
        } else if self.name(field) {
            let _ = write!(self.parts.rest, "{value}");
        }
    }

    fn written(&mut self, field: &Field, write: impl FnOnce(&mut String)) {
        let mut value = std::mem::take(&mut self.parts.value);
        value.clear();
        write(&mut value);
        self.text(field, &value);
        self.parts.value = value;
    }
}

impl Visit for Visitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.written(field, |text| {
            let _ = write!(text, "{value:?}");
        });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if self.name(field) {
            push_number(&mut self.parts.rest, value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no word for what is no number.
        if value.is_finite() { self.plain(field, value) } else { self.text(field, &value.to_string()) }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.written(field, |text| {
            let _ = write!(text, "{value}");
            let mut source = value.source();
            while let Some(cause) = source {
                let _ = write!(text, ": {cause}");
                source = cause.source();
            }
        });
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

/// A number in decimal, without the formatter's ceremony.
fn push_number(line: &mut String, number: u64) {
    if number >= 10 {
        push_number(line, number / 10);
    }
    line.push(char::from(b'0' + u8::try_from(number % 10).unwrap_or_default()));
}

/// `.` and three digits.
fn push_millis(line: &mut String, millis: u32) {
    line.push('.');
    [100, 10, 1].into_iter().for_each(|unit| push_number(line, u64::from(millis / unit % 10)));
}

fn push_json(line: &mut String, text: &str) {
    let plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\' && byte != 0x7f;
    if text.bytes().all(plain) {
        line.push('"');
        line.push_str(text);
        line.push('"');
    } else {
        line.push_str(&serde_json::Value::from(text).to_string());
    }
}

/// Text from outside as it may be shown on a terminal: controls, escapes and direction marks are spelt out.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    push_printable(&mut out, text);
    out
}

fn push_printable(out: &mut String, text: &str) {
    if text.bytes().all(|byte| (b' '..0x7f).contains(&byte)) {
        out.push_str(text);
        return;
    }
    for character in text.chars() {
        let hidden = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if character.is_control() || hidden {
            let _ = write!(out, "{}", character.escape_unicode());
        } else {
            out.push(character);
        }
    }
}
