//! YAML text as a tree of nodes that know where they stand. Bounded in size, depth and time.
//!
//! Duplicate keys stay in the tree: whoever reads a map reports them, with both places. Merge keys (`<<`) arrive as
//! ordinary keys and are refused there: what a file says should stand where it is read.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::AliasLimits;
use serde_saphyr::{Budget, DuplicateKeyPolicy, Location, MergeKeyPolicy, NonFiniteFloatPolicy, Options, Spanned};

use super::problem::{Place, Problem};
use super::syntax::{explain, not_utf8, problem};

/// The largest file that is read, in bytes.
pub const FILE_LIMIT: usize = 1024 * 1024;
/// Nested lists and maps; a configuration needs six.
const DEPTH_LIMIT: usize = 32;
/// Values in all, those that aliases repeat among them.
const NODE_LIMIT: usize = 100_000;

/// A value and where it stands. No `Debug`: it may hold a credential.
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

/// A scalar as it was written.
pub(super) struct Scalar {
    pub(super) text: String,
    pub(super) sort: Sort,
}

/// What YAML takes a scalar for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Null,
    Flag(bool),
    Number,
    Text,
}

impl Node {
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(Scalar { sort: Sort::Null, .. }))
    }

    pub(super) fn scalar(&self) -> Option<&Scalar> {
        match &self.value {
            Value::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    /// What it is, for a message; never its text.
    pub(super) fn sort_name(&self) -> &'static str {
        match &self.value {
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
            Value::Scalar(scalar) => match scalar.sort {
                Sort::Null => "nothing",
                Sort::Flag(_) => "true or false",
                Sort::Number => "a number",
                Sort::Text => "a text",
            },
        }
    }
}

/// Reads a file's bytes. The one problem of a file that cannot be read as YAML is the answer of the parser; its own
/// words are not used, since they may quote the line.
pub(super) fn parse(bytes: &[u8]) -> Result<Node, Problem> {
    if bytes.len() > FILE_LIMIT {
        let size = bytes.len() / 1024;
        return Err(problem(
            None,
            format!("the file has {size} KiB; at most 1024 are read"),
            "is this the right file?",
        ));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| not_utf8(bytes, error.valid_up_to()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if says_nothing(text) {
        return Err(problem(None, "the file is empty".into(), "start with `providers:`, as in config/minimal.yaml"));
    }
    let raw: Spanned<Raw> =
        serde_saphyr::from_str_with_options(text, options()).map_err(|error| explain(&error, text))?;
    Ok(node(raw, text))
}

/// Whether there is nothing in a text but comments.
pub(super) fn says_nothing(text: &str) -> bool {
    text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
}

fn options() -> Options {
    let mut budget = Budget::default();
    budget.max_depth = DEPTH_LIMIT;
    budget.flow_nesting_limit = DEPTH_LIMIT;
    budget.max_nodes = NODE_LIMIT;
    budget.max_events = 3 * NODE_LIMIT;
    budget.max_aliases = 1000;
    budget.max_total_scalar_bytes = 4 * FILE_LIMIT;
    let mut aliases = AliasLimits::default();
    aliases.max_total_replayed_events = NODE_LIMIT;
    aliases.max_replay_stack_depth = DEPTH_LIMIT;
    let mut options = Options::default();
    options.budget = Some(budget);
    options.alias_limits = aliases;
    options.duplicate_keys = DuplicateKeyPolicy::PassThrough;
    options.merge_keys = MergeKeyPolicy::AsOrdinary;
    options.non_finite_float_policy = NonFiniteFloatPolicy::PassThrough;
    options.leading_zero_numbers_as_strings = true;
    options.underscored_numbers_as_strings = true;
    options.reject_unsupported_tags = true;
    options.with_snippet = false;
    options
}

/// What serde hands over; text is kept only where YAML takes the scalar for text, else the source has it.
enum Raw {
    Null,
    Flag(bool),
    Number,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Flag(value))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Number)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Number)
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<Raw, E> {
        Ok(Raw::Number)
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Raw, E> {
        Ok(Raw::Number)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Number)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

fn node(raw: Spanned<Raw>, text: &str) -> Node {
    let scalar = |sort| Value::Scalar(Scalar { text: slice(text, raw.defined), sort });
    let value = match raw.value {
        Raw::Null => scalar(Sort::Null),
        Raw::Flag(flag) => scalar(Sort::Flag(flag)),
        Raw::Number => scalar(Sort::Number),
        Raw::Text(text) => Value::Scalar(Scalar { text, sort: Sort::Text }),
        Raw::List(items) => Value::List(items.into_iter().map(|item| node(item, text)).collect()),
        Raw::Map(entries) => {
            Value::Map(entries.into_iter().map(|(key, value)| (node(key, text), node(value, text))).collect())
        }
    };
    Node { place: place(raw.referenced), value }
}

fn slice(text: &str, at: Location) -> String {
    let bounds = || {
        let start = usize::try_from(at.span().byte_offset()?).ok()?;
        let end = start.checked_add(usize::try_from(at.span().byte_len()?).ok()?)?;
        text.get(start..end)
    };
    bounds().unwrap_or_default().trim().to_owned()
}

fn place(at: Location) -> Place {
    let number = |value| u32::try_from(value).unwrap_or(u32::MAX).max(1);
    Place { line: number(at.line()), column: number(at.column()) }
}
