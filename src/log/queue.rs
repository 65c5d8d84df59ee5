//! Lines on their way to a writer. Whoever logs adds to a piece of text that it shares with the writer, who takes all
//! pieces at once and leaves an empty one: no line has room of its own that one thread asks for and another gives back.
//! The lock between them is held for one copy or one exchange, never over a call to the system or the allocator.

use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of a piece: so many are written at once. A longer line has a piece of its own.
const PIECE: usize = 64 * 1024;
/// Pieces that may wait for the writer: room for the lines of some 6,000 finished requests.
const PIECES: usize = 32;

/// What a writer is told to do.
pub(super) enum Order {
    /// Write: lines wait, and it slept.
    Lines,
    /// Touch the output, although nothing may wait.
    Touch,
    /// Answer when everything before it is written.
    Flush(SyncSender<()>),
}

/// Whoever logs has one.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    waiting: Arc<Mutex<Waiting>>,
    orders: mpsc::Sender<Order>,
}

/// The writer's end.
pub(super) struct Receiver {
    waiting: Arc<Mutex<Waiting>>,
    orders: mpsc::Receiver<Order>,
    taken: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Waiting {
    /// Lines are added to the last.
    pieces: Vec<Vec<u8>>,
    /// The writer found nothing and waits for an order.
    asleep: bool,
}

impl Waiting {
    /// Adds a line where there is room, which may be a new piece.
    fn add(&mut self, line: &[u8], spare: &mut Option<Vec<u8>>) -> bool {
        let fits = |piece: &&mut Vec<u8>| piece.capacity() - piece.len() >= line.len();
        if self.pieces.last_mut().filter(fits).is_none() && self.pieces.len() < PIECES {
            self.pieces.extend(spare.take());
        }
        let place = self.pieces.last_mut().filter(fits);
        place.map(|piece| piece.extend_from_slice(line)).is_some()
    }
}

pub(super) fn queue() -> (Queue, Receiver) {
    let (orders, received) = mpsc::channel();
    let pieces = || {
        let mut pieces = Vec::with_capacity(PIECES);
        pieces.push(Vec::with_capacity(PIECE));
        pieces
    };
    let waiting = Arc::new(Mutex::new(Waiting { pieces: pieces(), asleep: false }));
    (Queue { waiting: waiting.clone(), orders }, Receiver { waiting, orders: received, taken: pieces() })
}

impl Queue {
    /// Adds a line, its end included; whether there was room.
    pub(super) fn push(&self, line: &[u8]) -> bool {
        let mut spare = None;
        loop {
            let mut waiting = lock(&self.waiting);
            if waiting.add(line, &mut spare) {
                let asleep = std::mem::take(&mut waiting.asleep);
                drop(waiting);
                if asleep {
                    self.order(Order::Lines);
                }
                return true;
            }
            if waiting.pieces.len() >= PIECES {
                return false;
            }
            drop(waiting);
            spare = Some(Vec::with_capacity(PIECE.max(line.len())));
        }
    }

    /// Never waits; a writer that has ended hears nothing.
    pub(super) fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }
}

impl Receiver {
    /// What waits, in pieces of whole lines. After nothing, the next line brings an order.
    pub(super) fn take(&mut self) -> &[Vec<u8>] {
        // The first piece goes back empty.
        self.taken.truncate(1);
        self.taken.iter_mut().for_each(Vec::clear);
        let mut waiting = lock(&self.waiting);
        std::mem::swap(&mut waiting.pieces, &mut self.taken);
        waiting.asleep = self.taken.iter().all(Vec::is_empty);
        drop(waiting);
        &self.taken
    }

    /// The next order; none when nobody is left who could give one.
    pub(super) fn next(&self) -> Option<Order> {
        self.orders.recv().ok()
    }

    /// The next order, if it comes within that time.
    pub(super) fn next_within(&self, time: Duration) -> Option<Order> {
        self.orders.recv_timeout(time).ok()
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(lines: &mut Receiver) -> String {
        String::from_utf8(lines.take().concat()).expect("UTF-8")
    }

    #[test]
    fn what_finds_no_room_is_refused_until_the_writer_has_taken() {
        let (queue, mut lines) = queue();
        let line = [b'x'; 1000];
        let count = std::iter::repeat_with(|| queue.push(&line)).take_while(|room| *room).count();
        assert_eq!(count, PIECES * (PIECE / line.len()));
        let taken = lines.take();
        assert!(taken.iter().all(|piece| piece.len() <= PIECE), "each is written at once");
        assert_eq!(taken.iter().map(Vec::len).sum::<usize>(), count * line.len());
        assert!(queue.push(b"again\n"));
        assert_eq!(text(&mut lines), "again\n");
        assert_eq!(lines.taken.len(), 1, "the others are free");
    }

    #[test]
    fn a_line_longer_than_a_piece_is_whole_and_at_its_place() {
        let (queue, mut lines) = queue();
        let long = "x".repeat(3 * PIECE);
        assert!(queue.push(b"before\n") && queue.push(long.as_bytes()) && queue.push(b"after\n"));
        assert!(lines.take().iter().any(|piece| piece == long.as_bytes()));
        assert!(queue.push(b"before\n") && queue.push(long.as_bytes()) && queue.push(b"after\n"));
        assert_eq!(text(&mut lines), format!("before\n{long}after\n"));
    }

    #[test]
    fn only_a_writer_that_found_nothing_is_woken_and_only_once() {
        let (queue, mut lines) = queue();
        let orders = |lines: &Receiver| lines.orders.try_iter().count();
        assert!(queue.push(b"a\n"));
        assert_eq!(orders(&lines), 0, "it has not looked yet");
        assert_eq!((text(&mut lines).as_str(), text(&mut lines).as_str()), ("a\n", ""));
        assert!(queue.push(b"b\n") && queue.push(b"c\n"));
        assert_eq!(orders(&lines), 1);
        assert_eq!(text(&mut lines), "b\nc\n");
        assert!(queue.push(b"d\n"));
        assert_eq!(orders(&lines), 0, "it will look again by itself");
    }

    #[test]
    fn lines_of_many_threads_are_whole_and_each_threads_in_order() {
        let (queue, mut lines) = queue();
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let queue = queue.clone();
                std::thread::spawn(move || {
                    for number in 0..20_000 {
                        while !queue.push(format!("{thread} {number}\n").as_bytes()) {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        drop(queue);
        let mut next = [0; 4];
        // The end comes when the last thread has gone, who cannot leave a line behind.
        loop {
            let text = text(&mut lines);
            for line in text.lines() {
                let (thread, number) = line.split_once(' ').expect("whole");
                let next = &mut next[thread.parse::<usize>().expect("a thread")];
                assert_eq!(number.parse(), Ok(*next));
                *next += 1;
            }
            if text.is_empty() && lines.next().is_none() {
                break;
            }
        }
        assert_eq!(next, [20_000; 4]);
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    }
}
