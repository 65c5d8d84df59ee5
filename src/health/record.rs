//! One record: what is remembered of an entry, or of a provider as a whole.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{Cause, Now, Policy, Scope};

/// Longest cooldown after failures, unless the user's own base is longer.
const FAILURE_COOLDOWN_CAP: Duration = Duration::from_secs(5 * 60);

#[derive(Debug, Default)]
pub(super) struct Record(Mutex<State>);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) failures: u32,
    pub(super) last_failure: Option<Now>,
    pub(super) last_error: Option<String>,
    /// Cooldowns after failures so far without a success between.
    strikes: u32,
    /// Refusals so far without a success between.
    pub(super) refusals: u32,
    pub(super) limited: Option<SystemTime>,
    pub(super) cooldown: Option<Cooldown>,
    scoped: HashMap<Scope, Scoped>,
}

#[derive(Debug, Default)]
pub(super) struct Scoped {
    limited: Option<SystemTime>,
    cooldown: Option<Cooldown>,
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
        let scoped = self.scoped.get(scope).and_then(|scoped| scoped.limited);
        self.limited.max(scoped).filter(|until| *until > wall)
    }

    pub(super) fn limit_until(&mut self, until: SystemTime, scope: Option<&Scope>) {
        let slot = match scope {
            Some(scope) => &mut self.scoped.entry(scope.clone()).or_default().limited,
            None => &mut self.limited,
        };
        *slot = (*slot).max(Some(until));
    }

    pub(super) fn slot(&mut self, slot: Option<&Scope>) -> Option<&mut Cooldown> {
        match slot {
            Some(scope) => self.scoped.get_mut(scope).and_then(|scoped| scoped.cooldown.as_mut()),
            None => self.cooldown.as_mut(),
        }
    }

    /// Begins a cooldown, or lengthens the one that runs. Answers whether it began.
    pub(super) fn cool(&mut self, scope: Option<&Scope>, until: Instant, cause: Cause) -> bool {
        let slot = match scope {
            Some(scope) => &mut self.scoped.entry(scope.clone()).or_default().cooldown,
            None => &mut self.cooldown,
        };
        let began = slot.is_none_or(|running| running.until < until);
        if began {
            *slot = Some(Cooldown { until, cause, probing: false });
        }
        began
    }

    pub(super) fn fail(&mut self, policy: &Policy, at: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        let running = self.cooldown.is_some_and(|cooldown| cooldown.until > at);
        if running || self.failures < policy.unhealthy_threshold || policy.failure_cooldown.is_zero() {
            return false;
        }
        let cap = FAILURE_COOLDOWN_CAP.max(policy.failure_cooldown);
        let length = doubled(policy.failure_cooldown, self.strikes, cap).mul_f64(jitter()).min(cap);
        self.strikes = self.strikes.saturating_add(1);
        self.cool(None, at + length, Cause::Failures)
    }

    /// Forgets failures that are older than `timeout`. A cooldown is no time in which a target could have done better:
    /// the count begins at its end.
    pub(super) fn forget_old(&mut self, timeout: Duration, at: Instant) {
        let Some(last) = self.last_failure.map(|last| last.monotonic) else { return };
        let since = self.cooldown.map_or(last, |cooldown| cooldown.until.max(last));
        if at.saturating_duration_since(since) > timeout {
            self.failures = 0;
            self.strikes = 0;
            if self.cooldown.is_some_and(|cooldown| cooldown.cause == Cause::Failures && !cooldown.probing) {
                self.cooldown = None;
            }
        }
    }

    pub(super) fn recover(&mut self, scope: &Scope) {
        self.failures = 0;
        self.strikes = 0;
        self.refusals = 0;
        self.cooldown = None;
        if let Some(scoped) = self.scoped.get_mut(scope) {
            scoped.cooldown = None;
            if scoped.limited.is_none() {
                self.scoped.remove(scope);
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
