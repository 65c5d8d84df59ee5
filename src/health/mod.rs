//! Who is well, who is cooling, who is known to be rejected until when.
//!
//! Records outlive a reload: they are keyed by an entry's stable identity (and by provider and model for what
//! concerns both), not by its place in a file. Nothing here awaits, and nothing here decides what an outcome means:
//! `proxy::verdict` does, and hands over a [`Penalty`].
//!
//! Two kinds of bad standing differ on purpose. A *cooldown* is our own belief: it moves a target to the end of the
//! order, and when it ends one request at a time (the [`Permit`]) may prefer the target again. A *limit* is the
//! provider's own word, with a reset time: the target is skipped until then.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use crate::provider::{Email, Identity, Provider, ProviderKey};

mod record;

pub use record::Permit;
use record::{Cooldown, Record, doubled};

/// Both clocks, read once: monotonic for cooldowns, wall for resets that a provider names.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Never jumps; stands still while a laptop sleeps.
    pub monotonic: Instant,
    /// What providers mean by a reset time.
    pub wall: SystemTime,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }
}

/// The settings that govern cooldowns after failures.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Length of the first cooldown; zero = none.
    pub failure_cooldown: Duration,
    /// Failures in a row before a cooldown.
    pub unhealthy_threshold: u32,
    /// Failures older than this are forgotten.
    pub unhealthy_reset_timeout: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            failure_cooldown: Duration::from_secs(60),
            unhealthy_threshold: 2,
            unhealthy_reset_timeout: Duration::from_secs(300),
        }
    }
}

/// After a refused key: doubles from here …
const REFUSED_COOLDOWN: Duration = Duration::from_secs(5 * 60);
/// … up to here.
const REFUSED_COOLDOWN_CAP: Duration = Duration::from_secs(60 * 60);
/// A provider without the model, or an account without the right to it.
const MODEL_COOLDOWN: Duration = Duration::from_secs(10 * 60);
/// An overloaded provider, or a bare 429: fixed, never doubled.
pub const BRIEF_COOLDOWN: Duration = Duration::from_secs(10);
/// Credit that ran out without a named reset.
pub const SPENT_COOLDOWN: Duration = Duration::from_secs(60 * 60);

/// What an attempt's outcome costs its target.
#[derive(Clone, Debug, PartialEq)]
pub enum Penalty {
    /// Nothing.
    None,
    /// One more failure in a row; at the threshold, a cooldown.
    Failure,
    /// The credential was refused: 5 min, doubling to 1 h.
    Refused,
    /// The account may not use this model: 10 min, account and model.
    RefusedModel,
    /// The provider does not know this model: 10 min, provider and model.
    UnknownModel,
    /// The provider is overloaded: 10 s, provider and model.
    Overloaded,
    /// A rate limit without a reset: 10 s, account and model.
    Busy,
    /// Credit or spend limit without a reset: 1 h, that account or key.
    Spent,
    /// The same, refused with 402.
    Unpaid,
    /// A rate or spend limit with a reset.
    Limited {
        /// When it ends.
        until: SystemTime,
        /// Whether only this model is concerned.
        model_only: bool,
    },
}

/// Why a target cools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Failures in a row.
    Failures,
    /// Its credential was refused.
    Refused,
    /// Its provider lacks the model.
    UnknownModel,
    /// Its provider is overloaded.
    Overloaded,
    /// A bare rate limit.
    Busy,
    /// No credit, or a spend limit.
    Spent,
    /// Payment is required.
    Unpaid,
}

/// How a target stands at one moment.
#[derive(Debug)]
pub enum Standing {
    /// Usable; after a cooldown, with the one permit that lets it be preferred again.
    Ready(Option<Permit>),
    /// Believed to be bad until then; or, at an end that has passed, another request is finding out.
    Cooling {
        /// The end of the cooldown.
        until: Instant,
        /// Why.
        cause: Cause,
    },
    /// Known to be rejected until then.
    Limited {
        /// The reset.
        until: SystemTime,
    },
    /// Has no credential until somebody signs in.
    LoginRequired,
    /// Has none to be had: the store of tokens does not answer.
    StorageUnavailable,
    /// Switched off in the configuration.
    Disabled,
}

/// What a request is about, for records that concern one model. `count_tokens` has records of its own: a limit or a
/// failure there says nothing of messages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    /// The model as it is sent upstream; empty where no model is concerned.
    pub model: Arc<str>,
    /// Whether this is `/v1/messages/count_tokens`.
    pub count_tokens: bool,
}

/// All records.
#[derive(Debug)]
pub struct Health {
    policy: ArcSwap<Policy>,
    accounts: ArcSwap<HashMap<Arc<Identity>, Arc<Record>>>,
    providers: ArcSwap<HashMap<ProviderId, Arc<Record>>>,
}

