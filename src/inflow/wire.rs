//! The bytes of one connection, in their order: heads, each with what follows it.

use std::io;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::{Duration, Instant};

use super::BodyFault;
use super::pace::{Pace, Timer, Times};
use super::room::Room;
use crate::chunked::Decoder;
use crate::gate::head::{self, Framing};

/// Room for a body whose length is known; the last may be twice as large. For 1 MB, 64 KiB cost 10 % less than half or
/// twice as much (measured).
pub(super) const BODY_ROOM: usize = 64 * 1024;
/// Room for chunks.
const CHUNKS_ROOM: usize = 32 * 1024;
/// Less than that is no room for another read.
const LEAST_ROOM: usize = 4 * 1024;
/// What chunks may have beside their data: so many bytes …
const FRAMING_LIMIT: u64 = 64 * 1024;
/// … and so many for each byte of data. Single bytes in chunks of their own have five.
const FRAMING_SHARE: u64 = 16;
/// Most bytes that are forgotten of a body which nobody wants: many clients send all they have before they look for an
/// answer, and a connection that is closed under them loses it (RFC 9112 §9.6).
const FORGET_LIMIT: u64 = 64 << 20;
/// Longest time for it.
const FORGET_TIME: Duration = Duration::from_secs(5);
/// And where what comes is no request, or no body.
const REFUSED_TIME: Duration = Duration::from_secs(1);
/// Instead of a head that is refused.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\n\r\n";

/// The inflow of one connection.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedReadHalf,
    times: Times,
    /// Read, and not handed on. Between requests it has no room while it is empty.
    buffer: BytesMut,
    /// Its room is a [`Room`], and nobody has a part of it.
    in_spare_room: bool,
    /// So many bytes of it are of a head that is hyper's.
    cleared: usize,
    /// So many bytes were looked through for the end of a head.
    seen: usize,
    rest: Rest,
    /// The client waits for a permission to send the body.
    waits: bool,
    /// The permission is given, and nobody has fetched it yet.
    permitted: bool,
    /// The request has its answer: a permission would come too late.
    answered: bool,
    end: Option<End>,
    /// Since when a head is incomplete.
    since: Option<Instant>,
    /// Since when the next one is waited for.
    idle: Option<Instant>,
    /// Since when a body is forgotten, and how many bytes have come since.
    forgetting: Option<(Instant, u64)>,
    pace: Pace,
    timer: Timer,
    is_awaited: bool,
}

/// What is still to come of a body.
#[derive(Debug)]
enum Rest {
    Nothing,
    Length(u64),
    /// And how many bytes there may still be beside their data.
    Chunks(Decoder, u64),
}

/// Why nothing more is read.
#[derive(Clone, Copy, Debug)]
enum End {
    /// There was something that is refused.
    Refused(head::Fault),
    /// A body cannot be read on.
    Broken(BodyFault),
}

impl Wire {
    pub(super) fn new(socket: OwnedReadHalf, times: Times) -> Self {
        Self {
            socket,
            times,
            buffer: BytesMut::new(),
            in_spare_room: false,
            cleared: 0,
            seen: 0,
            rest: Rest::Nothing,
            waits: false,
            permitted: false,
            answered: false,
            end: None,
            since: None,
            idle: None,
            forgetting: None,
            pace: Pace::default(),
            timer: Timer::default(),
            is_awaited: false,
        }
    }

    /// What follows the latest head, as long as nobody has read of it.
    pub(super) fn framing(&self) -> Result<Framing, head::Fault> {
        if let Some(End::Refused(fault)) = self.end {
            return Err(fault);
        }
        Ok(match self.rest {
            Rest::Nothing => Framing::Length(0),
            Rest::Length(length) => Framing::Length(length),
            Rest::Chunks(..) => Framing::Chunked,
        })
    }

