//! An event that a test opens and a script waits for: order without sleeping.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

/// Closed at first. Clones are the same gate.
///
/// [`open`](Gate::open) lets everybody pass from now on; [`let_one`](Gate::let_one) lets one wait pass, so that a
/// script with a gate between its events can be moved event by event.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    permits: Semaphore,
    reached: watch::Sender<usize>,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self(Arc::new(Inner { permits: Semaphore::new(0), reached: watch::Sender::new(0) }))
    }

    /// Opens it for good.
    pub fn open(&self) {
        self.0.permits.close();
    }

    /// Lets one wait pass: the one that stands there now, or else the next.
    pub fn let_one(&self) {
        self.0.permits.add_permits(1);
    }

    /// Whether it has been opened for good.
    pub fn is_open(&self) -> bool {
        self.0.permits.is_closed()
    }

    /// Waits until scripts have come to this gate `times` times in all (passing it or not).
    pub async fn reached(&self, times: usize) {
        let mut reached = self.0.reached.subscribe();
        // Cannot fail: the sender lives in `self`.
        let _ = reached.wait_for(|count| *count >= times).await;
    }

    /// Waits to be let through.
    pub(super) async fn pass(&self) {
        self.0.reached.send_modify(|count| *count += 1);
        // An error means closed, that is: open for everybody.
        if let Ok(permit) = self.0.permits.acquire().await {
            permit.forget();
        }
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_open() { "Gate(open)" } else { "Gate(closed)" })
    }
}
