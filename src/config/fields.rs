//! The hand-written decoding of nodes: every wrong value is one problem, and the reading goes on.
//!
//! A [`Fields`] is one map under reading. Its constructor reports unknown and duplicate keys; each accessor answers
//! `None` both for a key that is not there and for one whose problem it has just reported.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::keys::{Key, Tolerated};
use super::problem::{Place, Problems, nearest, quote};
use super::tree::{Node, Scalar, Sort, Value};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Place,
    pub(super) path: String,
}

/// One map under reading.
pub(super) struct Fields<'t> {
    pub(super) place: Place,
    pub(super) path: String,
    entries: Vec<(&'t str, &'t Node)>,
    /// A merge key was refused: what seems to be missing may be in what it refers to.
    merged: bool,
}

impl<'t> Fields<'t> {
    /// Opens a map whose keys must be among `known` or `tolerated`.
    pub(super) fn open(
        node: &'t Node,
        path: impl Into<String>,
        known: &[Key],
        tolerated: &[Tolerated],
        problems: &mut Problems,
    ) -> Option<Self> {
        let path = path.into();
        let entries = entries(node, &path, problems)?;
        let mut fields = Self { place: node.place, path, entries: Vec::new(), merged: false };
        for (key, place, value) in entries {
            let at = fields.at(key);
            let names = || known.iter().map(|known| known.name);
            if names().any(|name| name == key) {
                fields.entries.push((key, value));
            } else if let Some((_, why)) = tolerated.iter().find(|(name, _)| *name == key) {
                problems.warning(Some(place), &at, "this key of the predecessor has no meaning here", *why);
            } else if key == "<<" {
                fields.merged = true;
                let cure = "write the keys out; aliases of single values (`*name`) do work";
                problems.error(Some(place), &at, "merge keys are not supported", cure);
            } else {
                let cure = match nearest(key, names()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("known keys: {}", names().collect::<Vec<_>>().join(", ")),
                };
                problems.error(Some(place), &at, format!("unknown key {}", quote(key)), cure);
            }
        }
        Some(fields)
    }

    /// The path of one of its keys.
    pub(super) fn at(&self, key: &str) -> String {
        if self.path.is_empty() { shown(key) } else { format!("{}.{}", self.path, shown(key)) }
    }

