//! What is known of one account at one moment, and what follows from it: whether its token may be used, when it is to
//! be renewed, how long a failure keeps us from trying again. Values and times in, answers out; nothing here waits.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::client::Code;
use super::token::{Generation, Token};
use crate::health::Now;

/// A token is renewed this long before it expires …
const LEAD: Duration = Duration::from_secs(300);
/// … and up to this much sooner, so that accounts do not come all at once.
const JITTER: Duration = Duration::from_secs(60);
/// Ahead of time a token is renewed no more often than this.
pub(super) const GAP: Duration = Duration::from_secs(30);
/// A request that lacks an account has the store read again no more often than this.
pub(super) const GLANCE: Duration = Duration::from_millis(200);
/// The wait after a first failure …
const BACKOFF: Duration = Duration::from_secs(30);
/// … which doubles up to this.
const BACKOFF_CAP: Duration = Duration::from_secs(3600);

/// Why an account must sign in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Need {
    /// It never did, or was removed.
    #[error("this account is not signed in")]
    NotSignedIn,
    /// A provider refuses its token, although that was renewed a moment ago.
    #[error("the provider refuses the account's token, also a renewed one")]
    Refused,
    /// Its token has ended, and there is nothing to renew it with.
    #[error("the token has expired and came without a refresh token")]
    NoRefreshToken,
    /// The authorization server will not renew it.
    #[error("the authorization server rejected the refresh token: {}", .0.as_str())]
    Rejected(Code),
    /// The reply to a refresh was lost on its way, and the server does not repeat it.
    #[error(
        "the reply to a refresh was lost, and the authorization server does not accept the old refresh token again"
    )]
    ReplyLost,
}

/// Why there is no bearer at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// A human must act.
    Need(Need),
    /// It has to be renewed first.
    Stale(Generation),
    /// The store has not said yet whether there is one.
    Unread,
}

/// See above. Published as a whole; requests read it without a lock.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    pub(super) token: Option<Arc<Token>>,
    /// What the store holds, as far as we know.
    pub(super) stored: Option<Generation>,
    /// Whether the store holds this very token.
    pub(super) persisted: bool,
    /// When the token came, on the clock that never jumps, and for how long it was good. Not known of one that was
    /// read from the store.
    pub(super) received: Option<(Instant, Duration)>,
    pub(super) need: Option<Need>,
    /// A provider has answered 401 to the token.
    pub(super) refused: bool,
    /// A refresh went out whose reply never came.
    pub(super) lost: bool,
    /// The store does not do what it should, in its own words.
    pub(super) storage: Option<Arc<str>>,
    /// The last refresh did not work, in our words.
    pub(super) trouble: Option<Arc<str>>,
    pub(super) failures: u32,
    /// No refresh before this, unless a human asks.
    pub(super) not_before: Option<Instant>,
    /// The last time that a refresh went out, of ours or, as far as we have seen, of another process.
    pub(super) attempted: Option<Instant>,
    /// The last try to save or to read again.
    pub(super) retried: Option<Instant>,
    pub(super) jitter: Duration,
    /// The highest generation that this account ever had here, so that none comes twice.
    pub(super) floor: Generation,
    /// How often a token has come or gone: what was read of the store before the last time is no news.
    pub(super) changes: u64,
}

impl Standing {
    /// The token, if it may be used.
    pub(super) fn usable(&self, now: Now) -> Result<&Arc<Token>, Lack> {
        match (&self.token, self.blocked()) {
            (Some(token), _) if !self.refused && !self.expired(now) => Ok(token),
            (_, Some(need)) => Err(Lack::Need(need)),
            (Some(token), None) if token.refresh.is_none() => Err(Lack::Need(Need::NoRefreshToken)),
            (Some(token), None) => Err(Lack::Stale(token.generation)),
            (None, None) if self.storage.is_some() => Err(Lack::Unread),
            (None, None) => Err(Lack::Need(Need::NotSignedIn)),
        }
    }

    /// What keeps a token from being used or renewed: a provider's word is no reason not to try again later.
    pub(super) fn blocked(&self) -> Option<Need> {
        self.need.filter(|need| *need != Need::Refused)
    }

    pub(super) fn generation(&self) -> Option<Generation> {
        self.token.as_ref().map(|token| token.generation)
    }

    /// Whether the store holds what is held here, if anything is.
    pub(super) fn persisted_or_gone(&self) -> bool {
        self.persisted || self.token.is_none()
    }

    /// How long the token is still good; by whichever clock has less left.
    pub(super) fn left(&self, now: Now) -> Duration {
        let Some(token) = &self.token else { return Duration::ZERO };
        let wall = token.expires_at.duration_since(now.wall).unwrap_or_default();
        let monotonic =
            self.received.map(|(at, life)| life.saturating_sub(now.monotonic.saturating_duration_since(at)));
        monotonic.map_or(wall, |left| left.min(wall))
    }

    pub(super) fn expired(&self, now: Now) -> bool {
        self.left(now).is_zero()
    }

