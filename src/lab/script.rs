//! A script: what the provider does with one request, as a value.
//!
//! Made by a constructor of `replies`, changed by the methods here, in `body` and in `ending`, turned into
//! [`Act`](super::acts::Act)s by `acts`, played by `connection`. Every method takes and returns the script, so that one line tells the story:
//! `Script::stream(&["a", "b"]).gate(gate).cut_after(4)`.

use std::time::Duration;

use bytes::Bytes;

use super::gate::Gate;

/// What the provider does with one request.
#[derive(Clone, Debug)]
pub struct Script {
    pub(super) opening: Opening,
    pub(super) early: bool,
    pub(super) before_head: Vec<Wait>,
    pub(super) interims: Vec<Bytes>,
    pub(super) version: &'static str,
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    /// Framing headers that are not written (lower case).
    pub(super) omitted: Vec<String>,
    pub(super) framing: Framing,
    pub(super) frames: Vec<Frame>,
    pub(super) between: Vec<Wait>,
    pub(super) before_end: Vec<Wait>,
    pub(super) chunk_extension: String,
    pub(super) trailers: Vec<(String, String)>,
    pub(super) limit: Limit,
    pub(super) ending: Ending,
    pub(super) after: After,
    pub(super) surplus: Bytes,
    pub(super) split: Option<usize>,
    pub(super) one_write: bool,
}

/// How it begins.
#[derive(Clone, Debug)]
pub(super) enum Opening {
    Answer,
    Raw(Bytes),
    Silence,
    /// HTTP/2 alone: the stream is reset with this error code.
    Refusal(u32),
}

/// How the body's length is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length,
    Chunked,
    Close,
}

/// A piece of the body, one chunk and one write, and what is waited for before it.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) waits: Vec<Wait>,
    pub(super) bytes: Bytes,
}

#[derive(Clone, Debug)]
pub(super) enum Wait {
    For(Duration),
    At(Gate),
}

/// Where the script breaks off.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limit {
    None,
    Events(usize),
    BodyBytes(usize),
    WireBytes(usize),
}

/// What happens where it breaks off.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    Cut,
    Reset,
    Stall,
}

/// What happens after a complete reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    Keep,
    /// Says `connection: close` and closes.
    SayClose,
    /// Closes without a word.
    Close,
    Reset,
    /// Sends FIN, then reads and drops what still comes.
    Linger,
}

/// Head.
impl Script {
    /// Another status, with its usual reason.
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Adds a header, after those that are there: a second `content-length` is as easy as a first.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Removes a header, or keeps the framing's own `content-length`, `transfer-encoding` or `connection` from being
    /// written. (One given with [`header`](Self::header) afterwards is written: that is how a script lies.)
    pub fn without_header(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self.omitted.push(name.to_ascii_lowercase());
        self
    }

    /// Replaces a header.
    pub fn with_header(self, name: &str, value: &str) -> Self {
        self.without_header(name).header(name, value)
    }

    /// Answers as HTTP/1.0.
    pub fn http10(mut self) -> Self {
        self.version = "HTTP/1.0";
        self
    }

    /// Sends an interim head (`103` with `link`, `100`) before the real one; may be repeated.
    pub fn interim(mut self, status: u16, headers: &[(&str, &str)]) -> Self {
        let mut head = format!("HTTP/1.1 {status} {}\r\n", super::acts::reason(status));
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.interims.push(Bytes::from(head));
        self
    }

    /// Holds everything, interim heads too, until the gate lets it pass.
    pub fn hold_head(mut self, gate: Gate) -> Self {
        self.before_head.push(Wait::At(gate));
        self
    }

    /// Holds everything for a time.
    pub fn delay_head(mut self, time: Duration) -> Self {
        self.before_head.push(Wait::For(time));
        self
    }

    /// Answers after the request's head, without reading its body; then sends FIN and drops what still comes.
    /// For scripts given to `always` or `next`; one made by `answer` has seen the body already.
    pub fn early(mut self) -> Self {
        self.early = true;
        self.after = After::Linger;
        self
    }
}

/// Order and time.
impl Script {
    /// Waits between every two events.
    pub fn pause(mut self, time: Duration) -> Self {
        self.between.push(Wait::For(time));
        self
    }

    /// Waits at the gate between every two events; see [`Gate::let_one`].
    pub fn gate(mut self, gate: Gate) -> Self {
        self.between.push(Wait::At(gate));
        self
    }

    /// Waits at the gate before the event with this number (from 0).
    pub fn gate_before(self, event: usize, gate: Gate) -> Self {
        self.wait_before(event, Wait::At(gate))
    }

    /// Waits before the event with this number (from 0).
    pub fn pause_before(self, event: usize, time: Duration) -> Self {
        self.wait_before(event, Wait::For(time))
    }

    /// Waits at the gate after the last event and before the end, whatever the end is: terminator, cut or reset.
    pub fn gate_end(mut self, gate: Gate) -> Self {
        self.before_end.push(Wait::At(gate));
        self
    }

    /// Writes at most `size` bytes at a time.
    pub fn split_writes(mut self, size: usize) -> Self {
        self.split = Some(size.max(1));
        self
    }

    /// Joins everything between two waits, head included, into one write.
    pub fn one_write(mut self) -> Self {
        self.one_write = true;
        self
    }

    fn wait_before(mut self, event: usize, wait: Wait) -> Self {
        if let Some(frame) = self.frames.get_mut(event) {
            frame.waits.push(wait);
        }
        self
    }
}
