//! Texts and numbers as they stand in a line. Nearly all of them need no escape, which is found eight bytes at a time.

use std::io::Write as _;

const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);

/// Whether a text is shown as it is in both forms, and without quotes on a terminal. Some are said not to be that are:
/// those with `!`, or with more than ASCII.
pub(super) fn is_bare(text: &str) -> bool {
    // Blank, `!` and `"` are the least of what is no control.
    !text.is_empty() && has_only(text, |word| below(word, b'#') | equal(word, b'=') | equal(word, b'\\'))
}

/// Appends a text as it stands between the quotes of a JSON string (RFC 8259, section 7).
pub(super) fn push_json(line: &mut Vec<u8>, text: &str) {
    if has_only(text, |word| below(word, b' ') | equal(word, b'"') | equal(word, b'\\')) {
        line.extend_from_slice(text.as_bytes());
        return;
    }
    for &byte in text.as_bytes() {
        match byte {
            b'"' | b'\\' => line.extend_from_slice(&[b'\\', byte]),
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            b'\t' => line.extend_from_slice(b"\\t"),
            0x08 => line.extend_from_slice(b"\\b"),
            0x0c => line.extend_from_slice(b"\\f"),
            ..b' ' => {
                let _ = write!(line, "\\u{byte:04x}");
            }
            _ => line.push(byte),
        }
    }
}

/// Text from outside as it may be shown on a terminal: controls, escapes and direction marks are spelt out.
pub fn printable(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    push_printable(&mut out, text);
    String::from_utf8(out).unwrap_or_default()
}

/// The same, appended.
pub(super) fn push_printable(line: &mut Vec<u8>, text: &str) {
    if has_only(text, |word| below(word, b' ')) {
        line.extend_from_slice(text.as_bytes());
        return;
    }
    for character in text.chars() {
        let hidden = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if character.is_control() || hidden {
            let _ = write!(line, "{}", character.escape_unicode());
        } else {
            line.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
}

/// A number in decimal, without the formatter's ceremony.
pub(super) struct Digits {
    room: [u8; 20],
    start: usize,
}

impl Digits {
    pub(super) fn of(mut number: u64) -> Self {
        let mut digits = Self { room: [b'0'; 20], start: 20 };
        for place in digits.room.iter_mut().rev() {
            *place = b'0' + u8::try_from(number % 10).unwrap_or_default();
            digits.start -= 1;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        digits
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.room.get(self.start..).unwrap_or_default()
    }
}

/// Whether a text is of printable ASCII in whose words `flaws` has no high bit.
fn has_only(text: &str, flaws: impl Fn(u64) -> u64) -> bool {
    let sound = |bytes: [u8; 8]| {
        let word = u64::from_ne_bytes(bytes);
        (word | word.wrapping_add(ONES) | flaws(word)) & HIGH == 0
    };
    let (words, rest) = text.as_bytes().as_chunks::<8>();
    let last = text.as_bytes().last_chunk().copied().unwrap_or_else(|| {
        let mut last = [b'0'; 8];
        last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        last
    });
    words.iter().all(|word| sound(*word)) && sound(last)
}

/// The high bit of a byte of `word`, which is ASCII, that is less than `limit`; perhaps also those of bytes above it.
fn below(word: u64, limit: u8) -> u64 {
    word.wrapping_sub(ONES * u64::from(limit))
}

/// The same for one that is equal to `byte`.
fn equal(word: u64, byte: u8) -> u64 {
    below(word ^ (ONES * u64::from(byte)), 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pushed(push: impl Fn(&mut Vec<u8>, &str), text: &str) -> String {
        let mut line = Vec::new();
        push(&mut line, text);
        String::from_utf8(line).expect("UTF-8")
    }

    fn assert_escapes(text: &str) {
        let json = serde_json::Value::from(text).to_string();
        assert_eq!(format!("\"{}\"", pushed(push_json, text)), json, "{text:?}");
        let shown = printable(text);
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        if is_bare(text) {
            assert!(!text.is_empty() && !text.contains([' ', '"', '=']), "{text:?}");
            assert_eq!((json.as_str(), shown.as_str()), (format!("\"{text}\"").as_str(), text));
        }
    }

    /// Each byte of ASCII at each place of a word, alone and beside others that are flaws.
    #[test]
    fn no_byte_slips_through_at_any_place() {
        for byte in 0..=0x7f_u8 {
            for length in 1..20 {
                for place in 0..length {
                    for beside in ["a", "\u{1}", "\u{7f}", "~"] {
                        let mut text = beside.repeat(length);
                        text.replace_range(place..=place, &char::from(byte).to_string());
                        assert_escapes(&text);
                    }
                }
            }
        }
        assert!(is_bare("claude-sonnet-4-5") && is_bare("*") && is_bare("a@example.com"));
    }

    #[test]
    fn numbers_are_those_of_the_formatter() {
        for number in [0, 9, 10, 99, 100, 1000, 1999, u64::MAX - 1, u64::MAX] {
            assert_eq!(Digits::of(number).as_bytes(), number.to_string().as_bytes());
        }
    }

    proptest! {
        #[test]
        fn any_text_is_escaped_as_by_serde(text in "\\PC{0,20}|[\\x00-\\x7f]{0,30}|.{0,30}") {
            assert_escapes(&text);
        }
    }
}
