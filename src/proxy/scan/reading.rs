//! The way through a piece, a token at a time. A step gives back what it has left of the piece, or nothing where it has
//! noted a failure.

use super::grammar::{Digit, State, is_space, number, past_space, plain, simple_escape};
use super::{Malformed, Scan};

impl Scan {
    /// A turn reads a whole member or item where the piece has it: each step does nothing unless it is due.
    pub(super) fn run(&mut self, piece: &[u8]) -> Option<()> {
        let mut rest = piece;
        while !rest.is_empty() {
            if matches!(self.state, State::Key | State::KeyOrEnd) {
                rest = self.before_key(rest)?;
            }
            if matches!(self.state, State::Value | State::ItemOrEnd) {
                rest = self.before_value(rest)?;
            }
            if self.state == State::AfterValue {
                rest = self.after_value(rest)?;
            }
            if self.state.is_inside() {
                rest = self.inside(rest)?;
            }
        }
        Some(())
    }

    #[inline]
    fn before_key<'a>(&mut self, rest: &'a [u8]) -> Option<&'a [u8]> {
        match rest {
            [b'"', after @ ..] => {
                self.key_begins(rest);
                self.key(after)
            }
            [byte, ..] if is_space(*byte) => Some(past_space(rest)),
            [b'}', after @ ..] if self.state == State::KeyOrEnd => self.close(after),
            [] => Some(rest),
            _ => self.wrong(rest),
        }
    }

    #[inline]
    fn before_value<'a>(&mut self, rest: &'a [u8]) -> Option<&'a [u8]> {
        match rest {
            [b'"', after @ ..] => {
                self.value_begins(b'"', rest);
                self.text(after)
            }
            [byte, ..] if is_space(*byte) => Some(past_space(rest)),
            [b']', after @ ..] if self.state == State::ItemOrEnd => self.close(after),
            [byte, after @ ..] => {
                self.value_begins(*byte, rest);
                self.state = match byte {
                    b'{' => {
                        self.nesting.push(true);
                        State::KeyOrEnd
                    }
                    b'[' => {
                        self.nesting.push(false);
                        State::ItemOrEnd
                    }
                    _ => {
                        let Some(state) = State::begin(*byte) else { return self.wrong(rest) };
                        self.state = state;
                        return if byte.is_ascii_lowercase() { self.literal(after) } else { self.number(after) };
                    }
                };
                Some(after)
            }
            [] => Some(rest),
        }
    }

    #[inline]
    fn after_value<'a>(&mut self, rest: &'a [u8]) -> Option<&'a [u8]> {
        match rest {
            [b',', after @ ..] if self.nesting.depth() > 0 => {
                self.state = if self.nesting.in_object() { State::Key } else { State::Value };
                if self.nesting.depth() == 1 {
                    self.cut_at = self.at(rest);
                }
                Some(after)
            }
            [byte, ..] if is_space(*byte) => Some(past_space(rest)),
            [byte @ (b'}' | b']'), after @ ..]
                if self.nesting.depth() > 0 && self.nesting.in_object() == (*byte == b'}') =>
            {
                self.close(after)
            }
            [] => Some(rest),
            _ => self.wrong(rest),
        }
    }

    /// Reads on in what the end of a piece has cut, or from a key to its colon.
    #[inline(never)]
    fn inside<'a>(&mut self, rest: &'a [u8]) -> Option<&'a [u8]> {
        match (self.state, rest) {
            (State::Colon, [b':', after @ ..]) => {
                self.state = State::Value;
                Some(after)
            }
            (State::Colon, [byte, ..]) if is_space(*byte) => Some(past_space(rest)),
            (State::KeyText, _) => self.key(rest),
            (State::Text, _) => self.text(rest),
            (State::Literal(_), _) => self.literal(rest),
            (State::Escape | State::Hex(_), [byte, after @ ..]) => {
                self.escape(*byte, rest)?;
                Some(after)
            }
            (_, []) => Some(rest),
            (State::Colon, _) => self.wrong(rest),
            _ => self.number(rest),
        }
    }

    /// The offset of what is left of the piece.
    #[inline]
    pub(super) fn at(&self, rest: &[u8]) -> usize {
        self.end - rest.len()
    }

    /// What is left begins with a byte that cannot be.
    #[cold]
    fn wrong<T>(&mut self, rest: &[u8]) -> Option<T> {
        self.failed = Some(Malformed::Syntax { at: self.at(rest) });
        None
    }

    /// Reads on in a key, and past its end.
    #[inline(always)]
    fn key<'a>(&mut self, rest: &'a [u8]) -> Option<&'a [u8]> {
        let (run, end) = plain(rest);
        let [b'"', after @ ..] = end else {
            self.state = State::KeyText;
            return self.special(rest, end);
        };
        if self.nesting.depth() == 1 {
            self.current = self.watched(run);
        }
        // Nearly always so; it spares a turn.
        if let [b':', after @ ..] = after {
            self.state = State::Value;
            return Some(after);
        }
        self.state = State::Colon;
        Some(after)
    }

    /// Reads on in a string that is a value, and past its end.
    #[inline(always)]
    fn text<'a>(&mut self, rest: &'a [u8]) -> Option<&'a [u8]> {
        let (run, end) = plain(rest);
        if let [b'"', after @ ..] = end {
            self.value_ends(run, after)?;
            return Some(after);
        }
        self.state = State::Text;
        self.special(rest, end)
    }

    /// Reads on in a string whose first special byte, where `end` begins, is not its end: up to the run with which it
    /// ends.
    #[inline(never)]
    fn special<'a>(&mut self, string: &'a [u8], mut end: &'a [u8]) -> Option<&'a [u8]> {
        let in_key = self.state == State::KeyText;
        let mut run = string;
        let rest = loop {
            run = match end {
                [b'\\', next, after @ ..] if simple_escape(*next) => after,
                [b'\\', b'u', a, b, c, d, after @ ..] if [a, b, c, d].iter().all(|digit| digit.is_ascii_hexdigit()) => {
                    after
                }
                [b'\\', after @ ..] => {
                    self.in_key = in_key;
                    self.state = State::Escape;
                    break after;
                }
                [b'"', ..] => break run,
                [] => break end,
                _ => return self.wrong(end),
            };
            (_, end) = plain(run);
        };
        self.keep(string.get(..string.len() - rest.len()).unwrap_or_default(), in_key);
        Some(rest)
    }

    /// A byte of an escape that is cut, or wrong.
    fn escape(&mut self, byte: u8, rest: &[u8]) -> Option<()> {
        let string = if self.in_key { State::KeyText } else { State::Text };
        self.state = match self.state {
            State::Hex(left @ 2..) if byte.is_ascii_hexdigit() => State::Hex(left - 1),
            State::Hex(_) if byte.is_ascii_hexdigit() => string,
            State::Escape if byte == b'u' => State::Hex(4),
            State::Escape if simple_escape(byte) => string,
            _ => return self.wrong(rest),
        };
        self.keep(&[byte], self.in_key);
        Some(())
    }

    /// Reads on in a literal.
    #[inline]
    fn literal<'a>(&mut self, mut rest: &'a [u8]) -> Option<&'a [u8]> {
        while let (State::Literal(word), [byte, after @ ..]) = (self.state, rest) {
            let Some(word) = word.strip(*byte) else { return self.wrong(rest) };
            rest = after;
            self.state = State::Literal(word);
            if word.is_over() {
                self.value_ends(&[], rest)?;
            }
        }
        Some(rest)
    }

    /// Reads on in a number, up to the byte after it.
    #[inline]
    fn number<'a>(&mut self, mut rest: &'a [u8]) -> Option<&'a [u8]> {
        loop {
            if self.state.in_digits() {
                while let [b'0'..=b'9', after @ ..] = rest {
                    rest = after;
                }
            }
            let [byte, after @ ..] = rest else { return Some(rest) };
            match number(self.state, *byte) {
                Digit::Next(state) => self.state = state,
                Digit::Over => {
                    self.value_ends(&[], rest)?;
                    return Some(rest);
                }
                Digit::Wrong => return self.wrong(rest),
            }
            rest = after;
        }
    }
}
