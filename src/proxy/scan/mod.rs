//! Finds a few top-level members of a JSON body while it arrives, without building a tree.
//!
//! A request body may be 32 MiB and is forwarded as it came; of all its members routing wants two or three. So the
//! scan checks the grammar (RFC 8259, as `serde_json` reads it into `IgnoredAny`), remembers where the watched members
//! lie, and copies nothing but their keys and short texts. It neither recurses nor allocates per level: nesting costs
//! one bit. [`splice()`] then replaces or removes what was found, and leaves every other byte alone.
//!
//! Like `IgnoredAny` it does not judge the code points inside strings: UTF-8 and surrogate pairs are checked only in
//! the texts that it hands out.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

mod grammar;
mod nesting;
mod reading;
mod splice;

use grammar::State;
use nesting::Nesting;
pub use splice::splice;

/// The longest text that is handed out, in bytes as written (escapes count as written).
pub const TEXT_LIMIT: usize = 4096;

/// Why a body is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The grammar is broken, or a watched text is no valid Unicode.
    #[error("invalid JSON at byte {at}")]
    Syntax {
        /// Offset of the first byte that cannot be; for a text that cannot be decoded, of its opening quote.
        at: usize,
    },
    /// The body ends before the value does.
    #[error("the JSON ends too early")]
    Incomplete,
    /// Valid JSON, but no object.
    #[error("the body is no JSON object")]
    NotAnObject,
}

/// What a watched member holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string, decoded.
    Text(Arc<str>),
    /// A string of more than [`TEXT_LIMIT`] bytes; not decoded.
    TooLong,
    /// `true` or `false`.
    Bool(bool),
    /// Any number.
    Number,
    /// `null`.
    Null,
    /// An object, not looked into.
    Object,
    /// An array, not looked into.
    Array,
}

/// A watched member, as found. Of a repeated one this is the last, which is the one that `serde_json` and most others
/// would keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The watched name (as watched: the body may have written it with escapes).
    pub key: &'static str,
    /// What it holds.
    pub value: Value,
    /// The bytes of the value, quotes included.
    pub span: Range<usize>,
    /// Removing exactly these bytes leaves valid JSON without the member. Good for *one* member: the cuts of two
    /// neighbours may share a comma.
    pub cut: Range<usize>,
    /// Whether the name occurs more than once. Then `cut` removes only the last.
    pub repeated: bool,
}

/// So many names are watched at most.
const MOST: usize = 3;

/// The watched members of a complete body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// In the order of the names.
    members: [Option<Member>; MOST],
}

impl Found {
    /// The member of that name, if the body has it and it was watched.
    pub fn member(&self, key: &str) -> Option<&Member> {
        self.members.iter().flatten().find(|member| member.key == key)
    }
}

/// A scan under way. Feed it pieces, split anywhere; then [`finish`](Self::finish).
#[derive(Debug)]
pub struct Scan {
    watch: &'static [&'static str],
    state: State,
    /// The string being read is a key; only where a piece ended inside of an escape.
    in_key: bool,
    top_is_object: bool,
    /// The first byte of the watched value being read, and where it is.
    first: u8,
    value_at: usize,
    /// The watched member whose value is being read: the place of its name.
    current: Option<usize>,
    /// The member whose cut still waits to hear whether another key follows.
    last: Option<usize>,
    /// Where the latest top-level key began, and what is to be cut with its member: that, or the comma before it.
    key_at: usize,
    cut_at: usize,
    nesting: Nesting,
    /// Offset of the end of the current piece in the body.
    end: usize,
    failed: Option<Malformed>,
    /// What was read so far of a top-level key or a watched text, and one byte over its limit at most; of one that has
    /// no escapes and lies in one piece: nothing.
    kept: Vec<u8>,
    found: Found,
}

