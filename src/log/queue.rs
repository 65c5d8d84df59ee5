//! Lines on their way to a writer. Nobody who logs waits for another who does, wherever that one was interrupted: there
//! is no lock, and of either queue nothing is asked that it may not have, for one that is almost full or empty would
//! wait for who is about to change that. Only the writer may wait so. A line is copied into room that came back from
//! the writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::mpsc::{self, SyncSender};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;

/// Bytes that may wait for the writer.
const BOUND: usize = 2 << 20;
/// A line counts as so many bytes at least, whatever its length; one that has more room is not kept.
const SHARE: usize = 1024;
/// Lines that may wait: their places take 64 KiB.
const LINES: usize = BOUND / SHARE;
/// Empty lines that are kept: as many as come between two looks of the writer at 75,000 a second.
const SPARE: usize = 384;
/// The room of a line is a multiple of it: lines of one kind differ by a few bytes.
const STEP: usize = 64;
/// Bytes that are written at once. A longer line is written alone.
const BATCH: usize = 64 * 1024;

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
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
}

/// The writer's end.
pub(super) struct Receiver {
    shared: Arc<Shared>,
    orders: mpsc::Receiver<Order>,
    batch: Vec<u8>,
}

#[derive(Debug)]
struct Shared {
    lines: ArrayQueue<Vec<u8>>,
    /// What the lines count as: more before one is added, less after it was taken, so that there is a place for each.
    waiting: AtomicUsize,
    empty: ArrayQueue<Vec<u8>>,
    /// How many of them there are: more after one is added, less before it is taken, so that there is one for each.
    spare: AtomicUsize,
    /// The writer found nothing, and waits for an order.
    asleep: AtomicBool,
}

pub(super) fn queue() -> (Queue, Receiver) {
    let (orders, received) = mpsc::channel();
    let shared = Arc::new(Shared {
        lines: ArrayQueue::new(LINES),
        waiting: AtomicUsize::new(0),
        empty: ArrayQueue::new(SPARE),
        spare: AtomicUsize::new(0),
        asleep: AtomicBool::new(false),
    });
    (Queue { shared: shared.clone(), orders }, Receiver { shared, orders: received, batch: Vec::new() })
}

/// What a line counts as. One that is longer than all that may wait has room when nothing waits.
fn cost(line: &[u8]) -> usize {
    line.len().clamp(SHARE, BOUND)
}

impl Shared {
    /// Adds a line, its end included; whether there was room.
    fn add(&self, text: &[u8]) -> bool {
        let room = |waiting| Some(waiting + cost(text)).filter(|waiting| *waiting <= BOUND);
        if self.waiting.fetch_update(Ordering::Acquire, Ordering::Relaxed, room).is_err() {
            return false;
        }
        let spare = self.spare.fetch_update(Ordering::Acquire, Ordering::Relaxed, |spare| spare.checked_sub(1));
        let empty = spare.ok().and_then(|_| self.empty.pop());
        let mut line = empty.unwrap_or_default();
        line.reserve_exact(text.len().next_multiple_of(STEP));
        line.extend_from_slice(text);
        self.lines.push(line).is_ok()
    }

    /// Keeps a line that was written for the next.
    fn keep(&self, mut line: Vec<u8>) {
        line.clear();
        if line.capacity() <= SHARE && self.empty.push(line).is_ok() {
            self.spare.fetch_add(1, Ordering::Release);
        }
    }
}

impl Queue {
    /// Adds a line, its end included; whether there was room.
    pub(super) fn push(&self, line: &[u8]) -> bool {
        let added = self.shared.add(line);
        // The writer says that it sleeps, then looks once more; here a line is added, then that is asked for. With a
        // fence between on both sides one of the two sees the other.
        fence(Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::Relaxed) && self.shared.asleep.swap(false, Ordering::Relaxed) {
            self.order(Order::Lines);
        }
        added
    }

    /// Never waits; a writer that has ended hears nothing.
    pub(super) fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }
}

impl Receiver {
    /// Hands over what waits now, whole lines together; whether anything did.
    pub(super) fn take(&mut self, mut write: impl FnMut(&[u8])) -> bool {
        let shared = &*self.shared;
        let count = shared.lines.len();
        let mut lines = std::iter::from_fn(|| shared.lines.pop()).take(count).peekable();
        while lines.peek().is_some() {
            let (batch, mut taken) = (&mut self.batch, 0);
            while let Some(line) = lines.next_if(|line| batch.is_empty() || batch.len() + line.len() <= BATCH) {
                batch.extend_from_slice(&line);
                taken += cost(&line);
                shared.keep(line);
            }
            shared.waiting.fetch_sub(taken, Ordering::Release);
            write(batch);
            batch.clear();
            batch.shrink_to(BATCH);
        }
        count > 0
    }

