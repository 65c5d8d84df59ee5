//! The end of a script: broken off somewhere, or complete, and what becomes of the connection.

use bytes::Bytes;

use super::script::{After, Ending, Limit, Script};

/// Ends.
impl Script {
    /// After `events` events: FIN, no terminator (and over TLS no `close_notify`).
    pub fn cut_after(self, events: usize) -> Self {
        self.break_off(Limit::Events(events), Ending::Cut)
    }

    /// After `events` events: RST.
    pub fn reset_after(self, events: usize) -> Self {
        self.break_off(Limit::Events(events), Ending::Reset)
    }

    /// After `events` events: silence on an open connection, until the peer leaves.
    pub fn stall_after(self, events: usize) -> Self {
        self.break_off(Limit::Events(events), Ending::Stall)
    }

    /// After `events` events: a clean end, as if nothing were missing.
    pub fn end_after(mut self, events: usize) -> Self {
        self.frames.truncate(events);
        self
    }

    /// FIN after this many bytes of the body (chunk heads not counted).
    pub fn cut_at_byte(self, bytes: usize) -> Self {
        self.break_off(Limit::BodyBytes(bytes), Ending::Cut)
    }

    /// RST after this many bytes of the body.
    pub fn reset_at_byte(self, bytes: usize) -> Self {
        self.break_off(Limit::BodyBytes(bytes), Ending::Reset)
    }

    /// Silence after this many bytes of the body.
    pub fn stall_at_byte(self, bytes: usize) -> Self {
        self.break_off(Limit::BodyBytes(bytes), Ending::Stall)
    }

    /// FIN after this many bytes on the wire, the head included.
    pub fn cut_at_wire_byte(self, bytes: usize) -> Self {
        self.break_off(Limit::WireBytes(bytes), Ending::Cut)
    }

    /// Serves the next request on the same connection after the reply (the default, but for `raw`).
    pub fn keep_alive(mut self) -> Self {
        self.after = After::Keep;
        self
    }

    /// Says `connection: close` and closes after the reply.
    pub fn connection_close(mut self) -> Self {
        self.after = After::SayClose;
        self
    }

    /// Says nothing of it, or even `keep-alive`, and closes after the reply.
    pub fn close_after_reply(mut self) -> Self {
        self.after = After::Close;
        self
    }

    /// RST after the complete reply.
    pub fn reset_after_reply(mut self) -> Self {
        self.after = After::Reset;
        self
    }

    /// Bytes that belong to no reply, sent after it on the same connection.
    pub fn surplus(mut self, bytes: impl Into<Bytes>) -> Self {
        self.surplus = bytes.into();
        self
    }

    fn break_off(mut self, limit: Limit, ending: Ending) -> Self {
        self.limit = limit;
        self.ending = ending;
        self
    }
}
