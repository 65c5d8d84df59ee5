//! How an entry is as a whole: what its health says, and how the account that it names stands, or those that it may
//! use.

use std::sync::Arc;

use super::Admin;
use crate::health::{Now, Report};
use crate::oauth::{Need, State};
use crate::provider::{Auth, Provider};

/// See above.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// Failures, cooldown, limit.
    pub(super) health: Report,
    /// Its account in one word, the best of them where it may use any; `None` = it has nothing to do with accounts.
    pub(super) account: Option<&'static str>,
    /// Nobody can use it before a human has signed in.
    pub(super) login_required: bool,
    /// Neither cooling nor limited, and with a credential.
    pub(super) healthy: bool,
    /// Whether a request may be sent to it: a cooldown is only our own belief.
    pub(super) can_serve: bool,
}

impl Admin {
    /// Judges an entry.
    pub(super) fn entry(&self, provider: &Arc<Provider>, now: Now) -> Entry {
        let mut entry = match (provider.auth == Auth::OAuth, &provider.key.account) {
            (false, _) => Entry::new(self.health.report(provider, now), None),
            (true, Some(email)) => {
                Entry::new(self.health.report(provider, now), Some(&self.accounts.state(email, now)))
            }
            (true, None) => self.any_account(provider, now),
        };
        entry.healthy &= provider.enabled;
        entry.can_serve &= provider.enabled;
        entry
    }

    /// An entry that names no account is as well as the best of those that are signed in.
    fn any_account(&self, provider: &Provider, now: Now) -> Entry {
        let accounts = self.accounts.status(now);
        let each = accounts.iter().map(|account| {
            Entry::new(self.health.report(&provider.for_account(&account.email), now), Some(&account.state))
        });
        each.max_by_key(|entry| {
            let soonest = entry.health.limited_until.max(entry.health.cooldown_until);
            (entry.healthy, entry.can_serve, !entry.login_required, std::cmp::Reverse(soonest))
        })
        .unwrap_or_else(|| Entry::new(self.health.report(provider, now), Some(&self.accounts.nobody())))
    }
}

impl Entry {
    fn new(health: Report, state: Option<&State>) -> Self {
        let (ready, usable) = match state {
            None | Some(State::Healthy | State::Refreshing) => (true, true),
            // It is renewed on use, if that works by then.
            Some(State::Failing { .. }) => (false, true),
            // Asked all the same: a provider's 401 is not the last word on a token.
            Some(State::LoginRequired(Need::Refused)) => (false, true),
            Some(State::LoginRequired(_) | State::StorageUnavailable) => (false, false),
        };
        Self {
            account: state.map(|state| word(state, health.limited_until.is_some(), health.out_of_credit)),
            login_required: matches!(state, Some(State::LoginRequired(_))),
            healthy: ready && health.is_well(),
            can_serve: usable && health.limited_until.is_none(),
            health,
        }
    }
}

/// The state of an account, in one word; `limited` = by a provider's own word.
pub(super) fn word(state: &State, limited: bool, out_of_credit: bool) -> &'static str {
    match state {
        State::Healthy if limited => "rate_limited",
        State::Healthy if out_of_credit => "out_of_credit",
        state => state.as_str(),
    }
}
