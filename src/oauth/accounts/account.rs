//! One account: its standing, who is at work on it, and how often it was used.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::oauth::refresh::Outcome;
use crate::oauth::standing::Standing;
use crate::oauth::vault::{JournalEntry, Usage};
use crate::provider::Email;

/// A refresh under way; it ends with a value.
pub(in crate::oauth) type Flight = watch::Receiver<Option<Outcome>>;

/// See above. It stays when it is removed, with nothing in it.
#[derive(Debug)]
pub(in crate::oauth) struct Account {
    pub(in crate::oauth) email: Email,
    standing: ArcSwap<Standing>,
    /// Writers of the standing, one after another; never held while something is awaited.
    writing: Mutex<()>,
    /// Whoever changes the stored token, one after another.
    pub(in crate::oauth) turn: tokio::sync::Mutex<()>,
    flight: Mutex<Option<Flight>>,
    /// The last refresh that a human asked for.
    pub(in crate::oauth) by_hand: Mutex<Option<Instant>>,
    /// The journal's copies of tokens that could not be saved yet, the oldest first.
    pub(in crate::oauth) unerased: Mutex<Vec<JournalEntry>>,
    count: AtomicU64,
    last: AtomicU64,
    used: AtomicBool,
}

impl Account {
    pub(in crate::oauth) fn new(email: Email) -> Self {
        Self {
            email,
            standing: ArcSwap::default(),
            writing: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            flight: Mutex::default(),
            by_hand: Mutex::default(),
            unerased: Mutex::default(),
            count: AtomicU64::new(0),
            last: AtomicU64::new(0),
            used: AtomicBool::new(false),
        }
    }

    /// What is known now.
    pub(in crate::oauth) fn standing(&self) -> arc_swap::Guard<Arc<Standing>> {
        self.standing.load()
    }

    /// Changes it as a whole.
    pub(in crate::oauth) fn change<T>(&self, change: impl FnOnce(&mut Standing) -> T) -> T {
        let _writing = locked(&self.writing);
        let mut standing = Standing::clone(&self.standing.load());
        let result = change(&mut standing);
        self.standing.store(Arc::new(standing));
        result
    }

    /// Where the refresh under way is kept.
    pub(in crate::oauth) fn flight(&self) -> MutexGuard<'_, Option<Flight>> {
        locked(&self.flight)
    }

    pub(in crate::oauth) fn is_refreshing(&self) -> bool {
        self.flight().as_ref().is_some_and(is_flying)
    }

    /// Counts a request.
    pub(in crate::oauth) fn count(&self, wall: SystemTime) {
        let seconds = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.count.fetch_add(1, Ordering::Relaxed);
        self.last.store(seconds, Ordering::Relaxed);
        self.used.store(true, Ordering::Relaxed);
    }

    pub(in crate::oauth) fn usage(&self) -> Usage {
        let [count, last] = [&self.count, &self.last].map(|number| number.load(Ordering::Relaxed));
        let last_used = (last > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(last));
        Usage { count, last_used }
    }

    /// Adds what an earlier process counted.
    pub(in crate::oauth) fn add_usage(&self, earlier: Usage) {
        self.count.fetch_add(earlier.count, Ordering::Relaxed);
        let last = earlier.last_used.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        self.last.fetch_max(last.unwrap_or_default().as_secs(), Ordering::Relaxed);
    }

    /// Whether it was used since this was asked last.
    pub(in crate::oauth) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }
}

/// Whether a refresh is still on its way: it has not ended, and its task lives.
pub(in crate::oauth) fn is_flying(flight: &Flight) -> bool {
    flight.has_changed().is_ok() && flight.borrow().is_none()
}

/// What panicked elsewhere must not stop the accounts.
pub(in crate::oauth) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