    /// The next order, which a line brings as well; none when nobody is left who could give one.
    pub(super) fn next(&self) -> Option<Order> {
        self.shared.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let order = if self.shared.lines.is_empty() { self.orders.recv().ok() } else { Some(Order::Lines) };
        self.shared.asleep.store(false, Ordering::Relaxed);
        order
    }

    /// The next order, if it comes within that time; a line brings none.
    pub(super) fn next_within(&self, time: Duration) -> Option<Order> {
        self.orders.recv_timeout(time).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    fn batches(lines: &mut Receiver) -> Vec<Vec<u8>> {
        let mut batches = Vec::new();
        lines.take(|batch| batches.push(batch.to_vec()));
        batches
    }

    fn text(lines: &mut Receiver) -> String {
        String::from_utf8(batches(lines).concat()).expect("UTF-8")
    }

    #[test]
    fn what_finds_no_room_is_refused_until_the_writer_has_taken() {
        let (queue, mut lines) = queue();
        for (length, room) in [(1, LINES), (SHARE, LINES), (3000, BOUND / 3000), (BOUND, 1), (2 * BOUND, 1)] {
            let line = vec![b'x'; length];
            let count = std::iter::repeat_with(|| queue.push(&line)).take_while(|added| *added).count();
            assert_eq!(count, room, "lines of {length} bytes");
            let taken = batches(&mut lines);
            assert!(taken.iter().all(|batch| batch.len() <= BATCH.max(length)), "each is written at once");
            assert_eq!(taken.concat().len(), count * length);
            assert!(lines.batch.capacity() <= BATCH && !lines.take(|_| ()));
        }
        assert!(queue.push(b"again\n"));
        assert_eq!(text(&mut lines), "again\n");
    }

    #[test]
    fn a_line_longer_than_a_batch_is_whole_and_at_its_place() {
        let (queue, mut lines) = queue();
        let long = "x".repeat(3 * BATCH);
        assert!(queue.push(b"before\n") && queue.push(long.as_bytes()) && queue.push(b"after\n"));
        assert_eq!(batches(&mut lines), [b"before\n", long.as_bytes(), b"after\n"]);
    }

    #[test]
    fn a_line_is_written_where_an_earlier_one_was_unless_that_was_long() {
        let (queue, mut lines) = queue();
        let mut round = |count: usize, length: usize| {
            assert!((0..count).all(|_| queue.push(&vec![b'x'; length])) && lines.take(|_| ()));
            let spare = queue.shared.spare.load(Ordering::Relaxed);
            assert_eq!(spare, queue.shared.empty.len());
            spare
        };
        assert!((0..1000).all(|number| round(1, number) == 1));
        assert_eq!((round(3, 10), round(2, 10)), (3, 3));
        assert_eq!(round(1, SHARE + 1), 2);
        assert_eq!((round(LINES, 10), round(LINES, 10)), (SPARE, SPARE));
    }

    #[test]
    fn only_a_writer_that_sleeps_is_woken_and_only_once() {
        let (queue, mut lines) = queue();
        let orders = |lines: &Receiver| lines.orders.try_iter().count();
        assert!(queue.push(b"a\n"));
        assert_eq!((text(&mut lines).as_str(), text(&mut lines).as_str()), ("a\n", ""));
        assert!(queue.push(b"b\n"));
        assert_eq!(orders(&lines), 0, "it is awake");
        queue.order(Order::Touch);
        assert!(matches!(lines.next(), Some(Order::Lines)), "it looks once more before it sleeps");
        assert!(queue.push(b"c\n"));
        assert_eq!(orders(&lines), 1, "it is awake again");
        lines.shared.asleep.store(true, Ordering::Relaxed);
        assert!(queue.push(b"d\n") && queue.push(b"e\n"));
        assert_eq!(orders(&lines), 1);
        assert_eq!(text(&mut lines), "b\nc\nd\ne\n");
    }

    #[test]
    fn no_line_waits_for_a_writer_that_falls_asleep() {
        const ROUNDS: usize = 100_000;
        /// Only a wake-up that was lost takes so long.
        const LOST: Duration = Duration::from_secs(20);
        let (queue, mut lines) = queue();
        let taken = Arc::new(AtomicUsize::new(0));
        let count = taken.clone();
        let writer = std::thread::spawn(move || {
            while lines.take(|_| _ = count.fetch_add(1, Ordering::Relaxed)) || lines.next().is_some() {}
        });
        for round in 0..ROUNDS {
            // Sooner or later after the last was taken: each moment on the way to sleep has its turn.
            (0..round % 256).for_each(|turn| _ = std::hint::black_box(turn));
            assert!(queue.push(b"x\n"));
            let limit = Instant::now() + LOST;
            while taken.load(Ordering::Relaxed) == round {
                assert!(Instant::now() < limit, "line {round} waits");
                std::hint::spin_loop();
            }
        }
        drop(queue);
        writer.join().expect("no panic");
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