/// Name and origin: what all accounts of one provider share.
type ProviderId = (Arc<str>, String);

/// What `/providers` tells of an entry.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Failures in a row.
    pub failures: u32,
    /// The last one.
    pub last_failure: Option<SystemTime>,
    /// What it was, in our own words.
    pub last_error: Option<String>,
    /// The end of a cooldown of the whole entry.
    pub cooldown_until: Option<SystemTime>,
    /// Whether it cools for want of credit, or for a spend limit.
    pub out_of_credit: bool,
    /// The end of a limit of the whole entry.
    pub limited_until: Option<SystemTime>,
}

impl Report {
    /// Neither cooling nor limited as a whole.
    pub fn is_well(&self) -> bool {
        self.cooldown_until.is_none() && self.limited_until.is_none()
    }
}

impl Health {
    /// No records yet.
    pub fn new(policy: Policy) -> Self {
        Self { policy: ArcSwap::from_pointee(policy), accounts: ArcSwap::default(), providers: ArcSwap::default() }
    }

    /// After a reload: the new policy holds, and records of entries that are gone are released.
    pub fn retain(&self, policy: Policy, providers: &[Arc<Provider>]) {
        self.policy.store(Arc::new(policy));
        let stay: HashSet<&Identity> = providers.iter().map(|provider| &*provider.identity).collect();
        // An entry that names no account stands for all.
        let any = |identity: &Identity| {
            let key = ProviderKey { name: identity.key.name.clone(), account: None };
            Identity { key, ..identity.clone() }
        };
        self.accounts.rcu(|map| {
            map.iter()
                .filter(|(identity, _)| stay.contains(&***identity) || stay.contains(&any(identity)))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect::<HashMap<_, _>>()
        });
        let stay: HashSet<ProviderId> = providers.iter().map(|provider| provider_id(provider)).collect();
        self.providers.rcu(|map| {
            map.iter()
                .filter(|(id, _)| stay.contains(*id))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect::<HashMap<_, _>>()
        });
    }

    /// How an entry stands for one scope. May hand out the permit that lets a target be preferred after a cooldown.
    pub fn standing(&self, provider: &Provider, scope: &Scope, now: Now) -> Standing {
        let account = self.accounts.load().get(&*provider.identity).cloned();
        let shared = self.shared(provider);
        let records = [account, shared];
        let mut cooling: Option<Cooldown> = None;
        let mut permit = Permit::default();
        for record in records.iter().flatten() {
            let mut state = record.lock();
            if let Some(until) = state.limit(scope, now.wall) {
                return Standing::Limited { until };
            }
            state.forget_old(Some(scope), self.policy.load().unhealthy_reset_timeout, now.monotonic);
            for slot in [None, Some(scope)] {
                let Some(cooldown) = state.slot(slot) else { continue };
                if cooldown.until > now.monotonic || cooldown.probing {
                    if cooling.is_none_or(|other| other.until < cooldown.until) {
                        cooling = Some(*cooldown);
                    }
                } else {
                    cooldown.probing = true;
                    permit.add(record.clone(), slot.cloned());
                }
            }
        }
        match cooling {
            Some(Cooldown { until, cause, .. }) => Standing::Cooling { until, cause },
            None => Standing::Ready(permit.if_any()),
        }
    }

    /// Success: the counters go to zero, and no cooldown of this target is believed any longer. What is no message
    /// (`count_tokens`) vouches for itself only.
    pub fn succeeded(&self, provider: &Provider, scope: &Scope) {
        if let Some(record) = self.accounts.load().get(&*provider.identity) {
            record.lock().recover(scope);
        }
        if let Some(record) = self.shared(provider) {
            record.lock().recover(scope);
        }
    }