    /// Bytes of room that are held.
    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.buffer.capacity()
    }

    /// Whether no body is under way.
    pub(super) fn is_between(&self) -> bool {
        matches!(self.rest, Rest::Nothing)
    }

    /// The request has its answer. Whether no other can follow on the connection: its end is past, or nobody knows where
    /// another would begin, for the body may come or not, or is too large to be forgotten.
    pub fn answered(&mut self) -> bool {
        self.answered = true;
        self.waits |= std::mem::take(&mut self.permitted);
        let hopeless = match self.rest {
            Rest::Nothing => false,
            Rest::Length(left) => self.waits || left > FORGET_LIMIT,
            Rest::Chunks(..) => self.waits,
        };
        self.end.is_some() || hopeless
    }

    /// How long to wait at the end for a client that may still be sending what nobody reads.
    pub fn last_wait(&self) -> Option<Duration> {
        match self.end {
            Some(_) => Some(REFUSED_TIME),
            None => (!self.is_between()).then_some(FORGET_TIME),
        }
    }

    /// Whether somebody waits for bytes, and has begun to since this was last asked.
    pub fn take_awaited(&mut self) -> bool {
        std::mem::take(&mut self.is_awaited)
    }

    /// Whether a permission to send the body is to be written; only once.
    pub fn take_permission(&mut self) -> bool {
        let permitted = std::mem::take(&mut self.permitted);
        if permitted {
            // From here on the body is late.
            self.pace = Pace::default();
        }
        permitted
    }

    /// The next head into `buf`, or nothing when there is none any more. What is left of a body is forgotten before.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn poll_head(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.cleared > 0 {
                let length = self.cleared.min(buf.remaining());
                buf.put_slice(self.buffer.get(..length).unwrap_or_default());
                self.buffer.advance(length);
                self.cleared -= length;
                self.give_up_room();
                return Poll::Ready(Ok(()));
            }
            match self.end {
                // Reading on would only keep the answer from its turn.
                Some(End::Refused(_)) => return Poll::Pending,
                Some(End::Broken(_)) => return Poll::Ready(Ok(())),
                None => {}
            }
            if !self.is_between() && !ready!(self.poll_forget(cx)) {
                return Poll::Ready(Ok(()));
            }
            match self.look_through() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(fault) => {
                    self.refuse(fault);
                    continue;
                }
            }
            match self.poll_fill(cx, Room::SIZE) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => match self.since {
                    Some(since) if self.timer.is_over(since + self.times.head, cx) => self.refuse(head::Fault::Slow),
                    Some(_) => return Poll::Pending,
                    None => {
                        let idle = *self.idle.get_or_insert_with(Instant::now);
                        return if self.timer.is_over(idle + self.times.idle, cx) {
                            Poll::Ready(Ok(()))
                        } else {
                            Poll::Pending
                        };
                    }
                },
            }
        }
    }

    /// Clears the next head, if it is whole.
    fn look_through(&mut self) -> Result<bool, head::Fault> {
        // An empty line before a request line: clients send one behind a body.
        while self.buffer.starts_with(b"\r\n") {
            self.buffer.advance(2);
            self.seen = 0;
        }
        if self.buffer.is_empty() {
            self.since = None;
            self.give_up_room();
            return Ok(false);
        }
        if self.seen >= self.buffer.len() {
            return Ok(false);
        }
        let Some(end) = head::end(&self.buffer, self.seen)? else {
            self.seen = self.buffer.len();
            self.since.get_or_insert_with(Instant::now);
            return Ok(false);
        };
        let head = head::check(self.buffer.get(..end).unwrap_or_default())?;
        self.rest = match head.framing {
            Framing::Length(0) => Rest::Nothing,
            Framing::Length(length) => Rest::Length(length),
            Framing::Chunked => Rest::Chunks(Decoder::default(), FRAMING_LIMIT),
        };
        self.cleared = end;
        if !self.is_between() {
            self.cut(head.told_by);
        }
        (self.waits, self.answered) = (head.waits, false);
        (self.seen, self.since, self.idle, self.pace) = (0, None, None, Pace::default());
        Ok(true)
    }

    /// Takes a line out of the head that was cleared.
    fn cut(&mut self, line: Range<usize>) {
        let length = line.len();
        self.buffer.copy_within(..line.start, length);
        self.buffer.advance(length);
        self.cleared -= length;
    }

    fn refuse(&mut self, fault: head::Fault) {
        match fault {
            // The client cannot read our answer, so whoever set it up reads it here.
            head::Fault::Tls => tracing::warn!("{fault}"),
            _ => tracing::debug!(%fault, "refused"),
        }
        self.end = Some(End::Refused(fault));
        (self.buffer, self.in_spare_room) = (BytesMut::from(STAND_IN), false);
        self.cleared = STAND_IN.len();
    }

    /// What has come of the body, as soon as anything has.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyFault>>> {
        loop {
            if let Some(End::Broken(fault)) = self.end {
                return Poll::Ready(Some(Err(fault)));
            }
            if !self.answered {
                // Who did not wait for the permission needs none.
                self.permitted |= std::mem::take(&mut self.waits) && self.buffer.is_empty();
            }
            let room = match &mut self.rest {
                Rest::Nothing => return Poll::Ready(None),
                Rest::Length(left) => {
                    let all = usize::try_from(*left).unwrap_or(usize::MAX);
                    let here = self.buffer.len().min(all);
                    if here > 0 {
                        *left -= here as u64;
                        if *left == 0 {
                            self.rest = Rest::Nothing;
                        }
                        return Poll::Ready(Some(Ok(self.take(here))));
                    }
                    // A read that leaves room tells that nothing more is there, which spares the next one.
                    if all < 2 * BODY_ROOM { all + 1 } else { BODY_ROOM }
                }
                Rest::Chunks(..) if self.buffer.is_empty() => CHUNKS_ROOM,
                Rest::Chunks(decoder, beside) => {
                    self.in_spare_room = false;
                    let before = self.buffer.len();
                    let Ok(piece) = decoder.decode(&mut self.buffer) else {
                        return self.broken(BodyFault::Interrupted);
                    };
                    let framing = (before - self.buffer.len() - piece.len()) as u64;
                    let allowed = *beside + piece.len() as u64 * FRAMING_SHARE;
                    let Some(left) = allowed.checked_sub(framing) else {
                        return self.broken(BodyFault::Interrupted);
                    };
                    *beside = left;
                    if decoder.is_done() {
                        self.rest = Rest::Nothing;
                        self.give_up_room();
                    }
                    if piece.is_empty() {
                        continue;
                    }
                    return Poll::Ready(Some(Ok(piece)));
                }
            };
            match self.poll_fill(cx, room) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return self.broken(BodyFault::Interrupted),
                Poll::Pending if self.pace.is_slow(self.times.body, &mut self.timer, cx) => {
                    return self.broken(BodyFault::Slow);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn broken<T>(&mut self, fault: BodyFault) -> Poll<Option<Result<T, BodyFault>>> {
        self.end = Some(End::Broken(fault));
        (self.buffer, self.in_spare_room) = (BytesMut::new(), false);
        Poll::Ready(Some(Err(fault)))
    }

    /// Reads on in a body that nobody wants: whether its end has come, with the next request perhaps behind it.
    fn poll_forget(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        // Who asked first has got an answer instead of the permission.
        if self.waits {
            return Poll::Ready(false);
        }
        loop {
            let (since, bytes) = *self.forgetting.get_or_insert_with(|| (Instant::now(), 0));
            // Whoever never stops sending keeps timers from their turn.
            if bytes > FORGET_LIMIT || since.elapsed() >= FORGET_TIME {
                return Poll::Ready(false);
            }
            match self.poll_body(cx) {
                Poll::Ready(None) => {
                    self.forgetting = None;
                    return Poll::Ready(true);
                }
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                Poll::Pending if self.timer.is_over(since + FORGET_TIME, cx) => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Reads whatever comes and forgets it: ready when the client has ended its side.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
    }

    /// Reads once, into so much room where there is none: how many bytes have come.
    fn poll_fill(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        self.is_awaited = true;
        let spare = self.buffer.capacity() - self.buffer.len();
        let anew = self.buffer.is_empty() && spare < LEAST_ROOM.min(room);
        if anew {
            // Whoever waits for the first bytes holds no room.
            ready!(AsRef::<TcpStream>::as_ref(&self.socket).poll_read_ready(cx))?;
            self.in_spare_room = room <= Room::SIZE;
            self.buffer = if self.in_spare_room { Room::spare() } else { BytesMut::with_capacity(room) };
        } else if spare == 0 {
            self.in_spare_room = false;
            self.buffer.reserve(room);
        }
        let read = pin!(self.socket.read_buf(&mut self.buffer)).poll(cx);
        self.is_awaited = read.is_pending();
        match &read {
            Poll::Ready(Ok(count)) => {
                self.pace.arrived(*count);
                self.forgetting = self.forgetting.map(|(since, bytes)| (since, bytes + *count as u64));
            }
            Poll::Pending if anew => self.give_up_room(),
            Poll::Ready(Err(_)) | Poll::Pending => {}
        }
        read
    }

    /// So many bytes from the front. What is left of the room is for the next of the same body.
    fn take(&mut self, length: usize) -> Bytes {
        if self.in_spare_room && self.is_between() && length == self.buffer.len() {
            self.in_spare_room = false;
            return Room(std::mem::take(&mut self.buffer)).into();
        }
        let piece = self.buffer.split_to(length).freeze();
        self.in_spare_room = false;
        if self.is_between() {
            self.give_up_room();
        }
        piece
    }

    /// Without bytes no room is held.
    fn give_up_room(&mut self) {
        if self.buffer.is_empty() {
            let room = std::mem::take(&mut self.buffer);
            if std::mem::take(&mut self.in_spare_room) {
                drop(Room(room));
            }
        }
    }
}
