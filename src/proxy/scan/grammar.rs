//! The grammar of JSON between and inside of strings and numbers, a byte at a time.

use memchr::memchr2;

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum State {
    Value,
    ItemOrEnd,
    KeyOrEnd,
    Key,
    Colon,
    AfterValue,
    Text,
    Escape,
    /// So many hexadecimal digits still to come.
    Hex(u8),
    /// The rest of `true`, `false` or `null`.
    Literal(&'static [u8]),
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    E,
    ESign,
    Exponent,
}

impl State {
    /// Whether the body may end here, as far as the innermost value goes.
    pub(super) fn may_end(self) -> bool {
        matches!(self, Self::AfterValue | Self::Zero | Self::Integer | Self::Fraction | Self::Exponent)
    }
}

/// How a number goes on.
pub(super) enum Digit {
    Next(State),
    /// The byte is no longer part of it.
    Over,
    Wrong,
}

/// A byte of a number, or the first after it.
pub(super) fn number(state: State, byte: u8) -> Digit {
    match (state, byte) {
        (State::Minus, b'0') => Digit::Next(State::Zero),
        (State::Minus, b'1'..=b'9') | (State::Integer, b'0'..=b'9') => Digit::Next(State::Integer),
        (State::Zero, b'0'..=b'9') => Digit::Wrong,
        (State::Zero | State::Integer, b'.') => Digit::Next(State::Point),
        (State::Point | State::Fraction, b'0'..=b'9') => Digit::Next(State::Fraction),
        (State::Zero | State::Integer | State::Fraction, b'e' | b'E') => Digit::Next(State::E),
        (State::E, b'+' | b'-') => Digit::Next(State::ESign),
        (State::E | State::ESign | State::Exponent, b'0'..=b'9') => Digit::Next(State::Exponent),
        (State::Zero | State::Integer | State::Fraction | State::Exponent, _) => Digit::Over,
        _ => Digit::Wrong,
    }
}

/// What may follow a backslash, but for `u`.
pub(super) fn simple_escape(byte: u8) -> bool {
    matches!(byte, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't')
}

/// The longest start of `rest` that neither ends a string nor needs a look: no quote, no backslash, no control
/// character. Most strings are short, so the call that is fast on long ones waits for the first bytes.
#[inline]
pub(super) fn plain(rest: &[u8]) -> &[u8] {
    let special = |&byte: &u8| byte == b'"' || byte == b'\\' || byte < b' ';
    let (start, long) = rest.split_at(rest.len().min(SHORT));
    let end = match start.iter().position(special) {
        Some(end) => end,
        None => {
            let run = long.get(..memchr2(b'"', b'\\', long).unwrap_or(long.len())).unwrap_or_default();
            // No early exit, so that many bytes are looked at at once.
            let control = run.iter().fold(false, |control, &byte| control | (byte < b' '));
            start.len() + if control { run.iter().position(special).unwrap_or(run.len()) } else { run.len() }
        }
    };
    rest.get(..end).unwrap_or(rest)
}

/// So many bytes of a string are looked at one by one.
const SHORT: usize = 16;
