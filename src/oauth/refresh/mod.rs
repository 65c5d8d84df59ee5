//! Renewing tokens: ahead of time, on use, after a 401, by hand. Whoever asks first starts a refresh in a task of its
//! own; all others wait for the same one, and none of them can cancel it.

mod keep;
mod rotate;
mod schedule;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

pub(super) use keep::Saved;

use super::accounts::{Account, Accounts, Flight, is_flying, locked};
use super::standing::{GAP, Need};
use super::token::Generation;
use crate::metrics::RefreshKind;
use crate::provider::Email;

/// How a refresh ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refreshed {
    /// With a new token.
    Renewed,
    /// Somebody else had renewed it already.
    Adopted,
}

/// Why a token was not renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefreshFault {
    /// A human must act.
    #[error("{0}")]
    LoginRequired(Need),
    /// The store does not answer; without it a refresh might use a token that is spent.
    #[error("the store of tokens is unavailable")]
    StorageUnavailable,
    /// It did not work, or has not lately.
    #[error("the token cannot be renewed at the moment")]
    Failing {
        /// Until the next try.
        retry_in: Duration,
    },
    /// The process is ending.
    #[error("the balancer is ending")]
    Stopped,
}

/// Why a refresh by hand was not begun, or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManualFault {
    /// There is no such account.
    #[error("this account is not signed in")]
    Unknown,
    /// The last one was a moment ago.
    #[error("this account was refreshed a moment ago; try again in {} s", .0.as_secs())]
    TooSoon(Duration),
    /// It failed.
    #[error(transparent)]
    Failed(#[from] RefreshFault),
}

/// The value with which a refresh ends.
pub(super) type Outcome = Result<Refreshed, RefreshFault>;

/// Who asks for a refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// The schedule, or a request: not while failures keep us away.
    Use,
    /// A human: at once.
    Hand,
}

impl Accounts {
    /// Renews an account's token now, and waits for the end of it; at most once in 30 s.
    ///
    /// # Errors
    /// [`ManualFault`].
    pub async fn refresh(self: &Arc<Self>, email: &Email) -> Result<Refreshed, ManualFault> {
        let account = self.find(email).ok_or(ManualFault::Unknown)?;
        let generation = account.standing().generation().ok_or(ManualFault::Unknown)?;
        {
            let mut last = locked(&account.by_hand);
            let now = Instant::now();
            let left = last.map_or(Duration::ZERO, |at| GAP.saturating_sub(now.saturating_duration_since(at)));
            if !left.is_zero() {
                // Whole seconds, and never none.
                return Err(ManualFault::TooSoon(Duration::from_secs(left.as_secs().saturating_add(1)).min(GAP)));
            }
            *last = Some(now);
        }
        match self.fly(&account, generation, Urgency::Hand)? {
            Some(flight) => Ok(Self::landing(flight).await?),
            None => Ok(Refreshed::Adopted),
        }
    }

    /// Joins the refresh under way, or starts one, for the token of this generation; `None` = it is renewed already.
    pub(super) fn fly(
        self: &Arc<Self>,
        account: &Arc<Account>,
        generation: Generation,
        urgency: Urgency,
    ) -> Result<Option<Flight>, RefreshFault> {
        let mut slot = account.flight();
        if let Some(flight) = slot.as_ref().filter(|flight| is_flying(flight)) {
            return Ok(Some(flight.clone()));
        }
        // A refresh publishes its token before it leaves the slot: what stands here now is the last word.
        let standing = account.standing();
        match standing.generation() {
            None => return Err(RefreshFault::LoginRequired(standing.need.unwrap_or(Need::NotSignedIn))),
            Some(current) if current != generation => return Ok(None),
            Some(_) => {}
        }
        if let (Urgency::Use, Some(retry_in)) = (urgency, standing.backing_off(Instant::now())) {
            let unavailable = standing.storage.is_some();
            return Err(if unavailable {
                RefreshFault::StorageUnavailable
            } else {
                RefreshFault::Failing { retry_in }
            });
        }
        let (done, flight) = watch::channel(None);
        *slot = Some(flight.clone());
        let (accounts, account) = (self.clone(), account.clone());
        self.tasks.spawn(async move {
            let outcome = accounts.rotate(&account).await;
            accounts.metrics.refresh(kind(outcome));
            accounts.announce();
            accounts.woken.notify_one();
            *account.flight() = None;
            done.send_replace(Some(outcome));
        });
        Ok(Some(flight))
    }

    /// Waits for the end of a refresh.
    pub(super) async fn landing(mut flight: Flight) -> Outcome {
        match flight.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.unwrap_or(Err(RefreshFault::Stopped)),
            Err(_) => Err(RefreshFault::Stopped),
        }
    }
}

fn kind(outcome: Outcome) -> RefreshKind {
    match outcome {
        Ok(Refreshed::Renewed) => RefreshKind::Renewed,
        Ok(Refreshed::Adopted) => RefreshKind::Adopted,
        Err(RefreshFault::LoginRequired(_)) => RefreshKind::Rejected,
        Err(_) => RefreshKind::Failed,
    }
}
