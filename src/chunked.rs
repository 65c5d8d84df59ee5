//! Chunked bodies (RFC 9112 §7.1), decoded in place: one read gives one frame, whatever the number of chunks in it.

use bytes::{Bytes, BytesMut};

/// Where the decoder stands.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    #[default]
    Start,
    /// Inside a size.
    Size(u64, u8),
    /// Inside the blanks after a size; so many of them.
    Blank(u64, usize),
    /// Inside an extension, which is dropped; so many bytes of it.
    Extension(u64, usize),
    /// After the CR of a size line.
    SizeLf(u64),
    /// Inside the data of a chunk; so much is left.
    Data(u64),
    /// After the data.
    DataCr,
    /// After the CR that follows the data.
    DataLf,
    /// At the start of a trailer line.
    Trailer,
    /// Inside a trailer field, which is dropped.
    TrailerField,
    /// After the CR of a trailer field.
    TrailerLf,
    /// After the CR of the last line.
    EndLf,
    /// The terminator has been read.
    End,
}

/// The framing is broken.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

/// Most bytes of one extension, and of all trailers together.
const JUNK_LIMIT: usize = 16 * 1024;
/// Most hexadecimal digits of a size: what fits into 64 bits.
const DIGITS: u8 = 16;

/// Most digits of a size that is read at once.
const PLAIN_DIGITS: usize = 8;

/// An incremental decoder.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
    junk: usize,
}

impl Decoder {
    /// Whether the terminator has been read.
    pub fn is_done(&self) -> bool {
        self.state == State::End
    }

    /// Takes what can be decoded off the front of `buffer`. The answer is empty where only framing was read. Bytes
    /// after the terminator stay in the buffer. The first chunk's data stays where it is; that of further chunks is
    /// moved up to it.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Bytes, Broken> {
        let total = buffer.len();
        let (mut read, mut start, mut end) = (0, 0, 0);
        while read < total && self.state != State::End {
            if let State::Data(left) = self.state {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(total - read);
                if start == end {
                    (start, end) = (read, read + here);
                } else {
                    buffer.copy_within(read..read + here, end);
                    end += here;
                }
                read += here;
                let left = left - here as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data(left) };
            } else if let Some((size, length)) = self.plain_size(buffer.get(read..).unwrap_or_default()) {
                self.state = State::Data(size);
                read += length;
            } else {
                let Some(byte) = buffer.get(read).copied() else { break };
                read += 1;
                self.step(byte)?;
            }
        }
        let taken = buffer.split_to(read).freeze();
        Ok(if start == end { Bytes::new() } else { taken.slice(start..end) })
    }

    /// What nearly every byte between two chunks is, at once: the end of the one before, a size without extras, and
    /// how many bytes they take. Everything else goes step by step.
    fn plain_size(&self, bytes: &[u8]) -> Option<(u64, usize)> {
        let line = match self.state {
            State::Start => bytes,
            State::DataCr => bytes.strip_prefix(b"\r\n")?,
            _ => return None,
        };
        let mut size = 0;
        for (at, byte) in line.iter().take(PLAIN_DIGITS + 1).enumerate() {
            match digit(*byte) {
                Ok(value) => size = (size << 4) | value,
                Err(Broken) => {
                    let is_plain = size > 0 && line.get(at..)?.starts_with(b"\r\n");
                    return is_plain.then(|| (size, bytes.len() - line.len() + at + 2));
                }
            }
        }
        None
    }

    fn step(&mut self, byte: u8) -> Result<(), Broken> {
        self.state = match (self.state, byte) {
            (State::Start, _) => State::Size(digit(byte)?, 1),
            (State::Size(size, _), b'\r') => State::SizeLf(size),
            (State::Size(size, _), b' ' | b'\t') => State::Blank(size, 1),
            (State::Size(size, _), b';') => State::Extension(size, 1),
            (State::Blank(size, length), b' ' | b'\t') if length < JUNK_LIMIT => State::Blank(size, length + 1),
            (State::Blank(size, length), b';') => State::Extension(size, length),
            (State::Blank(size, _), b'\r') => State::SizeLf(size),
            (State::Size(size, digits), _) if digits < DIGITS => State::Size((size << 4) | digit(byte)?, digits + 1),
            (State::Extension(size, _), b'\r') => State::SizeLf(size),
            (State::Extension(size, length), _) if byte != b'\n' && length < JUNK_LIMIT => {
                State::Extension(size, length + 1)
            }
            (State::SizeLf(0), b'\n') => State::Trailer,
            (State::SizeLf(size), b'\n') => State::Data(size),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Start,
            (State::Trailer, b'\r') => State::EndLf,
            (State::Trailer | State::TrailerField, _) if byte != b'\r' && byte != b'\n' => {
                self.junk += 1;
                if self.junk > JUNK_LIMIT {
                    return Err(Broken);
                }
                State::TrailerField
            }
            (State::TrailerField, b'\r') => State::TrailerLf,
            (State::TrailerLf, b'\n') => State::Trailer,
            (State::EndLf, b'\n') => State::End,
            _ => return Err(Broken),
        };
        Ok(())
    }
}

fn digit(byte: u8) -> Result<u64, Broken> {
    char::from(byte).to_digit(16).map(u64::from).ok_or(Broken)
}