impl Scan {
    /// A scan that looks for top-level members of these names, three at most.
    pub fn new<const COUNT: usize>(watch: &'static [&'static str; COUNT]) -> Self {
        const { assert!(COUNT <= MOST, "too many names") };
        Self {
            watch,
            state: State::Value,
            in_key: false,
            top_is_object: false,
            first: 0,
            value_at: 0,
            current: None,
            last: None,
            key_at: 0,
            cut_at: 0,
            nesting: Nesting::default(),
            end: 0,
            failed: None,
            kept: Vec::new(),
            found: Found::default(),
        }
    }

    /// Reads the next piece of the body. After an error every further call repeats it.
    pub fn feed(&mut self, piece: &[u8]) -> Result<(), Malformed> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        self.end += piece.len();
        self.run(piece);
        self.failed.map_or(Ok(()), Err)
    }

    /// What was found, if the body was one JSON object and nothing else.
    pub fn finish(&self) -> Result<&Found, Malformed> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        if !self.state.may_end() || self.nesting.depth() > 0 {
            Err(Malformed::Incomplete)
        } else if self.top_is_object {
            Ok(&self.found)
        } else {
            Err(Malformed::NotAnObject)
        }
    }

    /// The value of a watched member that has been read to its end, in a body that may go on.
    pub fn so_far(&self, key: &str) -> Option<&Value> {
        self.found.member(key).map(|member| &member.value)
    }

    /// Whether the value of a watched member has begun.
    pub fn reached(&self, key: &str) -> bool {
        self.current.and_then(|place| self.watch.get(place)) == Some(&key) || self.so_far(key).is_some()
    }

    /// A value of any depth begins with this byte.
    #[inline]
    fn value_begins(&mut self, byte: u8, rest: &[u8]) {
        if self.nesting.depth() == 1 && self.current.is_some() {
            self.first = byte;
            self.value_at = self.at(rest);
        } else if self.nesting.depth() == 0 {
            self.top_is_object = byte == b'{';
        }
    }

    /// The innermost container ends before `rest`.
    #[inline]
    fn close<'a>(&mut self, rest: &'a [u8]) -> Option<&'a [u8]> {
        self.nesting.pop();
        self.value_ends(&[], rest)?;
        Some(rest)
    }

    /// A value of any depth ends before `rest`; if it is a text, with `run`.
    #[inline]
    fn value_ends(&mut self, run: &[u8], rest: &[u8]) -> Option<()> {
        self.state = State::AfterValue;
        match self.current {
            Some(place) if self.nesting.depth() == 1 => self.member_ends(place, run, self.at(rest)),
            _ => Some(()),
        }
    }

    /// The watched member ends before `end`; if it is a text, with `run`.
    #[inline(never)]
    fn member_ends(&mut self, place: usize, run: &[u8], end: usize) -> Option<()> {
        self.current = None;
        let value = match self.first {
            b'"' if self.kept.len() + run.len() > TEXT_LIMIT => Value::TooLong,
            b'"' => {
                let Some(text) = self.decoded(run) else {
                    self.failed = Some(Malformed::Syntax { at: self.value_at });
                    return None;
                };
                Value::Text(text.into())
            }
            b'{' => Value::Object,
            b'[' => Value::Array,
            b't' => Value::Bool(true),
            b'f' => Value::Bool(false),
            b'n' => Value::Null,
            _ => Value::Number,
        };
        self.kept.clear();
        self.last = Some(place);
        if let (Some(&key), Some(slot)) = (self.watch.get(place), self.found.members.get_mut(place)) {
            let (span, cut) = (self.value_at..end, self.cut_at..end);
            *slot = Some(Member { key, value, span, cut, repeated: slot.is_some() });
        }
        Some(())
    }

    #[inline]
    fn key_begins(&mut self, rest: &[u8]) {
        if self.nesting.depth() == 1 {
            let here = self.at(rest);
            if let Some(place) = self.last {
                self.last = None;
                if let Some(Some(member)) = self.found.members.get_mut(place) {
                    member.cut = self.key_at..here;
                }
            }
            self.key_at = here;
            if self.state == State::KeyOrEnd {
                self.cut_at = here;
            }
        }
    }

    /// Which watched name a top-level key is that ends with `run`.
    #[inline]
    fn watched(&mut self, run: &[u8]) -> Option<usize> {
        if self.kept.is_empty() { self.place(run) } else { self.watched_in_parts(run) }
    }

    #[inline]
    fn place(&self, name: &[u8]) -> Option<usize> {
        self.watch.iter().position(|watched| watched.as_bytes() == name)
    }

    #[inline(never)]
    fn watched_in_parts(&mut self, run: &[u8]) -> Option<usize> {
        let short = self.kept.len() + run.len() <= self.limit(true);
        // What is no valid Unicode is no watched name.
        let name = if short { self.decoded(run) } else { None };
        let place = name.and_then(|name| self.place(name.as_bytes()));
        self.kept.clear();
        place
    }

    /// What a string says that ends with `run`; nothing if it is no valid Unicode.
    fn decoded<'a>(&self, run: &'a [u8]) -> Option<Cow<'a, str>> {
        if self.kept.is_empty() {
            return std::str::from_utf8(run).ok().map(Cow::Borrowed);
        }
        serde_json::from_slice(&[b"\"", &*self.kept, run, b"\""].concat()).ok().map(Cow::Owned)
    }

    /// How many bytes are wanted of the string being read, as they are written.
    fn limit(&self, in_key: bool) -> usize {
        match self.nesting.depth() {
            // A key that is written with nothing but `\uXXXX` takes six bytes for one.
            1 if in_key => self.watch.iter().map(|name| name.len()).max().unwrap_or(0) * 6,
            1 if self.current.is_some() => TEXT_LIMIT,
            _ => 0,
        }
    }

    /// Keeps the bytes of a string as far as they are wanted, and one more to tell that it was longer.
    fn keep(&mut self, bytes: &[u8], in_key: bool) {
        let limit = self.limit(in_key);
        if limit > 0 {
            let room = (limit + 1).saturating_sub(self.kept.len());
            self.kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        }
    }
}

#[cfg(test)]
mod tests;
