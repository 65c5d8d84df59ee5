//! The grammar of JSON: what may come next, and where the plain part of a string ends.

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
    /// In a string that is a value.
    Text,
    /// In a string that is a key.
    KeyText,
    Escape,
    /// So many hexadecimal digits still to come.
    Hex(u8),
    /// The rest of a literal.
    Literal(Literal),
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
    /// Whether something has begun that the next byte may still belong to.
    #[inline]
    pub(super) fn is_inside(self) -> bool {
        !matches!(self, Self::Key | Self::KeyOrEnd | Self::Value | Self::ItemOrEnd | Self::AfterValue)
    }

    /// What follows the first byte of a literal or a number.
    pub(super) fn begin(byte: u8) -> Option<Self> {
        Some(match byte {
            b't' => Self::Literal(Literal::TRUE),
            b'f' => Self::Literal(Literal::FALSE),
            b'n' => Self::Literal(Literal::NULL),
            b'-' => Self::Minus,
            b'0' => Self::Zero,
            b'1'..=b'9' => Self::Integer,
            _ => return None,
        })
    }

    /// Whether any number of digits may follow.
    #[inline]
    pub(super) fn in_digits(self) -> bool {
        matches!(self, Self::Integer | Self::Fraction | Self::Exponent)
    }

    /// Whether the body may end here, as far as the innermost value goes.
    pub(super) fn may_end(self) -> bool {
        matches!(self, Self::AfterValue | Self::Zero | Self::Integer | Self::Fraction | Self::Exponent)
    }
}

/// A place inside `true`, `false` or `null`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Literal(u8);

impl Literal {
    /// The places behind the first byte of each.
    pub(super) const TRUE: Self = Self(1);
    pub(super) const FALSE: Self = Self(6);
    pub(super) const NULL: Self = Self(12);
    const ALL: [u8; 16] = *b"true.false.null.";

    /// The place behind the next byte, if it is this one.
    #[inline]
    pub(super) fn strip(self, byte: u8) -> Option<Self> {
        (Self::ALL.get(usize::from(self.0)) == Some(&byte)).then_some(Self(self.0 + 1))
    }

    #[inline]
    pub(super) fn is_over(self) -> bool {
        Self::ALL.get(usize::from(self.0)) == Some(&b'.')
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

#[inline]
pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// What is left behind white space.
#[inline]
pub(super) fn past_space(mut rest: &[u8]) -> &[u8] {
    while let [byte, after @ ..] = rest
        && is_space(*byte)
    {
        rest = after;
    }
    rest
}

/// What may follow a backslash, but for `u`.
#[inline]
pub(super) fn simple_escape(byte: u8) -> bool {
    // From 64 on: `\`, and the five letters.
    const HIGH: u64 = 1 << (b'\\' - 64)
        | 1 << (b'b' - 64)
        | 1 << (b'f' - 64)
        | 1 << (b'n' - 64)
        | 1 << (b'r' - 64)
        | 1 << (b't' - 64);
    const LOW: u64 = 1 << b'"' | 1 << b'/';
    let set = if byte < 64 { LOW } else { HIGH };
    byte < 128 && set >> (byte % 64) & 1 == 1
}

/// Splits off the longest start of `rest` that neither ends a string nor needs a look: no quote, no backslash, no
/// control character. Most strings are short, so what is fast on long ones waits for the first bytes.
#[inline]
pub(super) fn plain(rest: &[u8]) -> (&[u8], &[u8]) {
    let end = match rest.first_chunk::<SHORT>().and_then(|short| first(short)) {
        Some(end) => end,
        None => far(rest),
    };
    rest.split_at_checked(end).unwrap_or_default()
}

/// So many bytes of a string are looked at eight by eight, and the others all at once.
const SHORT: usize = 32;

/// So many are looked at twice before the next: half of what the nearest cache holds.
const WINDOW: usize = 16 * 1024;

/// Where the first special byte is, if it is among whole words of these.
#[inline]
fn first(bytes: &[u8]) -> Option<usize> {
    let (words, _) = bytes.as_chunks();
    for (place, word) in words.iter().enumerate() {
        let found = specials(u64::from_le_bytes(*word));
        if found != 0 {
            return Some(place * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    None
}

/// Where the first special byte is, or the end: of what has none among its first bytes, or has not so many.
#[inline(never)]
fn far(rest: &[u8]) -> usize {
    let Some(long) = rest.get(SHORT..) else {
        return first(rest).unwrap_or_else(|| rest.iter().position(|&byte| special(byte)).unwrap_or(rest.len()));
    };
    let mut at = SHORT;
    // Both looks at a window find it near.
    for window in long.chunks(WINDOW) {
        let run = window.get(..memchr2(b'"', b'\\', window).unwrap_or(window.len())).unwrap_or_default();
        if least(run) < b' ' {
            return at + run.iter().position(|&byte| special(byte)).unwrap_or(run.len());
        }
        at += run.len();
        if run.len() < window.len() {
            break;
        }
    }
    at
}

/// The least byte, or the greatest that there can be. Without an early exit many bytes are looked at at once.
#[inline]
fn least(bytes: &[u8]) -> u8 {
    const BLOCK: usize = 128;
    let fold = |bytes: &[u8]| bytes.iter().fold(u8::MAX, |least, &byte| least.min(byte));
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    let Some((first, others)) = blocks.split_first() else { return fold(rest) };
    let mut least = *first;
    for block in others {
        least.iter_mut().zip(block).for_each(|(least, byte)| *least = (*least).min(*byte));
    }
    fold(&least).min(fold(rest))
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
    let each = |byte: u8| EACH * u64::from(byte);
    // With one bit turned the quote, and nothing else, comes to lie next to the control characters.
    let low = (word ^ each(b'"' ^ b' ')).wrapping_sub(each(b' ' + 1));
    let backslash = (word ^ each(b'\\')).wrapping_sub(EACH);
    (low | backslash) & !word & each(0x80)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_first_special_byte_is_found(
            mut bytes in prop_oneof![prop::collection::vec(0x20_u8.., 0..300), Just(vec![b'a'; 3 * WINDOW])],
            places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            for (place, byte) in places {
                if !bytes.is_empty() {
                    let place = place.index(bytes.len());
                    bytes[place] = byte;
                }
            }
            let wanted = bytes.iter().position(|&byte| special(byte)).unwrap_or(bytes.len());
            prop_assert_eq!(plain(&bytes), bytes.split_at(wanted));
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