    /// The value of a key; nothing for one that is written without a value.
    pub(super) fn node(&self, key: &str) -> Option<&'t Node> {
        self.raw(key).filter(|node| !node.is_null())
    }

    /// Whether the key is there at all, or may have been meant to be.
    pub(super) fn has(&self, key: &str) -> bool {
        self.merged || self.raw(key).is_some()
    }

    pub(super) fn raw(&self, key: &str) -> Option<&'t Node> {
        self.entries.iter().find(|(name, _)| *name == key).map(|(_, node)| *node)
    }

    /// A key without a value would mean something else to every reader.
    fn given(&self, key: &str, problems: &mut Problems) -> Option<&'t Node> {
        let node = self.raw(key)?;
        if node.is_null() {
            problems.error(Some(node.place), &self.at(key), "has no value", "write one, or remove the line");
            return None;
        }
        Some(node)
    }

    fn read<T>(
        &self,
        key: &str,
        problems: &mut Problems,
        read: impl FnOnce(&'t Node) -> Result<T, (String, String)>,
    ) -> Option<At<T>> {
        let node = self.given(key, problems)?;
        match read(node) {
            Ok(value) => Some(At { value, place: node.place, path: self.at(key) }),
            Err((message, cure)) => {
                problems.error(Some(node.place), &self.at(key), message, cure);
                None
            }
        }
    }

    /// A text in the literal sense: numbers and the like must be quoted.
    pub(super) fn text(&self, key: &str, problems: &mut Problems) -> Option<At<&'t str>> {
        self.read(key, problems, text)
    }

    /// A text for which a number, `yes` or `no` is taken as it is written.
    pub(super) fn literal(&self, key: &str, problems: &mut Problems) -> Option<At<&'t str>> {
        self.read(key, problems, literal)
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, key: &str, problems: &mut Problems) -> Option<bool> {
        let flag = self.read(key, problems, |node| match node.scalar() {
            Some(Scalar { sort: Sort::Flag(flag), .. }) => Ok(*flag),
            Some(Scalar { sort: Sort::Text, text }) if matches!(text.as_str(), "true" | "false") => {
                Err((format!("expected true or false, found the text {}", quote(text)), "remove the quotes".into()))
            }
            _ => Err((format!("expected true or false, found {}", found(node)), "write true or false".into())),
        });
        flag.map(|flag| flag.value)
    }

    /// A whole number.
    pub(super) fn number(&self, key: &str, range: RangeInclusive<i64>, problems: &mut Problems) -> Option<At<i64>> {
        self.read(key, problems, |node| number(node, &range))
    }

    /// Plain seconds, or `"5s"`, `"2m"`, `"150ms"`, `"1h"`.
    pub(super) fn duration(
        &self,
        key: &str,
        range: RangeInclusive<Duration>,
        problems: &mut Problems,
    ) -> Option<At<Duration>> {
        self.read(key, problems, |node| duration(node, &range))
    }

    /// One of several words, any case.
    pub(super) fn word<T: Copy>(
        &self,
        key: &str,
        words: &[(&'static str, T)],
        problems: &mut Problems,
    ) -> Option<At<T>> {
        self.read(key, problems, |node| {
            let all = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
            let text = text(node).map_err(|(message, _)| (message, format!("one of: {}", all())))?;
            if let Some((_, value)) = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)) {
                return Ok(*value);
            }
            let cure = match nearest(text, words.iter().map(|(word, _)| *word)) {
                Some(near) => format!("did you mean {near}? (one of: {})", all()),
                None => format!("one of: {}", all()),
            };
            Err((format!("{} is not known here", quote(text)), cure))
        })
    }

    /// A list; an element is read by its own accessor.
    pub(super) fn list(&self, key: &str, problems: &mut Problems) -> Option<Vec<(String, &'t Node)>> {
        let node = self.given(key, problems)?;
        elements(node, &self.at(key), problems)
    }

    /// A list of texts.
    pub(super) fn texts(&self, key: &str, problems: &mut Problems) -> Option<Vec<At<&'t str>>> {
        let mut texts = Vec::new();
        for (path, node) in self.list(key, problems)? {
            match text(node) {
                Ok(value) => texts.push(At { value, place: node.place, path }),
                Err((message, cure)) => problems.error(Some(node.place), &path, message, cure),
            }
        }
        Some(texts)
    }

    /// A section inside this one; nothing where it is missing or empty.
    pub(super) fn section(
        &self,
        key: &str,
        known: &[Key],
        tolerated: &[Tolerated],
        problems: &mut Problems,
    ) -> Option<Fields<'t>> {
        Fields::open(self.node(key)?, self.at(key), known, tolerated, problems)
    }
}

/// The keys of a map, each once: a second one is reported with both places.
pub(super) fn entries<'t>(
    node: &'t Node,
    path: &str,
    problems: &mut Problems,
) -> Option<Vec<(&'t str, Place, &'t Node)>> {
    let Value::Map(map) = &node.value else {
        let message = format!("expected a map, found {}", node.sort_name());
        let cure = match path {
            "" => "start with `providers:`, as in config/minimal.yaml",
            _ => "write `key: value` lines here; config/example.yaml shows them",
        };
        problems.error(Some(node.place), path, message, cure);
        return None;
    };
    let mut first: std::collections::HashMap<&str, Place> = std::collections::HashMap::with_capacity(map.len());
    let mut entries = Vec::with_capacity(map.len());
    for (key, value) in map {
        let Some(name) = key.scalar().filter(|key| key.sort != Sort::Null) else {
            let message = format!("expected a key, found {}", key.sort_name());
            problems.error(Some(key.place), path, message, "a key is a plain text; quote it if it has special signs");
            continue;
        };
        if let Some(other) = first.get(name.text.as_str()) {
            let whole = if path.is_empty() { shown(&name.text) } else { format!("{path}.{}", shown(&name.text)) };
            let message = format!("the same key stands at {}:{} already", other.line, other.column);
            problems.error(Some(key.place), &whole, message, "keep one of them, and put both contents there");
            continue;
        }
        first.insert(&name.text, key.place);
        entries.push((name.text.as_str(), key.place, value));
    }
    Some(entries)
}

/// The elements of a list with their paths.
pub(super) fn elements<'t>(node: &'t Node, path: &str, problems: &mut Problems) -> Option<Vec<(String, &'t Node)>> {
    let Value::List(list) = &node.value else {
        let message = format!("expected a list, found {}", found(node));
        problems.error(Some(node.place), path, message, "begin each entry with `- `; config/example.yaml shows them");
        return None;
    };
    Some(list.iter().enumerate().map(|(index, item)| (format!("{path}[{index}]"), item)).collect())
}

