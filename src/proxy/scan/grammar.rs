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
    let end = match short(rest) {
        Some(end) => end,
        None if rest.len() <= SHORT => rest.len(),
        None => SHORT + long(rest.get(SHORT..).unwrap_or_default()),
    };
    rest.get(..end).unwrap_or(rest)
}

/// So many bytes of a string are looked at eight by eight.
const SHORT: usize = 32;

/// The first special byte among those.
#[inline]
fn short(rest: &[u8]) -> Option<usize> {
    let (words, tail) = rest.get(..SHORT).unwrap_or(rest).as_chunks::<8>();
    for (place, word) in words.iter().enumerate() {
        let found = specials(u64::from_le_bytes(*word));
        if found != 0 {
            return Some(place * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    tail.iter().position(|&byte| special(byte)).map(|place| words.len() * 8 + place)
}

/// The place of the first special byte, or the length.
#[inline(never)]
fn long(rest: &[u8]) -> usize {
    let run = rest.get(..memchr2(b'"', b'\\', rest).unwrap_or(rest.len())).unwrap_or_default();
    // No early exit, so that many bytes are looked at at once.
    let least = run.iter().fold(u8::MAX, |least, &byte| least.min(byte));
    if least < b' ' { run.iter().position(|&byte| special(byte)).unwrap_or(run.len()) } else { run.len() }
}

#[inline]
fn special(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || byte < b' '
}

/// Eight bytes at once: the highest bit of a special one is set. A borrow may set further ones behind the first (in
/// the order of the bytes), never one before it.
#[inline]
fn specials(word: u64) -> u64 {
    const EACH: u64 = u64::MAX / 255;
    let less = |word: u64, limit: u8| word.wrapping_sub(EACH * u64::from(limit)) & !word;
    let equal = |byte: u8| less(word ^ (EACH * u64::from(byte)), 1);
    (less(word, b' ') | equal(b'"') | equal(b'\\')) & (EACH << 7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_first_special_byte_is_found(
            mut bytes in prop::collection::vec(0x20_u8.., 0..80),
            places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            for (place, byte) in places {
                if !bytes.is_empty() {
                    let place = place.index(bytes.len());
                    bytes[place] = byte;
                }
            }
            let wanted = bytes.iter().position(|&byte| special(byte)).unwrap_or(bytes.len());
            prop_assert_eq!(plain(&bytes), &bytes[..wanted]);
        }
    }

    #[test]
    fn each_byte_is_judged_alike_in_every_place() {
        for byte in 0..=u8::MAX {
            for place in 0..8 {
                let mut word = [0xff; 8];
                word[place] = byte;
                let found = specials(u64::from_le_bytes(word));
                let first = (found != 0).then(|| found.trailing_zeros() as usize / 8);
                assert_eq!(first, special(byte).then_some(place), "{byte}");
            }
        }
    }
}
