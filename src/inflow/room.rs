//! Rooms for heads, which have most small bodies as well. A thread uses them again, the latest first: those that are made and
//! freed with each request leave holes in the heap, a KiB of them for each open stream (measured), and the latest is still
//! in the processor's cache.

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};

/// Rooms that a thread keeps.
const SPARE_LIMIT: usize = 32;

thread_local! {
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// A room with bytes of a body; the thread that drops the last of them keeps the room.
pub(super) struct Room(pub(super) BytesMut);

impl Room {
    /// In bytes.
    pub(super) const SIZE: usize = 8 * 1024;

    /// One without bytes.
    pub(super) fn spare() -> BytesMut {
        let spare = SPARE.try_with(|spare| spare.try_borrow_mut().ok()?.pop()).ok().flatten();
        let mut room = spare.unwrap_or_default();
        // Also what was before the latest bytes comes back.
        room.reserve(Self::SIZE);
        room
    }
}

impl AsRef<[u8]> for Room {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Room> for Bytes {
    fn from(room: Room) -> Self {
        Self::from_owner(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut room = std::mem::take(&mut self.0);
        room.clear();
        let _ = SPARE.try_with(|spare| {
            if let Ok(mut spare) = spare.try_borrow_mut()
                && spare.len() < SPARE_LIMIT
            {
                spare.push(room);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_used_again_as_a_whole_when_its_last_bytes_have_gone() {
        let mut room = Room::spare();
        let place = room.as_ptr();
        room.extend_from_slice(b"head, body");
        bytes::Buf::advance(&mut room, 6);
        let body = Bytes::from(Room(room));
        let rest = body.slice(2..);
        drop(body);
        assert_ne!(Room::spare().as_ptr(), place, "somebody still has a part of it");
        assert_eq!(rest, "dy");
        drop(rest);
        let again = Room::spare();
        assert_eq!((again.as_ptr(), again.len(), again.capacity()), (place, 0, Room::SIZE));
        drop((0..2 * SPARE_LIMIT).map(|_| Room(Room::spare())).collect::<Vec<_>>());
        assert_eq!(SPARE.with_borrow(Vec::len), SPARE_LIMIT);
    }
}
