//! Bytes that all requests together may hold. Taking and giving back is one atomic operation: a semaphore has a lock,
//! at which all requests would meet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// See the module.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    held: AtomicUsize,
    /// Who waits for room.
    waiting: AtomicUsize,
    freed: Notify,
}

/// A part of a [`Budget`], which goes back when this is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// Of so many bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, held: AtomicUsize::new(0), waiting: AtomicUsize::new(0), freed: Notify::new() })
    }

    /// Bytes that nobody holds.
    pub fn free(&self) -> usize {
        self.limit.saturating_sub(self.held.load(Ordering::Relaxed))
    }

    /// Takes so many bytes, if they are free and nobody waits.
    pub fn try_take(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        if self.waiting.load(Ordering::Relaxed) > 0 { None } else { self.grab(bytes) }
    }

    /// Waits for so many bytes. Whoever waits for fewer may come first; there is no limit on the wait, but for requests
    /// of more than the whole.
    pub async fn take(self: &Arc<Self>, bytes: usize) -> Share {
        let _waiter = Waiter::new(self);
        loop {
            // Whoever looks after it has asked for news misses none.
            let freed = self.freed.notified();
            if let Some(share) = self.grab(bytes) {
                return share;
            }
            freed.await;
        }
    }

    fn grab(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let more = |held: usize| held.checked_add(bytes).filter(|held| *held <= self.limit);
        self.held.fetch_update(Ordering::SeqCst, Ordering::Relaxed, more).ok()?;
        Some(Share { budget: self.clone(), bytes })
    }
}

impl Share {
    /// How many bytes it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts another part of the same budget to this one.
    pub fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::SeqCst);
        if self.budget.waiting.load(Ordering::SeqCst) > 0 {
            self.budget.freed.notify_waiters();
        }
    }
}

/// One who waits, for as long as it does.
struct Waiter<'a>(&'a Budget);

impl<'a> Waiter<'a> {
    fn new(budget: &'a Budget) -> Self {
        budget.waiting.fetch_add(1, Ordering::SeqCst);
        Self(budget)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_taken_is_given_back_and_those_who_wait_come_first() {
        let budget = Budget::new(100);
        let mut held = budget.try_take(60).expect("room");
        assert!(budget.try_take(41).is_none());
        held.merge(budget.try_take(40).expect("room"));
        assert_eq!((held.bytes(), budget.free()), (100, 0));
        let mut waiting = std::pin::pin!(budget.take(50));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        drop(held);
        assert_eq!(budget.free(), 100);
        assert!(budget.try_take(1).is_none(), "somebody waits");
        assert_eq!(waiting.await.bytes(), 50);
        assert_eq!(budget.try_take(100).map(|share| share.bytes()), Some(100));
    }

    #[tokio::test]
    async fn whoever_gives_up_waiting_is_waited_for_no_longer() {
        let budget = Budget::new(100);
        let held = budget.try_take(100).expect("room");
        let gave_up = tokio::time::timeout(std::time::Duration::ZERO, budget.take(1)).await;
        assert!(gave_up.is_err());
        drop(held);
        assert!(budget.try_take(100).is_some());
    }

    #[test]
    fn many_threads_never_hold_more_than_there_is_and_none_waits_for_ever() {
        let (budget, most) = (Budget::new(3), Arc::new(AtomicUsize::new(0)));
        let threads: Vec<_> = (1..=3)
            .map(|bytes| {
                let (budget, most) = (budget.clone(), most.clone());
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
                    for _ in 0..5_000 {
                        let share = match budget.try_take(bytes) {
                            Some(share) => share,
                            None => runtime.block_on(budget.take(bytes)),
                        };
                        most.fetch_max(3 - budget.free(), Ordering::Relaxed);
                        drop(share);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!((budget.free(), most.load(Ordering::Relaxed)), (3, 3));
    }
}