    /// How long until it is to be renewed ahead of time; `None` = never.
    pub(super) fn due_in(&self, now: Now) -> Option<Duration> {
        let token = self.token.as_ref()?;
        if token.refresh.is_none() || self.blocked().is_some() {
            return None;
        }
        let lead = self.left(now).saturating_sub(LEAD + self.jitter);
        let gap = self.attempted.map(|at| at + GAP);
        let wait = gap.max(self.not_before).map(|at| at.saturating_duration_since(now.monotonic));
        Some(lead.max(wait.unwrap_or_default()))
    }

    /// How long a failure keeps us from trying again.
    pub(super) fn backing_off(&self, now: Instant) -> Option<Duration> {
        let left = self.not_before?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Whether it is time to save or to read again; notes that it was done.
    pub(super) fn retry(&mut self, gap: Duration, now: Instant) -> bool {
        let due = self.retried.is_none_or(|at| now.saturating_duration_since(at) >= gap);
        if due {
            self.retried = Some(now);
        }
        due
    }

    /// How long until the next try, where nobody asks for one.
    pub(super) fn retry_in(&self, now: Instant) -> Duration {
        self.retried.map_or(Duration::ZERO, |at| GAP.saturating_sub(now.saturating_duration_since(at)))
    }

    /// Takes a token: a new one of ours, or one from the store.
    pub(super) fn hold(&mut self, token: Token, received: Option<(Instant, Duration)>) {
        *self = Self {
            stored: self.stored,
            attempted: self.attempted,
            floor: self.floor.max(token.generation),
            changes: self.changes.wrapping_add(1),
            jitter: JITTER.mul_f64(f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX)),
            received,
            token: Some(Arc::new(token)),
            ..Self::default()
        };
    }

    /// Takes the token that the store holds.
    pub(super) fn adopt(&mut self, token: Token) {
        self.stored = Some(token.generation);
        self.hold(token, None);
        self.persisted = true;
    }

    /// The account is gone.
    pub(super) fn forget(&mut self) {
        *self = Self { floor: self.floor, changes: self.changes.wrapping_add(1), ..Self::default() };
    }

    /// Compares with what the store held when there had been so many `changes`, and takes what is newer there.
    pub(super) fn reconcile(&mut self, stored: Option<Token>, changes: u64) {
        self.storage = None;
        if changes != self.changes {
            // Something was saved or removed since it was read.
            return;
        }
        let ours = self.generation();
        let newer_login = |theirs: &Token| self.token.as_ref().is_some_and(|ours| theirs.follows_login_of(ours));
        match stored {
            Some(token) if ours.is_none_or(|ours| token.generation > ours) || newer_login(&token) => self.adopt(token),
            Some(token) if self.persisted && Some(token.generation) != ours => self.adopt(token),
            Some(token) => self.stored = Some(token.generation),
            // It was there, and somebody has removed it.
            None if self.stored.is_some() => self.forget(),
            None => {}
        }
    }

    /// A refresh did not work; answers how long to wait.
    pub(super) fn fail(&mut self, why: Arc<str>, retry_after: Option<Duration>, now: Instant) -> Duration {
        let doubled = BACKOFF.saturating_mul(1 << self.failures.min(10));
        let wait = doubled.max(retry_after.unwrap_or_default()).min(BACKOFF_CAP);
        self.failures = self.failures.saturating_add(1);
        self.trouble = Some(why);
        self.not_before = Some(now + wait);
        wait
    }
}

