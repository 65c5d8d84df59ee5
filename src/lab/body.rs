//! The body of a script: its frames, its framing, and the bytes that a client must get.

use bytes::{Bytes, BytesMut};

use super::event;
use super::script::{After, Frame, Framing, Limit, Script};

/// Body.
impl Script {
    /// Replaces the body; each frame is one event, one chunk, one write.
    pub fn frames(mut self, frames: Vec<Bytes>) -> Self {
        self.frames = frames.into_iter().map(|bytes| Frame { waits: Vec::new(), bytes }).collect();
        self
    }

    /// Puts frames (pings, comments) before the first event.
    pub fn behind(mut self, first: Vec<Bytes>) -> Self {
        let first = first.into_iter().map(|bytes| Frame { waits: Vec::new(), bytes });
        self.frames.splice(0..0, first);
        self
    }

    /// The body becomes one `error` event of this type, and ends well.
    pub fn first_event_error(self, kind: &str) -> Self {
        self.frames(vec![event::error(kind, "Scripted error")])
    }

    /// An `error` event of this type after `events` events, and a clean end.
    pub fn error_after(self, events: usize, kind: &str) -> Self {
        let mut script = self.end_after(events);
        script.frames.push(Frame { waits: Vec::new(), bytes: event::error(kind, "Scripted error") });
        script
    }

    /// The same bytes in frames of `size` bytes, across the borders of events and characters.
    pub fn rechunk(self, size: usize) -> Self {
        let whole = self.whole_body();
        let size = size.max(1);
        let frames = whole.chunks(size).map(Bytes::copy_from_slice).collect();
        self.frames(frames)
    }

    /// The same body in gzip, and a header that says so; one frame.
    pub fn gzipped(self) -> Self {
        let whole = gzip(&self.whole_body());
        self.frames(vec![whole]).header("content-encoding", "gzip")
    }

    /// Sends the body chunked.
    pub fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    /// Sends the body with a `content-length`.
    pub fn with_length(mut self) -> Self {
        self.framing = Framing::Length;
        self
    }

    /// Neither length nor chunks: `connection: close`, and the body ends where the connection does.
    pub fn close_delimited(mut self) -> Self {
        self.framing = Framing::Close;
        self.after = After::SayClose;
        self
    }

    /// Puts `;EXTENSION` behind every chunk's size.
    pub fn chunk_extension(mut self, extension: &str) -> Self {
        self.chunk_extension = format!(";{extension}");
        self
    }

    /// Adds a trailer after the last chunk.
    pub fn trailer(mut self, name: &str, value: &str) -> Self {
        self.trailers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The bytes of the body that this script sends: what a client must receive, to the byte.
    pub fn body_bytes(&self) -> Bytes {
        let mut body = BytesMut::new();
        let events = if let Limit::Events(events) = self.limit { events } else { usize::MAX };
        for frame in self.frames.iter().take(events) {
            body.extend_from_slice(&frame.bytes);
        }
        if let Limit::BodyBytes(bytes) = self.limit {
            body.truncate(bytes);
        }
        body.freeze()
    }

    pub(super) fn whole_body(&self) -> Bytes {
        let mut body = BytesMut::new();
        self.frames.iter().for_each(|frame| body.extend_from_slice(&frame.bytes));
        body.freeze()
    }
}

/// A gzip file (RFC 1952) of stored blocks: nothing is made smaller, but any reader takes it.
fn gzip(data: &[u8]) -> Bytes {
    let mut file = BytesMut::from(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255][..]);
    let blocks = data.chunks(usize::from(u16::MAX));
    let last = blocks.len().saturating_sub(1);
    for (number, block) in blocks.enumerate() {
        let size = u16::try_from(block.len()).unwrap_or(u16::MAX);
        file.extend_from_slice(&[u8::from(number == last)]);
        file.extend_from_slice(&size.to_le_bytes());
        file.extend_from_slice(&(!size).to_le_bytes());
        file.extend_from_slice(block);
    }
    let crc = data.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    file.extend_from_slice(&(!crc).to_le_bytes());
    // The size modulo 2^32; nothing here comes near.
    file.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_le_bytes());
    file.freeze()
}
