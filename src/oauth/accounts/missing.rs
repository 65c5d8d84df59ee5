//! Accounts that a request needs and that are not there: the store is asked again before a human is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Account, Accounts, Needy, locked};
use crate::health::Now;
use crate::oauth::standing::{GLANCE, Lack};
use crate::provider::Email;

impl Accounts {
    /// Who must sign in, and why; changes only when that does. The login box is shown for those who are new in it.
    pub fn needing_login(&self) -> watch::Receiver<Needy> {
        self.needy.subscribe()
    }

    /// Whether the store was read, or has said that it cannot be.
    pub fn is_settled(&self) -> bool {
        *self.tried.borrow()
    }

    /// Waits until the store was read, or has said that it cannot be. The caller has a limit.
    pub async fn settled(&self) {
        let _ = self.tried.subscribe().wait_for(|tried| *tried).await;
    }

    /// A request needs an account (`None` = any) that must sign in: reads the store again, at most every 200 ms, for
    /// somebody may have signed in beside us; else it is the login box's turn. Answers whether the account is there now.
    pub async fn missing(&self, who: Option<&Email>) -> bool {
        if !self.is_open() {
            return false;
        }
        let Some(email) = who else { return self.anybody().await };
        let account = self.enter(email);
        self.look_again(&account).await;
        match account.standing().usable(Now::read()) {
            Ok(_) | Err(Lack::Stale(_)) => true,
            Err(Lack::Need(need)) => {
                self.require_login(&account, need);
                false
            }
            Err(Lack::Unread) => false,
        }
    }

    /// The same beside a request that does not wait for it.
    pub fn miss(self: &Arc<Self>, who: Vec<Option<Email>>) {
        let now = Instant::now();
        let recent = |at: Instant| now.saturating_duration_since(at) < GLANCE;
        let known = |account: &Account| {
            let standing = account.standing();
            standing.need.is_some() && standing.retried.is_some_and(recent)
        };
        let news = who.into_iter().filter(|who| match who {
            Some(email) => !self.find(email).is_some_and(|account| known(&account)),
            None => !locked(&self.looked).is_some_and(recent),
        });
        let news: Vec<_> = news.collect();
        if !news.is_empty() {
            let accounts = self.clone();
            self.tasks.spawn(async move {
                for who in news {
                    accounts.missing(who.as_ref()).await;
                }
            });
        }
    }

    async fn anybody(&self) -> bool {
        let due = {
            let mut looked = locked(&self.looked);
            let now = Instant::now();
            let due = looked.is_none_or(|at| now.saturating_duration_since(at) >= GLANCE);
            if due {
                *looked = Some(now);
            }
            due
        };
        if due {
            // Where it cannot be read, nobody new is in it.
            let _ = self.take_all().await;
        }
        let there = !self.order(None, Now::read(), |_| true).is_empty();
        let nobody = !there && !self.roll().iter().any(|account| account.standing().need.is_some());
        if nobody && !self.missed.swap(true, Ordering::Relaxed) {
            tracing::error!("no account is signed in");
        }
        self.announce();
        there
    }
}
