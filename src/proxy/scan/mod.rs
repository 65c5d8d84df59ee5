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

mod grammar;
mod nesting;
mod splice;

use grammar::{Digit, State, number, plain, simple_escape};
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
    Text(String),
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

/// The watched members of a complete body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    members: Vec<Member>,
}

impl Found {
    /// The member of that name, if the body has it and it was watched.
    pub fn member(&self, key: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.key == key)
    }
}

/// A scan under way. Feed it pieces, split anywhere; then [`finish`](Self::finish).
#[derive(Debug)]
pub struct Scan {
    watch: &'static [&'static str],
    state: State,
    nesting: Nesting,
    /// Offset of the current piece in the body.
    base: usize,
    failed: Option<Malformed>,
    top_is_object: bool,
    /// The string being read is a key.
    in_key: bool,
    /// The bytes of the string being read are kept, at most `keep` of them.
    kept: Vec<u8>,
    keep: usize,
    /// They have a backslash.
    escaped: bool,
    key_limit: usize,
    /// Where the latest top-level key began, and the comma before it.
    key_at: usize,
    comma_at: Option<usize>,
    /// The watched member whose value is being read.
    current: Option<&'static str>,
    value: Value,
    value_at: usize,
    /// The member whose cut still waits to hear whether another key follows.
    last: Option<(usize, usize)>,
    found: Found,
}