    /// Puts a penalty on a target; `error` is our own description of what happened. Answers whether a cooldown or a
    /// limit began.
    pub fn penalise(&self, provider: &Provider, scope: &Scope, penalty: &Penalty, error: &str, now: Now) -> bool {
        if *penalty == Penalty::None {
            return false;
        }
        let policy = self.policy.load();
        let record = self.account(provider);
        let mut state = record.lock();
        state.last_error = Some(error.to_owned());
        state.last_failure = Some(now);
        // What counting tokens runs into says nothing of messages.
        let whole = scope.count_tokens.then_some(scope);
        match penalty {
            Penalty::None => false,
            Penalty::Failure => state.fail(whole, &policy, now),
            Penalty::Refused => {
                state.refusals = state.refusals.saturating_add(1);
                let length = doubled(REFUSED_COOLDOWN, state.refusals - 1, REFUSED_COOLDOWN_CAP);
                state.cool(None, length, Cause::Refused, now)
            }
            Penalty::RefusedModel => state.cool(Some(scope), MODEL_COOLDOWN, Cause::Refused, now),
            Penalty::Busy => state.cool(Some(scope), BRIEF_COOLDOWN, Cause::Busy, now),
            Penalty::Spent => state.cool(whole, SPENT_COOLDOWN, Cause::Spent, now),
            Penalty::Unpaid => state.cool(whole, SPENT_COOLDOWN, Cause::Unpaid, now),
            Penalty::Limited { until, model_only } => {
                state.limit_until(*until, if *model_only { Some(scope) } else { whole }, now);
                true
            }
            Penalty::UnknownModel | Penalty::Overloaded => {
                drop(state);
                let (length, cause) = match penalty {
                    Penalty::Overloaded => (BRIEF_COOLDOWN, Cause::Overloaded),
                    _ => (MODEL_COOLDOWN, Cause::UnknownModel),
                };
                let shared = self.shared_or_new(provider);
                let mut state = shared.lock();
                state.cool(Some(scope), length, cause, now)
            }
        }
    }

    /// What is known of an entry as a whole.
    pub fn report(&self, provider: &Provider, now: Now) -> Report {
        let Some(record) = self.accounts.load().get(&*provider.identity).cloned() else { return Report::default() };
        let mut state = record.lock();
        state.forget_old(None, self.policy.load().unhealthy_reset_timeout, now.monotonic);
        let cooldown = state.whole.cooldown.filter(|cooldown| cooldown.until > now.monotonic);
        Report {
            failures: state.whole.failures,
            last_failure: state.last_failure.map(|at| at.wall),
            last_error: state.last_error.clone(),
            cooldown_until: cooldown.map(|cooldown| now.wall + (cooldown.until - now.monotonic)),
            out_of_credit: cooldown.is_some_and(|cooldown| matches!(cooldown.cause, Cause::Spent | Cause::Unpaid)),
            limited_until: state.whole.limited.filter(|until| *until > now.wall),
        }
    }

    /// An account has signed in anew, or was refreshed by hand: what was held against it is forgotten.
    pub fn forgive(&self, account: &Email) {
        self.accounts.rcu(|map| {
            let others = map.iter().filter(|(identity, _)| identity.key.account.as_ref() != Some(account));
            others.map(|(k, v)| (k.clone(), v.clone())).collect::<HashMap<_, _>>()
        });
    }

    /// Until when an account is limited as a whole, at whichever provider that lasts longest.
    pub fn limited_until(&self, account: &Email, now: Now) -> Option<SystemTime> {
        let records = self.accounts.load();
        let own = records.iter().filter(|(identity, _)| identity.key.account.as_ref() == Some(account));
        own.filter_map(|(_, record)| record.lock().whole.limited.filter(|until| *until > now.wall)).max()
    }

    /// Until when an account is left alone as a whole for want of credit, at whichever provider that lasts longest.
    pub fn out_of_credit_until(&self, account: &Email, now: Now) -> Option<SystemTime> {
        let records = self.accounts.load();
        let own = records.iter().filter(|(identity, _)| identity.key.account.as_ref() == Some(account));
        let until = |record: &Record| {
            let cooldown = record.lock().whole.cooldown?;
            let spent = matches!(cooldown.cause, Cause::Spent | Cause::Unpaid) && cooldown.until > now.monotonic;
            spent.then(|| now.wall + (cooldown.until - now.monotonic))
        };
        own.filter_map(|(_, record)| until(record)).max()
    }

    fn account(&self, provider: &Provider) -> Arc<Record> {
        if let Some(record) = self.accounts.load().get(&*provider.identity) {
            return record.clone();
        }
        self.accounts.rcu(|map| {
            let mut map = HashMap::clone(map);
            map.entry(provider.identity.clone()).or_default();
            map
        });
        self.accounts.load().get(&*provider.identity).cloned().unwrap_or_default()
    }

    fn shared(&self, provider: &Provider) -> Option<Arc<Record>> {
        let map = self.providers.load();
        if map.is_empty() {
            return None;
        }
        map.get(&provider_id(provider)).cloned()
    }

    fn shared_or_new(&self, provider: &Provider) -> Arc<Record> {
        if let Some(record) = self.shared(provider) {
            return record;
        }
        let id = provider_id(provider);
        self.providers.rcu(|map| {
            let mut map = HashMap::clone(map);
            map.entry(id.clone()).or_default();
            map
        });
        self.providers.load().get(&id).cloned().unwrap_or_default()
    }
}

fn provider_id(provider: &Provider) -> ProviderId {
    (provider.key.name.clone(), provider.identity.origin.clone())
}

#[cfg(test)]
mod tests;
