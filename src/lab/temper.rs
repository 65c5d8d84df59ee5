//! How a provider treats connections, apart from what it answers.

use std::time::Duration;

/// What awaits a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Welcome {
    /// Requests are read and answered.
    Serve,
    /// It is accepted, and nothing is ever read or written (not even a TLS handshake).
    Mute,
    /// It is closed at once.
    Close,
    /// It is reset at once.
    Reset,
}

/// What becomes of a connection after a complete reply, while it is idle. Never of one that has had no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdleClose {
    /// It stays open.
    Never,
    /// It is closed at once: before the next request is written.
    AtOnce,
    /// It is closed after this time, whatever has come in by then being left unread.
    After(Duration),
    /// It is closed when the next request's head has been read: after the request was written.
    OnNextRequest,
    /// One of these at random, or none of them. The same seed gives the same choices.
    Random {
        /// Where the choices begin.
        seed: u64,
    },
}

/// The longest random wait.
const WAIT_MICROS: u64 = 3_000;

/// A policy and the state of its dice.
#[derive(Debug)]
pub(super) struct Temper {
    policy: IdleClose,
    state: u64,
}

impl Temper {
    pub(super) fn new(policy: IdleClose) -> Self {
        let state = if let IdleClose::Random { seed } = policy { seed } else { 0 };
        Self { policy, state }
    }

    /// The fate of a connection that has become idle; never `Random`.
    pub(super) fn fate(&mut self) -> IdleClose {
        if !matches!(self.policy, IdleClose::Random { .. }) {
            return self.policy;
        }
        match self.roll() % 4 {
            0 => IdleClose::Never,
            1 => IdleClose::AtOnce,
            2 => IdleClose::After(Duration::from_micros(self.roll() % WAIT_MICROS)),
            _ => IdleClose::OnNextRequest,
        }
    }

    /// SplitMix64.
    fn roll(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
