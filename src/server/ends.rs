//! The end of the service, step by step. Whoever serves a connection asks for the step with each of its polls, which is
//! one load; it waits for news in a list that is entered once for each step.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::proxy::Drain;

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Step {
    /// It has not begun.
    Serving,
    /// No further request on any connection.
    Closing,
    /// What still waits or streams ends with an error that says why.
    Drained,
    /// Connections are dropped.
    Aborting,
}

#[derive(Debug, Default)]
pub(super) struct Ends {
    step: AtomicU8,
    drain: Drain,
    changed: Notify,
}

impl Ends {
    pub(super) fn go(&self, step: Step) {
        if step >= Step::Drained {
            self.drain.end();
        }
        self.step.store(step as u8, Ordering::Release);
        self.changed.notify_waiters();
    }

    pub(super) fn step(&self) -> Step {
        match self.step.load(Ordering::Acquire) {
            0 => Step::Serving,
            1 => Step::Closing,
            2 => Step::Drained,
            _ => Step::Aborting,
        }
    }

    /// Ready with the next step.
    pub(super) fn news(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// For the requests.
    pub(super) fn drain(&self) -> &Drain {
        &self.drain
    }
}
