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
    /// The accounts for a request that may use any, in the order in which they are to be tried: first the one that its
    /// session keeps, else the next in turn, among those that serve best; then the others. `well` tells who is neither
    /// limited nor cooling. Those that must sign in are passed over.
    pub fn order(&self, session: Option<&[u8]>, now: Now, well: impl Fn(&Email) -> bool) -> Vec<Email> {
        let roll = self.roll();
        let fit = roll.iter().filter_map(|account| {
            let fitness = fitness(account, now)?;
            Some(((well(&account.email), fitness), account.email.clone()))
        });
        let mut fit: Vec<_> = fit.collect();
        let Some(best) = fit.iter().map(|(rank, _)| *rank).max() else { return Vec::new() };
        let candidates: Vec<&Email> = fit.iter().filter(|(rank, _)| *rank == best).map(|(_, email)| email).collect();
        let Some(first) = self.first(&candidates, session, now).cloned() else { return Vec::new() };
        let at = fit.iter().position(|(_, email)| *email == first).unwrap_or_default();
        fit.rotate_left(at);
        // Stable: who comes next in turn stays next among equals.
        fit.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        fit.into_iter().map(|(_, email)| email).collect()
    }

    /// A session keeps the account that has answered it.
    pub fn keep(&self, session: &[u8], email: &Email, now: Now) {
        if !self.setup.load().sticky.is_zero() {
            let session = self.sticky.hasher.hash_one(session);
            // There is a place for it since it was planned.
            if let Some(choice) = locked(&self.sticky.choices).get_mut(&session) {
                *choice = (email.clone(), now.monotonic);
            }
        }
    }

    fn first<'a>(&self, candidates: &[&'a Email], session: Option<&[u8]>, now: Now) -> Option<&'a Email> {
        let lasts = self.setup.load().sticky;
        let session = session.filter(|_| !lasts.is_zero()).map(|id| self.sticky.hasher.hash_one(id));
        let Some(session) = session else { return self.in_turn(candidates) };
        let mut choices = locked(&self.sticky.choices);
        let fresh = |made: &Instant| now.monotonic.saturating_duration_since(*made) < lasts;
        if let Some((email, made)) = choices.get_mut(&session)
            && fresh(made)
            && let Some(kept) = candidates.iter().find(|candidate| **candidate == email)
        {
            *made = now.monotonic;
            return Some(kept);
        }
        let email = self.in_turn(candidates)?;
        if choices.len() >= SESSION_LIMIT {
            choices.retain(|_, (_, made)| fresh(made));
            if choices.len() >= SESSION_LIMIT {
                choices.clear();
            }
        }
        choices.insert(session, (email.clone(), now.monotonic));
        Some(email)
    }

    fn in_turn<'a>(&self, candidates: &[&'a Email]) -> Option<&'a Email> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        candidates.get(turn.checked_rem(candidates.len())?).copied()
    }
}

fn fitness(account: &Account, now: Now) -> Option<Fitness> {
    let standing = account.standing();
    let usable = standing.usable(now).is_ok();
    match (standing.blocked(), &standing.token) {
        (Some(_), _) => usable.then_some(Fitness::Ending),
        (None, Some(token)) if !usable => {
            let failing = standing.backing_off(now.monotonic).is_some() || standing.storage.is_some();
            token.refresh.is_some().then_some(if failing { Fitness::Failing } else { Fitness::Well })
        }
        (None, Some(_)) => Some(Fitness::Well),
        (None, None) => None,
    }
}
