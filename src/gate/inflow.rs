//! Where one request ends and the next begins on a kept-alive connection. It only counts: what it takes for the end of
//! a body is what hyper takes for it, or a fault.

use super::head::Framing;

/// Longest line of a chunked body that is no data, and longest end of it, in bytes.
const LINE_LIMIT: u32 = 16 * 1024;

/// How much of a body is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunks(Chunk),
}

/// A place inside a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// In the digits of a size: the size so far, and how many digits it has.
    Size(u64, u32),
    /// Behind them: blanks, then an extension or the end of the line.
    Blank(u64),
    /// In an extension, of so many bytes.
    Extension(u64, u32),
    /// The line feed of a size.
    SizeEnd(u64),
    /// In the data.
    Data(u64),
    /// The carriage return behind the data.
    DataReturn,
    /// The line feed behind that.
    DataEnd,
    /// Behind the last chunk, at the beginning of a line, with so many bytes of trailers behind.
    Trailer(u32),
    /// Inside a trailer.
    TrailerLine(u32),
    /// The line feed of a trailer.
    TrailerEnd(u32),
    /// The last line feed.
    LastEnd,
    /// Nothing is left.
    Over,
}

/// A chunked body that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

impl Rest {
    /// What follows a head; none = nothing.
    pub fn after(framing: Framing) -> Option<Self> {
        match framing {
            Framing::Length(0) => None,
            Framing::Length(length) => Some(Self::Length(length)),
            Framing::Chunked => Some(Self::Chunks(Chunk::Size(0, 0))),
        }
    }

    /// Follows these bytes: how many of them belong to the body, and whether it is over with them.
    ///
    /// # Errors
    /// The bytes are no chunks, beginning with the one whose number is given.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<(usize, bool), (usize, Broken)> {
        match self {
            Self::Length(left) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= here as u64;
                Ok((here, *left == 0))
            }
            Self::Chunks(chunk) => chunk.follow(bytes),
        }
    }
}

impl Chunk {
    fn follow(&mut self, bytes: &[u8]) -> Result<(usize, bool), (usize, Broken)> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if let Self::Data(left) = self {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                at += here;
                *left -= here as u64;
                if *left == 0 {
                    *self = Self::DataReturn;
                }
                continue;
            }
            *self = self.next(*byte).ok_or((at, Broken))?;
            at += 1;
            if *self == Self::Over {
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    fn next(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Size(size, digits), _) if byte.is_ascii_hexdigit() && digits < 15 => {
                Self::Size(size << 4 | u64::from(char::from(byte).to_digit(16)?), digits + 1)
            }
            (Self::Size(size, 1..) | Self::Blank(size), b' ' | b'\t') => Self::Blank(size),
            (Self::Size(size, 1..) | Self::Blank(size), b';') => Self::Extension(size, 0),
            (Self::Size(size, 1..) | Self::Blank(size) | Self::Extension(size, _), b'\r') => Self::SizeEnd(size),
            (Self::Extension(size, length), _) if byte != b'\n' && length < LINE_LIMIT => {
                Self::Extension(size, length + 1)
            }
            (Self::SizeEnd(0), b'\n') => Self::Trailer(0),
            (Self::SizeEnd(size), b'\n') => Self::Data(size),
            (Self::DataReturn, b'\r') => Self::DataEnd,
            (Self::DataEnd, b'\n') => Self::Size(0, 0),
            (Self::Trailer(_), b'\r') => Self::LastEnd,
            (Self::TrailerLine(length), b'\r') => Self::TrailerEnd(length),
            (Self::TrailerEnd(length), b'\n') => Self::Trailer(length),
            (Self::Trailer(length) | Self::TrailerLine(length), _) if byte != b'\n' && length < LINE_LIMIT => {
                Self::TrailerLine(length + 1)
            }
            (Self::LastEnd, b'\n') => Self::Over,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks() -> Rest {
        Rest::Chunks(Chunk::Size(0, 0))
    }

    #[test]
    fn a_body_ends_where_it_ends_however_it_is_cut() {
        for body in [
            "5\r\nhello\r\n0\r\n\r\n",
            "005;x=\"y\"\r\nhello\r\n1 \r\n\n\r\n0\r\n\r\n",
            "A\r\n0\r\n\r\nGET /\r\n0\r\nx: y\r\nz: \r\n\r\n",
        ] {
            let bytes = [body.as_bytes(), b"GET / HTTP/1.1\r\n"].concat();
            for cut in 0..=body.len() {
                let mut rest = chunks();
                let (first, over) = rest.follow(&bytes[..cut]).unwrap();
                assert_eq!((first, over), (cut, cut == body.len()), "{body:?} {cut}");
                if !over {
                    assert_eq!(rest.follow(&bytes[cut..]), Ok((body.len() - cut, true)), "{body:?} {cut}");
                }
            }
        }
        let mut rest = Rest::after(Framing::Length(5)).unwrap();
        assert_eq!(rest.follow(b"hel"), Ok((3, false)));
        assert_eq!(rest.follow(b"lo GET"), Ok((2, true)));
        assert_eq!(Rest::after(Framing::Length(0)), None);
    }

    #[test]
    fn what_two_readers_might_understand_differently_is_broken() {
        for body in [
            "\r\n",
            " 5\r\n",
            "+5\r\n",
            "0x5\r\n",
            "5\n",
            "5_\r\n",
            "5;x\n",
            "5\r\rhello",
            "1\r\nab\r\n",
            "1\r\na\n",
            "1\r\na\rb",
            "0\n",
            "0\r\nx: y\n",
            "0\r\n\n",
            "0\r\n\rx",
            "g\r\n",
            "1111111111111111\r\n",
        ] {
            assert!(chunks().follow(body.as_bytes()).is_err(), "{body:?}");
        }
        assert_eq!(chunks().follow(b"3\r\nabcX"), Err((6, Broken)));
    }
}
