//! One event as text: its message and fields, in both forms.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};
use tracing::Level;
use tracing::field::{Field, Visit};

/// Longest text of one field, in bytes; the rest is cut off.
const FIELD_LIMIT: usize = 2048;

/// The fields of one event, in order.
#[derive(Default)]
pub(super) struct Fields {
    message: String,
    rest: Vec<(&'static str, Value)>,
}

impl Fields {
    pub(super) fn readable(&self, level: Level, now: &jiff::Zoned, colour: bool) -> String {
        let (word, code) = match level {
            Level::ERROR => ("ERROR", "31"),
            Level::WARN => ("WARN ", "33"),
            Level::INFO => ("INFO ", "32"),
            Level::DEBUG => ("DEBUG", "34"),
            Level::TRACE => ("TRACE", "35"),
        };
        let mut line = now.strftime("%H:%M:%S%.3f ").to_string();
        let _ = if colour { write!(line, "\x1b[{code}m{word}\x1b[0m ") } else { write!(line, "{word} ") };
        line.push_str(&printable(&self.message));
        for (name, value) in &self.rest {
            let text = match value {
                Value::String(text) if text.is_empty() || text.contains([' ', '"', '=']) => {
                    format!("\"{}\"", printable(text).replace('"', "\\\""))
                }
                Value::String(text) => printable(text),
                other => other.to_string(),
            };
            let _ = if colour { write!(line, " \x1b[2m{name}=\x1b[0m{text}") } else { write!(line, " {name}={text}") };
        }
        line.push('\n');
        line
    }

    pub(super) fn json(&self, level: Level, now: &jiff::Zoned, target: &str) -> String {
        let mut object = Map::new();
        object.insert("timestamp".into(), now.strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string().into());
        let level = if level == Level::WARN { "WARNING" } else { level.as_str() };
        object.insert("level".into(), level.into());
        object.insert("message".into(), self.message.as_str().into());
        object.insert("target".into(), target.into());
        for (name, value) in &self.rest {
            object.insert((*name).into(), value.clone());
        }
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        line
    }

    fn put(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            name if name.starts_with("log.") => {}
            name => self.rest.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, cut(format!("{value:?}")).into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, cut(value.to_owned()).into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        self.put(field, cut(text).into());
    }
}

fn cut(mut text: String) -> String {
    if text.len() > FIELD_LIMIT {
        let mut end = FIELD_LIMIT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Text from outside as it may be shown on a terminal: controls, escapes and direction marks are spelt out.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        let hidden = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if character.is_control() || hidden {
            let _ = write!(out, "{}", character.escape_unicode());
        } else {
            out.push(character);
        }
    }
    out
}