impl Scan {
    /// A scan that looks for top-level members of these names.
    pub fn new(watch: &'static [&'static str]) -> Self {
        // A key that is written with nothing but `\uXXXX` takes six bytes for one.
        let key_limit = watch.iter().map(|name| name.len()).max().unwrap_or(0) * 6;
        Self {
            watch,
            state: State::Value,
            nesting: Nesting::default(),
            base: 0,
            failed: None,
            top_is_object: false,
            in_key: false,
            kept: Vec::new(),
            keep: 0,
            escaped: false,
            key_limit,
            key_at: 0,
            comma_at: None,
            current: None,
            value: Value::Null,
            value_at: 0,
            last: None,
            found: Found::default(),
        }
    }

    /// Reads the next piece of the body. After an error every further call repeats it.
    pub fn feed(&mut self, piece: &[u8]) -> Result<(), Malformed> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        let outcome = self.run(piece);
        self.failed = outcome.err();
        self.base += piece.len();
        outcome
    }

    /// What was found, if the body was one JSON object and nothing else.
    pub fn finish(self) -> Result<Found, Malformed> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        if !self.state.may_end() || self.nesting.depth() > 0 {
            Err(Malformed::Incomplete)
        } else if self.top_is_object {
            Ok(self.found)
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
        self.current == Some(key) || self.so_far(key).is_some()
    }

    fn run(&mut self, piece: &[u8]) -> Result<(), Malformed> {
        let mut at = 0;
        while let Some(&byte) = piece.get(at) {
            let here = self.base + at;
            at += 1;
            match self.state {
                State::Text => {
                    let rest = piece.get(at - 1..).unwrap_or_default();
                    let run = plain(rest);
                    at += run.len();
                    // The bytes that end the run; the second only matters to an escape.
                    let end = rest.get(run.len()..).unwrap_or_default();
                    if let [b'"', after @ ..] = end {
                        if self.in_key {
                            self.key_ends(run);
                            if let [b':', ..] = after {
                                self.state = State::Value;
                                at += 1;
                            }
                        } else {
                            self.value_ends(run, self.base + at)?;
                        }
                        continue;
                    }
                    self.keep(run);
                    match end {
                        [] => break,
                        [b'\\', next, ..] if simple_escape(*next) => {
                            self.keep(&[b'\\', *next]);
                            self.escaped = true;
                            at += 1;
                        }
                        [b'\\', ..] => {
                            self.keep(b"\\");
                            self.escaped = true;
                            self.state = State::Escape;
                        }
                        [..] => return Err(Malformed::Syntax { at: self.base + at - 1 }),
                    }
                }
                State::Escape => {
                    self.keep(&[byte]);
                    self.state = match byte {
                        b'u' => State::Hex(4),
                        _ if simple_escape(byte) => State::Text,
                        _ => return Err(Malformed::Syntax { at: here }),
                    };
                }
                State::Hex(left) => {
                    self.keep(&[byte]);
                    self.state = match (byte.is_ascii_hexdigit(), left) {
                        (false, _) => return Err(Malformed::Syntax { at: here }),
                        (true, ..=1) => State::Text,
                        (true, _) => State::Hex(left - 1),
                    };
                }
                State::Literal(rest) => match rest.split_first() {
                    Some((&want, [])) if want == byte => self.value_ends(&[], here + 1)?,
                    Some((&want, rest)) if want == byte => self.state = State::Literal(rest),
                    _ => return Err(Malformed::Syntax { at: here }),
                },
                State::Minus
                | State::Zero
                | State::Integer
                | State::Point
                | State::Fraction
                | State::E
                | State::ESign
                | State::Exponent => match number(self.state, byte) {
                    Digit::Next(state) => self.state = state,
                    Digit::Over => {
                        self.value_ends(&[], here)?;
                        at -= 1;
                    }
                    Digit::Wrong => return Err(Malformed::Syntax { at: here }),
                },
                State::Value | State::ItemOrEnd | State::KeyOrEnd | State::Key | State::Colon | State::AfterValue => {
                    match byte {
                        b' ' | b'\t' | b'\n' | b'\r' => {}
                        _ => self.structure(byte, here)?,
                    }
                }
            }
        }
        Ok(())
    }

    /// A byte between values that is no white space.
    fn structure(&mut self, byte: u8, here: usize) -> Result<(), Malformed> {
        let in_object = self.nesting.in_object();
        match (self.state, byte) {
            (State::ItemOrEnd, b']') | (State::KeyOrEnd, b'}') => self.close(here)?,
            (State::Value | State::ItemOrEnd, _) => self.value_begins(byte, here)?,
            (State::Key | State::KeyOrEnd, b'"') => self.key_begins(here),
            (State::Colon, b':') => self.state = State::Value,
            (State::AfterValue, b',') if in_object == Some(true) => {
                if self.nesting.depth() == 1 {
                    self.comma_at = Some(here);
                }
                self.state = State::Key;
            }
            (State::AfterValue, b',') if in_object == Some(false) => self.state = State::Value,
            (State::AfterValue, b'}') if in_object == Some(true) => self.close(here)?,
            (State::AfterValue, b']') if in_object == Some(false) => self.close(here)?,
            _ => return Err(Malformed::Syntax { at: here }),
        }
        Ok(())
    }

    fn value_begins(&mut self, byte: u8, here: usize) -> Result<(), Malformed> {
        let (value, state) = match byte {
            b'"' => (Value::TooLong, State::Text),
            b'{' => (Value::Object, State::KeyOrEnd),
            b'[' => (Value::Array, State::ItemOrEnd),
            b't' => (Value::Bool(true), State::Literal(b"rue")),
            b'f' => (Value::Bool(false), State::Literal(b"alse")),
            b'n' => (Value::Null, State::Literal(b"ull")),
            b'-' => (Value::Number, State::Minus),
            b'0' => (Value::Number, State::Zero),
            b'1'..=b'9' => (Value::Number, State::Integer),
            _ => return Err(Malformed::Syntax { at: here }),
        };
        self.state = state;
        let watched = self.current.is_some() && self.nesting.depth() == 1;
        if state == State::Text {
            self.in_key = false;
            self.string_begins(if watched { TEXT_LIMIT } else { 0 });
        }
        if watched {
            self.value = value;
            self.value_at = here;
        } else if self.nesting.depth() == 0 {
            self.top_is_object = byte == b'{';
        }
        if matches!(byte, b'{' | b'[') {
            self.nesting.push(byte == b'{');
        }
        Ok(())
    }

    fn close(&mut self, here: usize) -> Result<(), Malformed> {
        self.nesting.pop();
        self.value_ends(&[], here + 1)
    }

    /// A value of any depth ends before `end`; if it is a text, with `run`.
    #[inline]
    fn value_ends(&mut self, run: &[u8], end: usize) -> Result<(), Malformed> {
        self.state = State::AfterValue;
        if self.current.is_some() && self.nesting.depth() == 1 { self.member_ends(run, end) } else { Ok(()) }
    }

    /// The watched member ends before `end`; if it is a text, with `run`.
    fn member_ends(&mut self, run: &[u8], end: usize) -> Result<(), Malformed> {
        let Some(key) = self.current.take() else { return Ok(()) };
        // A text was taken for too long until its end was seen.
        if self.value == Value::TooLong && self.kept.len() + run.len() <= TEXT_LIMIT {
            let text = self.text(run).ok_or(Malformed::Syntax { at: self.value_at })?;
            self.value = Value::Text(text.into_owned());
        }
        let member = Member {
            key,
            value: std::mem::replace(&mut self.value, Value::Null),
            span: self.value_at..end,
            cut: self.comma_at.unwrap_or(self.key_at)..end,
            repeated: false,
        };
        let place = match self.found.members.iter_mut().enumerate().find(|(_, old)| old.key == key) {
            Some((place, old)) => {
                *old = Member { repeated: true, ..member };
                place
            }
            None => {
                self.found.members.push(member);
                self.found.members.len() - 1
            }
        };
        self.last = Some((place, self.key_at));
        Ok(())
    }

    fn key_begins(&mut self, here: usize) {
        self.state = State::Text;
        self.in_key = true;
        if self.nesting.depth() != 1 {
            return self.string_begins(0);
        }
        if let Some((place, key_at)) = self.last.take()
            && let Some(member) = self.found.members.get_mut(place)
        {
            member.cut = key_at..here;
        }
        self.key_at = here;
        self.string_begins(self.key_limit);
    }

    /// A key ends, and with `run`.
    #[inline]
    fn key_ends(&mut self, run: &[u8]) {
        self.state = State::Colon;
        if self.nesting.depth() == 1 && self.kept.len() + run.len() <= self.key_limit {
            let text;
            let name = if self.kept.is_empty() {
                run
            } else {
                // What is no valid Unicode is no watched name.
                let Some(whole) = self.text(run) else { return };
                text = whole;
                text.as_bytes()
            };
            self.current = self.watch.iter().find(|watched| watched.as_bytes() == name).copied();
        }
    }

    /// What a string says that ends with `run`; nothing if it is no valid Unicode.
    fn text<'a>(&self, run: &'a [u8]) -> Option<Cow<'a, str>> {
        if self.kept.is_empty() {
            return std::str::from_utf8(run).ok().map(Cow::Borrowed);
        }
        if self.escaped {
            return serde_json::from_slice(&[b"\"", &*self.kept, run, b"\""].concat()).ok().map(Cow::Owned);
        }
        String::from_utf8([&self.kept, run].concat()).ok().map(Cow::Owned)
    }

    /// A string begins, of which so many bytes are wanted.
    #[inline]
    fn string_begins(&mut self, keep: usize) {
        self.kept.clear();
        self.keep = keep;
        self.escaped = false;
    }

    /// Keeps the bytes of a string as far as they are wanted, and one more to tell that it was longer.
    #[inline]
    fn keep(&mut self, bytes: &[u8]) {
        if self.keep > 0 {
            let room = (self.keep + 1).saturating_sub(self.kept.len());
            self.kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        }
    }
}

#[cfg(test)]
mod tests;