/// When a token that came now and is good for `life` expires.
pub(super) fn expiry(now: SystemTime, life: Duration) -> SystemTime {
    now.checked_add(life).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Email;
    use crate::secret::Secret;

    const HOUR: Duration = Duration::from_secs(3600);

    fn token(generation: u64, now: Now, life: Duration) -> Token {
        Token {
            email: Email::parse("main@example.com").expect("valid"),
            access: Secret::new(format!("access-{generation}")),
            refresh: Some(Secret::new("refresh")),
            expires_at: expiry(now.wall, life),
            scopes: Vec::new(),
            verified: true,
            created_at: now.wall,
            generation: Generation(generation),
        }
    }

    fn holding(life: Duration, now: Now) -> Standing {
        let mut standing = Standing::default();
        standing.hold(token(1, now, life), Some((now.monotonic, life)));
        Standing { jitter: Duration::ZERO, ..standing }
    }

    fn later(now: Now, by: Duration) -> Now {
        Now { monotonic: now.monotonic + by, wall: now.wall + by }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_due_five_minutes_before_it_expires_and_ahead_of_time_at_most_once_in_30_seconds() {
        let now = Now::read();
        let seconds = Duration::from_secs;
        // Life, age, age of the last attempt, due in.
        for (life, age, attempt, due) in [
            (28_800, 0, None, 28_500),
            (28_800, 28_499, None, 1),
            (28_800, 28_500, None, 0),
            (28_800, 28_500, Some(0), 30),
            (28_800, 40_000, None, 0),
            (60, 0, Some(0), 30),
            (60, 29, Some(29), 1),
            (60, 30, Some(30), 0),
            (1, 0, Some(0), 30),
        ] {
            let mut standing = holding(seconds(life), now);
            let then = later(now, seconds(age));
            standing.attempted = attempt.map(|ago| then.monotonic - seconds(ago));
            assert_eq!(standing.due_in(then), Some(seconds(due)), "{life} {age} {attempt:?}");
        }
        let mut standing = holding(HOUR, now);
        standing.jitter = seconds(60);
        assert_eq!(standing.due_in(now), Some(seconds(3600 - 360)));
        standing.need = Some(Need::ReplyLost);
        assert_eq!(standing.due_in(now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn clocks_may_jump() {
        let now = Now::read();
        let standing = holding(8 * HOUR, now);
        let jump = |wall: SystemTime| Now { monotonic: now.monotonic + HOUR, wall };
        let ten_years = 10 * 365 * 24 * HOUR;
        // Wall time, still usable, left in hours.
        for (wall, usable, left) in [
            (now.wall + HOUR, true, 7),
            (now.wall + 8 * HOUR, false, 0),
            (now.wall + ten_years, false, 0),
            (now.wall - HOUR, true, 7),
            (now.wall - ten_years, true, 7),
            (SystemTime::UNIX_EPOCH, true, 7),
        ] {
            let then = jump(wall);
            assert_eq!(standing.left(then), left * HOUR, "{wall:?}");
            assert_eq!(standing.usable(then).is_ok(), usable, "{wall:?}");
            assert!(standing.due_in(then).is_some());
        }
        // Set back for longer than the token's life: the clock that never jumps knows.
        let after = Now { monotonic: now.monotonic + 8 * HOUR, wall: now.wall - HOUR };
        assert_eq!(standing.usable(after).err(), Some(Lack::Stale(Generation(1))));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_from_30_seconds_to_an_hour() {
        let now = Now::read();
        let mut standing = holding(HOUR, now);
        let waits: Vec<u64> = (0..10).map(|_| standing.fail("x".into(), None, now.monotonic).as_secs()).collect();
        assert_eq!(waits, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]);
        let mut standing = holding(HOUR, now);
        assert_eq!(standing.fail("x".into(), Some(Duration::from_secs(90)), now.monotonic).as_secs(), 90);
        assert_eq!(standing.fail("x".into(), Some(Duration::MAX), now.monotonic), HOUR);
        assert_eq!(standing.backing_off(now.monotonic), Some(HOUR));
        assert_eq!(standing.due_in(now), Some(HOUR));
        // The token itself is as good as before.
        assert!(standing.usable(now).is_ok());
        standing.hold(token(2, now, HOUR), None);
        assert_eq!((standing.failures, standing.backing_off(now.monotonic)), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_store_holds_wins_where_it_is_newer() {
        let now = Now::read();
        // Ours, its state, the store's; then ours.
        for (persisted, stored, there, after) in [
            (true, Some(1), Some(1), Some(1)),
            (true, Some(1), Some(2), Some(2)),
            (true, Some(1), None, None),
            (false, None, None, Some(1)),
            (false, None, Some(1), Some(1)),
            (false, Some(1), None, None),
            (true, Some(1), Some(9), Some(9)),
        ] {
            let mut standing = holding(HOUR, now);
            standing.persisted = persisted;
            standing.stored = stored.map(Generation);
            standing.reconcile(there.map(|generation| token(generation, now, HOUR)), standing.changes);
            let row = format!("{persisted} {stored:?} {there:?}");
            assert_eq!(standing.generation(), after.map(Generation), "{row}");
            assert!(standing.floor >= Generation(1), "{row}");
        }
        let mut unsaved = holding(HOUR, now);
        unsaved.hold(token(6, now, HOUR), None);
        unsaved.reconcile(Some(token(5, now, HOUR)), unsaved.changes);
        assert_eq!((unsaved.generation(), unsaved.stored), (Some(Generation(6)), Some(Generation(5))));
        // A human has signed in elsewhere meanwhile: that counts for more than any number of refreshes.
        let login = Token { created_at: now.wall + HOUR, ..token(5, now, HOUR) };
        unsaved.reconcile(Some(login), unsaved.changes);
        assert_eq!((unsaved.generation(), unsaved.persisted), (Some(Generation(5)), true));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_before_a_save_or_a_removal_is_no_news() {
        let now = Now::read();
        let mut standing = holding(HOUR, now);
        (standing.persisted, standing.stored) = (true, Some(Generation(1)));
        let before = standing.changes;
        standing.adopt(token(2, now, HOUR));
        for old in [Some(token(1, now, HOUR)), None] {
            standing.reconcile(old, before);
            assert_eq!(standing.generation(), Some(Generation(2)));
        }
        let before = standing.changes;
        standing.forget();
        standing.reconcile(Some(token(2, now, HOUR)), before);
        assert_eq!(standing.generation(), None);
    }
}
