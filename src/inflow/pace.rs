//! How long a client may take.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// How long a client may take to send.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The next head, as long as nothing of it has come.
    pub idle: Duration,
    /// A head, from its first byte.
    pub head: Duration,
    /// 1 KiB of a body, while somebody waits for it.
    pub body: Duration,
}

/// A deadline that moves often and is seldom reached.
#[derive(Debug, Default)]
pub struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Whether the deadline has passed; if not, the task is woken when it has.
    pub fn is_over(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if deadline <= Instant::now() {
                return true;
            }
            // Only when it fires is it moved to where it belongs.
            sleep.as_mut().reset(deadline);
        }
        false
    }
}

/// Least bytes of a body in [`Times::body`].
const PROGRESS: usize = 1024;

/// How fast a body arrives while somebody waits for it.
#[derive(Debug, Default)]
pub(super) struct Pace {
    waiting: Option<Instant>,
    waited: Duration,
    bytes: usize,
}

impl Pace {
    /// Until somebody waits again, as behind a slow provider, the clock stands still.
    pub(super) fn arrived(&mut self, bytes: usize) {
        self.bytes += bytes;
        if let Some(since) = self.waiting.take() {
            self.waited += since.elapsed();
        }
    }

    /// Nothing has come: whether too little has for so long.
    pub(super) fn is_slow(&mut self, window: Duration, timer: &mut Timer, cx: &mut Context<'_>) -> bool {
        loop {
            let since = *self.waiting.get_or_insert_with(Instant::now);
            if !timer.is_over(since + window.saturating_sub(self.waited), cx) {
                return false;
            }
            if self.bytes < PROGRESS {
                return true;
            }
            *self = Self::default();
        }
    }
}
