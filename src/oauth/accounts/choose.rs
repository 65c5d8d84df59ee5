//! Which account serves a request that may use any: each in its turn, and a session keeps its own while that is well.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::{Account, Accounts, locked};
use crate::health::Now;
use crate::provider::Email;

/// Sessions that are remembered; beyond it, those that are over are forgotten, then all.
const SESSION_LIMIT: usize = 8192;

/// The accounts of sessions.
#[derive(Debug, Default)]
pub(super) struct Sticky {
    hasher: RandomState,
    choices: Mutex<HashMap<u64, (Email, Instant)>>,
}

/// How well an account can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fitness {
    /// Must sign in, but its token still holds.
    Ending,
    /// Its token must be renewed first, and that has failed lately.
    Failing,
    /// Serves.
    Well,
}

impl Accounts {
    /// The account for a request that may use any of those that `may` names: the one that its session keeps, else
    /// the next in turn. Those that must sign in are passed over.
    pub fn choose(&self, session: Option<&[u8]>, now: Now, may: impl Fn(&Email) -> bool) -> Option<Email> {
        let roll = self.roll();
        let fit: Vec<(Fitness, &Email)> = roll
            .iter()
            .filter(|account| may(&account.email))
            .filter_map(|account| Some((fitness(account, now)?, &account.email)))
            .collect();
        let best = fit.iter().map(|(fitness, _)| *fitness).max()?;
        let fit: Vec<&Email> =
            fit.into_iter().filter(|(fitness, _)| *fitness == best).map(|(_, email)| email).collect();
        let lasts = self.setup.load().sticky;
        let session = session.filter(|_| !lasts.is_zero()).map(|id| self.sticky.hasher.hash_one(id));
        let Some(session) = session else { return self.in_turn(&fit) };
        let mut choices = locked(&self.sticky.choices);
        let fresh = |made: &Instant| now.monotonic.saturating_duration_since(*made) < lasts;
        if let Some((email, made)) = choices.get_mut(&session)
            && fresh(made)
            && fit.contains(&&*email)
        {
            *made = now.monotonic;
            return Some(email.clone());
        }
        let email = self.in_turn(&fit)?;
        if choices.len() >= SESSION_LIMIT {
            choices.retain(|_, (_, made)| fresh(made));
            if choices.len() >= SESSION_LIMIT {
                choices.clear();
            }
        }
        choices.insert(session, (email.clone(), now.monotonic));
        Some(email)
    }

    fn in_turn(&self, fit: &[&Email]) -> Option<Email> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        fit.get(turn.checked_rem(fit.len())?).map(|email| (*email).clone())
    }
}

fn fitness(account: &Account, now: Now) -> Option<Fitness> {
    let standing = account.standing();
    let usable = standing.usable(now).is_ok();
    match (standing.need, &standing.token) {
        (Some(_), _) => usable.then_some(Fitness::Ending),
        (None, Some(token)) if !usable => {
            let failing = standing.backing_off(now.monotonic).is_some() || standing.storage.is_some();
            token.refresh.is_some().then_some(if failing { Fitness::Failing } else { Fitness::Well })
        }
        (None, Some(_)) => Some(Fitness::Well),
        (None, None) => None,
    }
}