/// A key as it stands in a path: bare if it is a simple word.
fn shown(key: &str) -> String {
    let bare = !key.is_empty() && key.len() <= 40 && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let quoted = quote(key);
    // A hidden one stays hidden.
    if bare && quoted.len() == key.len() + 2 { key.to_owned() } else { quoted }
}

/// What stands in the place of something else; the text itself only where it cannot be a credential.
fn found(node: &Node) -> String {
    match node.scalar() {
        Some(Scalar { sort: Sort::Text, text }) => format!("the text {}", quote(text)),
        Some(Scalar { sort: Sort::Number, text }) => format!("the number {}", quote(text).trim_matches('"')),
        Some(Scalar { sort: Sort::Flag(_), text }) => quote(text).trim_matches('"').to_owned(),
        _ => node.sort_name().to_owned(),
    }
}

pub(super) fn text(node: &Node) -> Result<&str, (String, String)> {
    match node.scalar() {
        Some(Scalar { sort: Sort::Text, text }) => Ok(text),
        Some(Scalar { sort: Sort::Null, .. }) | None => {
            Err((format!("expected a text, found {}", node.sort_name()), "write one text here".into()))
        }
        Some(_) => Err((format!("expected a text, found {}", found(node)), "put it in quotes".into())),
    }
}

pub(super) fn literal(node: &Node) -> Result<&str, (String, String)> {
    match node.scalar() {
        Some(Scalar { sort: Sort::Text | Sort::Number | Sort::Flag(_), text }) => Ok(text),
        _ => Err((format!("expected a text, found {}", node.sort_name()), "write one text here".into())),
    }
}

pub(super) fn number(node: &Node, range: &RangeInclusive<i64>) -> Result<i64, (String, String)> {
    let limits = || match (*range.start(), *range.end()) {
        (i64::MIN, i64::MAX) => "a whole number".to_owned(),
        (low, i64::MAX) => format!("a whole number from {low}"),
        (low, high) => format!("a whole number from {low} to {high}"),
    };
    let wrong = |cure: &str| Err((format!("expected {}, found {}", limits(), found(node)), cure.to_owned()));
    let plain = if *range.start() == i64::MIN { "write a number such as 1" } else { "write a number from that range" };
    let Some(Scalar { sort, text }) = node.scalar() else { return wrong(plain) };
    let digits = text.strip_prefix('-').unwrap_or(text);
    let whole = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    match (sort, text.parse()) {
        (_, _) if whole && digits.len() > 1 && digits.starts_with('0') => {
            wrong("leave out the leading zero; some readers take such a number for octal")
        }
        (Sort::Text, Ok(_)) if whole => wrong("remove the quotes"),
        (Sort::Number, Ok(value)) if whole && range.contains(&value) => Ok(value),
        (Sort::Number, _) if !whole => wrong("write it with decimal digits only"),
        _ => wrong(plain),
    }
}

fn duration(node: &Node, range: &RangeInclusive<Duration>) -> Result<Duration, (String, String)> {
    let wrong = || {
        let cure = "write seconds (5, 0.5) or a text such as \"5s\", \"150ms\", \"2m\", \"1h\"";
        Err((format!("expected a duration, found {}", found(node)), cure.to_owned()))
    };
    let Some(Scalar { sort: Sort::Number | Sort::Text, text }) = node.scalar() else { return wrong() };
    let cut = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (amount, unit) = text.split_at(cut);
    let amount = amount.trim_end();
    let factor = match unit {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return wrong(),
    };
    let plain = amount.bytes().all(|b| b.is_ascii_digit() || b == b'.') && amount.len() <= 20;
    let Some(seconds) = amount.parse::<f64>().ok().filter(|_| plain) else { return wrong() };
    let Ok(value) = Duration::try_from_secs_f64(seconds * factor) else { return wrong() };
    if range.contains(&value) {
        return Ok(value);
    }
    let limits = format!("it must be between {} and {}", said(*range.start()), said(*range.end()));
    Err((format!("{} is out of range", quote(text)), limits))
}

/// A duration as it may stand in the file.
pub(super) fn said(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0".to_owned(),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1000) => format!("{}s", millis / 1000),
        _ => format!("{millis}ms"),
    }
}
