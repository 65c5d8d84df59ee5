//! One record: what is remembered of an entry, or of a provider as a whole.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{Cause, Now, Policy, Scope};

/// Longest cooldown after failures, unless the user's own base is longer.
const FAILURE_COOLDOWN_CAP: Duration = Duration::from_secs(5 * 60);
/// Models that are remembered of one entry.
const SCOPE_LIMIT: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Record(Mutex<State>);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) last_failure: Option<Now>,
    pub(super) last_error: Option<String>,
    /// Refusals so far without a success between.
    pub(super) refusals: u32,
    pub(super) whole: Part,
    scoped: HashMap<Scope, Part>,
}

/// What is remembered of an entry as a whole, or of one scope of it.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// In a row.
    pub(super) failures: u32,
    last: Option<Instant>,
    /// Cooldowns after failures so far without a success between.
    strikes: u32,
    pub(super) limited: Option<SystemTime>,
    pub(super) cooldown: Option<Cooldown>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Cooldown {
    pub(super) until: Instant,
    pub(super) cause: Cause,
    /// A request is finding out whether it is over.
    pub(super) probing: bool,
}

impl Record {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves counters, not a broken invariant.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which cooldown of a record: the whole entry's, or a scope's.
pub(super) type Slot = Option<Scope>;

impl State {
    pub(super) fn limit(&self, scope: &Scope, wall: SystemTime) -> Option<SystemTime> {
        let scoped = self.scoped.get(scope).and_then(|part| part.limited);
        self.whole.limited.max(scoped).filter(|until| *until > wall)
    }

    pub(super) fn limit_until(&mut self, until: SystemTime, scope: Option<&Scope>, now: Now) {
        let part = self.part(scope, now);
        part.limited = part.limited.max(Some(until));
    }

    pub(super) fn slot(&mut self, slot: Option<&Scope>) -> Option<&mut Cooldown> {
        match slot {
            Some(scope) => self.scoped.get_mut(scope)?.cooldown.as_mut(),
            None => self.whole.cooldown.as_mut(),
        }
    }

    /// Begins a cooldown, or lengthens the one that runs. Answers whether it began.
    pub(super) fn cool(&mut self, scope: Option<&Scope>, length: Duration, cause: Cause, now: Now) -> bool {
        self.part(scope, now).cool(now.monotonic + length, cause)
    }

    /// Counts a failure. Answers whether a cooldown began.
    pub(super) fn fail(&mut self, scope: Option<&Scope>, policy: &Policy, now: Now) -> bool {
        let part = self.part(scope, now);
        part.forget_old(policy.unhealthy_reset_timeout, now.monotonic);
        part.fail(policy, now.monotonic)
    }

    pub(super) fn forget_old(&mut self, scope: Option<&Scope>, timeout: Duration, at: Instant) {
        self.whole.forget_old(timeout, at);
        if let Some(part) = scope.and_then(|scope| self.scoped.get_mut(scope)) {
            part.forget_old(timeout, at);
        }
    }

    /// A success: nothing of this scope is believed any longer, and nothing of the entry, unless it only counted
    /// tokens: a provider that does may well fail at every message.
    pub(super) fn recover(&mut self, scope: &Scope) {
        if !scope.count_tokens {
            self.refusals = 0;
            self.whole = Part { limited: self.whole.limited, ..Part::default() };
        }
        if let Some(part) = self.scoped.remove(scope)
            && part.limited.is_some()
        {
            self.scoped.insert(scope.clone(), Part { limited: part.limited, ..Part::default() });
        }
    }

    fn part(&mut self, scope: Option<&Scope>, now: Now) -> &mut Part {
        let Some(scope) = scope else { return &mut self.whole };
        // Clients choose the names of models: what is over is dropped before it becomes a heap.
        if self.scoped.len() >= SCOPE_LIMIT && !self.scoped.contains_key(scope) {
            self.scoped.retain(|_, part| part.holds(now));
            if self.scoped.len() >= SCOPE_LIMIT {
                self.scoped.clear();
            }
        }
        self.scoped.entry(scope.clone()).or_default()
    }
}

impl Part {
    fn holds(&self, now: Now) -> bool {
        self.limited.is_some_and(|until| until > now.wall)
            || self.cooldown.is_some_and(|cooldown| cooldown.until > now.monotonic)
    }

    fn cool(&mut self, until: Instant, cause: Cause) -> bool {
        let began = self.cooldown.is_none_or(|running| running.until < until);
        if began {
            self.cooldown = Some(Cooldown { until, cause, probing: false });
        }
        began
    }

    fn fail(&mut self, policy: &Policy, at: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.last = Some(at);
        let running = self.cooldown.is_some_and(|cooldown| cooldown.until > at);
        if running || self.failures < policy.unhealthy_threshold || policy.failure_cooldown.is_zero() {
            return false;
        }
        let cap = FAILURE_COOLDOWN_CAP.max(policy.failure_cooldown);
        let length = doubled(policy.failure_cooldown, self.strikes, cap).mul_f64(jitter()).min(cap);
        self.strikes = self.strikes.saturating_add(1);
        self.cool(at + length, Cause::Failures)
    }

    /// Forgets failures that are older than `timeout`. A cooldown is no time in which a target could have done better:
    /// the count begins at its end.
    fn forget_old(&mut self, timeout: Duration, at: Instant) {
        let Some(last) = self.last else { return };
        let since = self.cooldown.map_or(last, |cooldown| cooldown.until.max(last));
        if at.saturating_duration_since(since) > timeout {
            self.failures = 0;
            self.strikes = 0;
            self.last = None;
            if self.cooldown.is_some_and(|cooldown| cooldown.cause == Cause::Failures && !cooldown.probing) {
                self.cooldown = None;
            }
        }
    }
}

pub(super) fn doubled(base: Duration, times: u32, cap: Duration) -> Duration {
    base.saturating_mul(2_u32.saturating_pow(times.min(16))).min(cap)
}

/// Between 0.8 and 1.2, so that several balancers do not return at once.
fn jitter() -> f64 {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    0.8 + 0.4 * f64::from(random) / f64::from(u32::MAX)
}

/// The right to prefer a target whose cooldown has ended. Dropping it, by whatever way, gives it back.
#[derive(Debug, Default)]
pub struct Permit(Vec<(Arc<Record>, Slot)>);

impl Permit {
    /// The caller has marked the cooldown as `probing`.
    pub(super) fn add(&mut self, record: Arc<Record>, slot: Slot) {
        self.0.push((record, slot));
    }

    pub(super) fn if_any(self) -> Option<Self> {
        (!self.0.is_empty()).then_some(self)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        for (record, slot) in &self.0 {
            if let Some(cooldown) = record.lock().slot(slot.as_ref()) {
                cooldown.probing = false;
            }
        }
    }
}