/// What must hold for any bytes in the place of a chunked body: however they are cut into reads, the answer is the
/// same, and it is the one of a decoder that is too simple to be wrong. For fuzzing and for the replay of its corpus.
pub fn check_any(bytes: &[u8]) {
    // The simple one knows no limits.
    if bytes.len() > JUNK_LIMIT {
        return;
    }
    let (data, end) = simple(bytes);
    for size in [1, 2, 7, JUNK_LIMIT] {
        let (mut decoder, mut buffer, mut out, mut broken) = (Decoder::default(), BytesMut::new(), Vec::new(), false);
        for piece in bytes.chunks(size) {
            buffer.extend_from_slice(piece);
            if !broken && !decoder.is_done() {
                match decoder.decode(&mut buffer) {
                    Ok(decoded) => out.extend_from_slice(&decoded),
                    Err(Broken) => broken = true,
                }
            }
        }
        // What one read brought before the fault is not handed out.
        assert!(if broken { data.starts_with(&out) } else { data == out }, "other data in pieces of {size}");
        assert_eq!(decoder.is_done(), matches!(end, End::Left(_)), "in pieces of {size}");
        match end {
            End::Left(left) => assert!(buffer == left, "{} bytes are left", buffer.len()),
            End::Broken => assert!(broken, "a fault goes unnoticed in pieces of {size}"),
            End::Open => assert!(!broken, "no fault is seen in pieces of {size}"),
            End::Line => {}
        }
    }
}

/// How a body ends for the simple decoder.
enum End<'a> {
    /// Properly; so much is left.
    Left(&'a [u8]),
    /// It does not, so far.
    Open,
    /// Within a line, which may be broken or not.
    Line,
    Broken,
}

/// Line by line, over the whole body.
fn simple(mut rest: &[u8]) -> (Vec<u8>, End<'_>) {
    let (mut data, mut trailers) = (Vec::new(), false);
    while !rest.is_empty() {
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return (data, End::Line) };
        let (line, after) = rest.split_at(end + 1);
        rest = after;
        let Some(line) = line.strip_suffix(b"\r\n").filter(|line| !line.contains(&b'\r')) else {
            return (data, End::Broken);
        };
        if trailers {
            if line.is_empty() {
                return (data, End::Left(rest));
            }
            continue;
        }
        let line = line.split(|byte| *byte == b';').next().unwrap_or_default();
        let digits: Vec<u8> = line.iter().copied().take_while(u8::is_ascii_hexdigit).collect();
        let blank = line.iter().skip(digits.len()).all(|byte| matches!(byte, b' ' | b'\t'));
        let size = std::str::from_utf8(&digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let (Some(size), true, true) = (size, blank, digits.len() <= usize::from(DIGITS)) else {
            return (data, End::Broken);
        };
        trailers = size == 0;
        if trailers {
            continue;
        }
        let here = usize::try_from(size).unwrap_or(usize::MAX).min(rest.len());
        let (chunk, after) = rest.split_at(here);
        data.extend_from_slice(chunk);
        rest = match after {
            [b'\r', b'\n', rest @ ..] => rest,
            [] | [b'\r'] => return (data, End::Open),
            _ => return (data, End::Broken),
        };
    }
    (data, End::Open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_pieces(wire: &[u8], sizes: &[usize]) -> Result<(Vec<u8>, bool), Broken> {
        let (mut decoder, mut buffer, mut out) = (Decoder::default(), BytesMut::new(), Vec::new());
        let (mut rest, mut sizes) = (wire, sizes.iter().cycle());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((*sizes.next().unwrap_or(&1)).clamp(1, rest.len()));
            buffer.extend_from_slice(piece);
            out.extend_from_slice(&decoder.decode(&mut buffer)?);
            rest = after;
        }
        Ok((out, decoder.is_done()))
    }

    #[test]
    fn several_chunks_of_one_read_give_one_frame() {
        let mut buffer = BytesMut::from(&b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nt: v\r\n\r\nrest"[..]);
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(&mut buffer).unwrap(), "abcde");
        assert!(decoder.is_done());
        assert_eq!(&buffer[..], b"rest");
    }

    #[test]
    fn broken_framing_is_noticed() {
        for wire in [
            "x\r\n",
            "\r\n",
            "3\nabc",
            "3\r\nabcd\r\n",
            "-1\r\n",
            "0x1\r\na",
            "11111111111111111\r\n",
            "3 \n",
            "3 5\r\nabc",
            "3\tabc\r\nabc",
            "3\r\nabc\n",
        ] {
            assert_eq!(decode_pieces(wire.as_bytes(), &[1]), Err(Broken), "{wire:?}");
        }
    }

    proptest! {
        #[test]
        fn any_chunking_read_in_any_pieces_gives_the_same_bytes(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..12),
            sizes in prop::collection::vec(1_usize..50, 1..8),
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            let cut = decode_pieces(&wire, &sizes).unwrap();
            prop_assert_eq!(&cut, &(chunks.concat(), false));
            wire.extend_from_slice(b"0\r\n\r\n");
            prop_assert_eq!(decode_pieces(&wire, &sizes).unwrap(), (chunks.concat(), true));
        }
    }
}
